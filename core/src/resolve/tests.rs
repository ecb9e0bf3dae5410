use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use spillway_crds::LabelSelector;
use spillway_crds::address::AddressPair;
use spillway_crds::condition::ConditionType;
use spillway_crds::hub::{
    AddressPool, Destinations, EgressGatewaySpec, GatewayNodes, MemberNode, OnUnavailable, Refusal, Through,
};
use spillway_crds::member::{PlannedGatewaySpec, PlannedPeerSpec, PlannedPolicySpec, PolicyRef};

use super::*;
use crate::plan::{Resource, ResourceKey, ResourceKind};

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

fn select(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector {
        match_labels: labels(pairs),
        match_expressions: vec![],
    }
}

/// A member whose nodes `n1..` have overlay addresses out of the block of `id`; the first is an egress node.
fn member(name: &str, id: u16, nodes: u8) -> MemberInput {
    MemberInput {
        name: name.into(),
        created: i64::from(id),
        labels: labels(&[("name", name)]),
        partition: "default".into(),
        nodes: (1..=nodes)
            .map(|n| MemberNode {
                name: format!("{name}-n{n}"),
                labels: labels(if n == 1 { &[("egress", "true")] } else { &[] }),
                overlay: AddressPair {
                    ipv4: Some(format!("100.64.{}.{n}", u32::from(id) * 4)),
                    ipv6: Some(format!("fd64:5711:0:{id:x}::{n:x}")),
                },
                underlay: AddressPair {
                    ipv4: Some(format!("172.30.{id}.{n}")),
                    ipv6: None,
                },
                ready: true,
                ..MemberNode::default()
            })
            .collect(),
        ..MemberInput::default()
    }
}

fn gateway(name: &str, created: i64, members: &[&str], v4: &[&str]) -> GatewayInput {
    GatewayInput {
        name: name.into(),
        created,
        spec: EgressGatewaySpec {
            nodes: members
                .iter()
                .map(|m| GatewayNodes {
                    member: (*m).into(),
                    selector: select(&[("egress", "true")]),
                })
                .collect(),
            addresses: AddressPool {
                ipv4: v4.iter().map(|a| (*a).into()).collect(),
                ipv6: vec![],
            },
        },
        identities: vec![],
    }
}

fn policy(name: &str, members: &[(&str, &str)], gateways: &[&str]) -> PolicyInput {
    PolicyInput {
        source: PolicyRef {
            namespace: Some("payments".into()),
            name: name.into(),
        },
        created: 100,
        members: select(members),
        pods: select(&[("app", "billing")]),
        to: Destinations {
            cidrs: vec!["198.51.100.0/24".into()],
            except: vec![],
        },
        through: gateways
            .iter()
            .map(|g| Through {
                gateway: (*g).into(),
                egress_ip: None,
            })
            .collect(),
        ..PolicyInput::default()
    }
}

/// Records what `resolution` wants recorded, as the hub does.
fn record(state: &mut FederationState, resolution: &Resolution) {
    for m in &mut state.members {
        if let Some(a) = resolution.allocations.members.get(&m.name) {
            m.member_id = Some(a.id);
            m.overlay = Some(a.overlay.clone());
        }
    }
    for g in &mut state.gateways {
        if let Some(list) = resolution.allocations.gateways.get(&g.name) {
            g.identities.clone_from(list);
        }
    }
}

/// Resolves until everything is recorded.
fn settle(state: &mut FederationState) -> Resolution {
    for _ in 0..3 {
        let resolution = resolve(state);
        if resolution.allocations.is_empty() {
            return resolution;
        }
        record(state, &resolution);
    }
    panic!("allocations never settle")
}

/// Two gateway clusters, one source cluster and a bystander.
fn typical() -> FederationState {
    FederationState {
        members: vec![
            member("fra-1", 1, 2),
            member("fra-2", 2, 1),
            member("shop", 3, 2),
            member("other", 4, 1),
        ],
        gateways: vec![
            gateway(
                "frankfurt",
                10,
                &["fra-1", "fra-2"],
                &["203.0.113.10-203.0.113.19"],
            ),
            gateway("paris", 11, &["other"], &["203.0.113.32/28"]),
        ],
        policies: vec![policy("bank", &[("name", "shop")], &["frankfurt"])],
        ..FederationState::default()
    }
}

fn get<'a>(resolution: &'a Resolution, member: &str, kind: ResourceKind, name: &str) -> Option<&'a Resource> {
    let key = ResourceKey {
        kind,
        name: name.into(),
    };
    resolution.plans[member].get(&key)
}

fn planned_gateway<'a>(r: &'a Resolution, member: &str, name: &str) -> Option<&'a PlannedGatewaySpec> {
    match get(r, member, ResourceKind::Gateway, name)? {
        Resource::Gateway(g) => Some(g),
        _ => None,
    }
}

fn peer<'a>(r: &'a Resolution, member: &str, name: &str) -> Option<&'a PlannedPeerSpec> {
    match get(r, member, ResourceKind::Peer, name)? {
        Resource::Peer(p) => Some(p),
        _ => None,
    }
}

fn planned_policy<'a>(
    r: &'a Resolution,
    member: &str,
    source: &PolicyInput,
) -> Option<&'a PlannedPolicySpec> {
    match r.plans[member].get(&ResourceKey::policy(&source.source))? {
        Resource::Policy(p) => Some(p),
        _ => None,
    }
}

/// (status, reason, message) of a policy's condition.
fn verdict(r: &Resolution, policy: &PolicyInput, kind: ConditionType) -> (bool, String, String) {
    find(&r.policies[&policy.source].verdicts, kind)
}

fn gateway_verdict(r: &Resolution, gateway: &str, kind: ConditionType) -> (bool, String, String) {
    find(&r.gateways[gateway].verdicts, kind)
}

fn find(verdicts: &[Verdict], kind: ConditionType) -> (bool, String, String) {
    let v = verdicts.iter().find(|v| v.kind == kind).expect("always set");
    (v.status == Some(true), v.reason.clone(), v.message.clone())
}

fn names(plan: &Plan) -> Vec<String> {
    plan.resources().map(|(k, _, _)| k.to_string()).collect()
}

#[test]
fn a_typical_plan_of_a_source_and_of_a_gateway() {
    let resolution = settle(&mut typical());
    let text = |member: &str| {
        let resources: Vec<_> = resolution.plans[member]
            .resources()
            .map(|(k, r, _)| {
                let value: serde_json::Value = serde_json::from_slice(&r.encode()).expect("JSON");
                (k.to_string(), value)
            })
            .collect();
        resources
    };
    insta::assert_yaml_snapshot!("source", text("shop"));
    insta::assert_yaml_snapshot!("gateway", text("fra-1"));
}

#[test]
fn each_member_gets_what_concerns_it_and_nothing_else() {
    let mut state = typical();
    let r = settle(&mut state);
    assert_eq!(names(&r.plans["other"]), ["member/current", "gateway/paris"]);
    assert_eq!(
        peer(&r, "shop", "fra-1").expect("a peer").nodes.len(),
        1,
        "only its gateway node"
    );
    assert_eq!(
        peer(&r, "fra-1", "shop").expect("a peer").nodes.len(),
        2,
        "all nodes"
    );
    assert!(
        peer(&r, "fra-1", "fra-2").is_none(),
        "hosts of one gateway don't exchange packets"
    );
    let identity = |m| planned_gateway(&r, m, "frankfurt").expect("planned").identities[0].clone();
    assert_eq!(
        identity("fra-1").granted,
        [state.members[2].overlay.clone().expect("recorded")]
    );
    assert!(identity("shop").granted.is_empty());
}

#[test]
fn a_member_that_hosts_and_uses_a_gateway_is_not_its_own_peer_but_is_granted() {
    let mut state = typical();
    state.policies[0].members = LabelSelector::default();
    let r = settle(&mut state);
    assert!(peer(&r, "fra-1", "fra-1").is_none());
    assert!(
        peer(&r, "fra-1", "fra-2").is_some(),
        "its pods may leave through the other host"
    );
    assert_eq!(
        planned_gateway(&r, "fra-1", "frankfurt")
            .expect("planned")
            .identities[0]
            .granted
            .len(),
        4
    );
}

#[test]
fn a_policy_without_egress_ip_gets_the_pools_first_address() {
    let mut state = typical();
    state.gateways[0].spec.addresses.ipv6 = vec!["2001:db8:1::/120".into()];
    state.policies[0].through[0].egress_ip = Some(AddressPair {
        ipv4: Some("203.0.113.12".into()),
        ipv6: None,
    });
    let r = settle(&mut state);
    let egress = &r.policies[&state.policies[0].source].egress[0];
    assert_eq!(egress.egress_ip.ipv4.as_deref(), Some("203.0.113.12"));
    assert_eq!(egress.egress_ip.ipv6.as_deref(), Some("2001:db8:1::"));
}

#[test]
fn policies_with_the_same_egress_share_an_identity() {
    let mut state = typical();
    state
        .policies
        .push(policy("second", &[("name", "other")], &["frankfurt"]));
    let r = settle(&mut state);
    assert_eq!(state.gateways[0].identities.len(), 1);
    let id = |i: usize| r.policies[&state.policies[i].source].egress[0].identity;
    assert_eq!(id(0), id(1));
}

#[test]
fn a_gateway_that_is_full_refuses_only_what_is_new() {
    let mut state = typical();
    state.gateways[0].spec.addresses.ipv4 = vec!["203.0.0.0/16".into()];
    state.policies = (0..4097u16)
        .map(|i| {
            let mut policy = policy(&format!("p{i:04}"), &[("name", "shop")], &["frankfurt"]);
            policy.through[0].egress_ip = Some(AddressPair {
                ipv4: Some(format!("203.0.{}.{}", i / 256, i % 256)),
                ipv6: None,
            });
            policy
        })
        .collect();
    let last = state.policies.pop().expect("4097 of them");
    settle(&mut state);
    state.policies.insert(0, last.clone());
    let r = settle(&mut state);
    assert_eq!(state.gateways[0].identities.len(), 4096);
    assert_eq!(
        verdict(&r, &last, ConditionType::Accepted).1,
        "IdentitiesExhausted"
    );
    assert!(verdict(&r, &state.policies[1], ConditionType::Accepted).0);
    assert!(r.waiting.is_empty());
}

#[test]
fn what_is_not_recorded_is_not_planned_and_whoever_it_concerns_waits() {
    let mut state = typical();
    settle(&mut state);
    state.policies[0].through[0].egress_ip = Some(AddressPair {
        ipv4: Some("203.0.113.15".into()),
        ipv6: None,
    });
    let r = resolve(&state);
    assert_eq!(
        r.waiting,
        BTreeSet::from(["fra-1".into(), "fra-2".into(), "shop".into()])
    );
    assert_eq!(r.allocations.gateways["frankfurt"].len(), 1);
    let mut fresh = FederationState {
        members: vec![member("new", 9, 1)],
        ..FederationState::default()
    };
    assert!(
        resolve(&fresh).plans.is_empty(),
        "no plan before its id is recorded"
    );
    assert_eq!(settle(&mut fresh).plans.len(), 1);
}

#[test]
fn readiness_orders_a_gateways_nodes_and_connectedness_does_not_matter() {
    let mut state = typical();
    let before = settle(&mut state);
    let order = &planned_gateway(&before, "shop", "frankfurt")
        .expect("planned")
        .nodes;
    assert_eq!(order.len(), 2);
    let holder = order[0].clone();
    let dead = state
        .members
        .iter_mut()
        .find(|m| m.name == holder.member)
        .expect("known");
    dead.nodes[0].ready = false;
    let after = settle(&mut state);
    assert_eq!(
        planned_gateway(&after, "shop", "frankfurt")
            .expect("planned")
            .nodes,
        order[1..]
    );
    assert_eq!(
        after.gateways["frankfurt"].holder,
        Some(format!("{}/{}", order[1].member, order[1].node))
    );
    assert!(
        peer(&after, "shop", &holder.member).is_some(),
        "a node that isn't ready stays a peer"
    );
}

#[test]
fn a_node_that_claims_an_overlay_address_of_another_member_is_nobodys_peer() {
    let mut state = typical();
    state.members[1].nodes[0].overlay.ipv4 = Some("100.64.12.1".into());
    let r = settle(&mut state);
    assert!(peer(&r, "shop", "fra-2").is_none());
    assert_eq!(r.gateways["frankfurt"].ready_nodes, 1);
}

#[test]
fn an_unknown_gateway_blocks_the_policys_pods_and_says_so() {
    let mut state = typical();
    let valid = settle(&mut state);
    assert_eq!(
        planned_policy(&valid, "shop", &state.policies[0])
            .expect("planned")
            .through
            .len(),
        1
    );
    state.policies[0].through[0].gateway = "frankfort".into();
    let r = settle(&mut state);
    let planned = planned_policy(&r, "shop", &state.policies[0]).expect("still planned");
    assert!(planned.through.is_empty());
    assert_eq!(planned.on_unavailable, OnUnavailable::Block);
    let (ok, reason, message) = verdict(&r, &state.policies[0], ConditionType::Accepted);
    assert_eq!((ok, reason.as_str()), (false, "UnknownGateway"));
    assert!(
        message.starts_with("spec.through[0].gateway: there is no EgressGateway named \"frankfort\""),
        "{message}"
    );
    assert!(!verdict(&r, &state.policies[0], ConditionType::Programmed).0);
}

#[test]
fn faults_of_policies_have_their_reasons() {
    type Break = fn(&mut PolicyInput);
    let cases: [(&str, &str, Break); 7] = [
        ("AddressNotInPool", "spec.through[0].egressIP.ipv4", |p| {
            p.through[0].egress_ip = Some(AddressPair {
                ipv4: Some("203.0.113.99".into()),
                ipv6: None,
            });
        }),
        ("InvalidAddress", "spec.through[0].egressIP.ipv6", |p| {
            p.through[0].egress_ip = Some(AddressPair {
                ipv4: None,
                ipv6: Some("x".into()),
            });
        }),
        ("InvalidCIDR", "spec.to.cidrs[1]", |p| {
            p.to.cidrs.push("198.51.100.7/24".into());
        }),
        ("InvalidCIDR", "spec.to.except[0]", |p| {
            p.to.except.push("nine".into());
        }),
        ("DuplicateEntry", "spec.to.cidrs[1]", |p| {
            p.to.cidrs.push("198.51.100.0/24".into());
        }),
        ("DuplicateEntry", "spec.through[1].gateway", |p| {
            p.through.push(p.through[0].clone());
        }),
        ("NoAddressOfFamily", "spec.to.cidrs[1]", |p| {
            p.to.cidrs.push("2001:db8::/32".into());
        }),
    ];
    for (reason, field, break_it) in cases {
        let mut state = typical();
        break_it(&mut state.policies[0]);
        let r = settle(&mut state);
        let (ok, found, message) = verdict(&r, &state.policies[0], ConditionType::Accepted);
        assert_eq!((ok, found.as_str()), (false, reason), "{message}");
        assert!(message.contains(field), "{message}");
        assert!(
            planned_policy(&r, "shop", &state.policies[0]).is_some(),
            "{reason} must not open the way"
        );
    }
}

#[test]
fn destinations_that_cannot_be_read_never_become_everything() {
    let mut state = typical();
    state.policies[0].to.cidrs = vec!["198.51.100.7/24".into()];
    let r = settle(&mut state);
    assert!(planned_policy(&r, "shop", &state.policies[0]).is_none());
    assert_eq!(
        verdict(&r, &state.policies[0], ConditionType::Accepted).1,
        "InvalidCIDR"
    );
}

#[test]
fn the_older_of_two_gateways_with_the_same_address_keeps_it() {
    let mut state = typical();
    let before = settle(&mut state);
    state.gateways.push(gateway(
        "a-younger",
        12,
        &["other"],
        &["203.0.113.19-203.0.113.25"],
    ));
    state
        .policies
        .push(policy("late", &[("name", "other")], &["a-younger"]));
    let r = settle(&mut state);
    let (ok, reason, message) = gateway_verdict(&r, "a-younger", ConditionType::Accepted);
    assert_eq!((ok, reason.as_str()), (false, "AddressOverlap"));
    assert!(
        message.contains("203.0.113.19") && message.contains("frankfurt"),
        "{message}"
    );
    assert_eq!(
        verdict(&r, &state.policies[1], ConditionType::Accepted).1,
        "GatewayNotAccepted"
    );
    for untouched in ["shop", "fra-1", "fra-2"] {
        assert_eq!(before.plans[untouched], r.plans[untouched]);
    }
}

#[test]
fn a_gateway_of_an_unknown_member_works_with_the_others() {
    let mut state = typical();
    state.gateways[0].spec.nodes[1].member = "fra-9".into();
    let r = settle(&mut state);
    let (ok, reason, message) = gateway_verdict(&r, "frankfurt", ConditionType::Accepted);
    assert_eq!((ok, reason.as_str()), (false, "UnknownMember"));
    assert!(message.contains("spec.nodes[1].member"), "{message}");
    assert_eq!(r.gateways["frankfurt"].ready_nodes, 1);
    assert!(verdict(&r, &state.policies[0], ConditionType::Accepted).0);
}

#[test]
fn a_pool_in_the_overlay_range_is_refused() {
    let mut state = typical();
    state.gateways[0].spec.addresses.ipv4 = vec!["100.64.0.0/24".into()];
    let r = settle(&mut state);
    assert_eq!(
        gateway_verdict(&r, "frankfurt", ConditionType::Accepted).1,
        "AddressReserved"
    );
}

#[test]
fn selectors_that_match_nothing_are_said_plainly() {
    let mut state = typical();
    state.policies[0].members = select(&[("name", "nobody")]);
    state.gateways[1].spec.nodes[0].selector = select(&[("no", "node")]);
    for node in &mut state.members[0].nodes {
        node.ready = false;
    }
    state.members[1].nodes[0].ready = false;
    state
        .policies
        .push(policy("second", &[("name", "shop")], &["frankfurt"]));
    let r = settle(&mut state);
    assert_eq!(
        verdict(&r, &state.policies[0], ConditionType::Programmed).1,
        "NoMemberSelected"
    );
    assert!(verdict(&r, &state.policies[0], ConditionType::Accepted).0);
    assert_eq!(
        gateway_verdict(&r, "paris", ConditionType::Programmed).1,
        "NoMatchingNode"
    );
    assert_eq!(
        gateway_verdict(&r, "frankfurt", ConditionType::Programmed).1,
        "NoReadyNode"
    );
    assert_eq!(
        verdict(&r, &state.policies[1], ConditionType::Programmed).1,
        "NoReadyNode"
    );
}

#[test]
fn programmed_follows_what_members_report_of_their_current_plan() {
    let mut state = typical();
    let r = settle(&mut state);
    let bank = state.policies[0].clone();
    let shop = r.plans["shop"].digest().to_string();
    let (ok, reason, message) = verdict(&r, &bank, ConditionType::Programmed);
    assert_eq!(
        (ok, reason.as_str(), message.as_str()),
        (false, "Pending", "waiting for shop")
    );

    state.members[2].progress.refusal = Some(Refusal {
        digest: shop.clone(),
        resource: ResourceKey::policy(&bank.source).to_string(),
        reason: "198.51.100.0/24 is not in this member's allow-list".into(),
    });
    let (_, reason, message) = verdict(&resolve(&state), &bank, ConditionType::Programmed);
    assert_eq!(reason, "Refused");
    assert!(
        message.contains("shop: policy/payments.bank.") && message.contains(": 198.51"),
        "{message}"
    );

    state.members[2].progress.refusal.as_mut().expect("set").digest = "older".into();
    state.members[2].progress.programmed = Some(shop);
    let r = resolve(&state);
    assert!(verdict(&r, &bank, ConditionType::Programmed).0);
    assert_eq!(r.policies[&bank.source].programmed, 1);
    assert_eq!(
        find(&r.members["shop"], ConditionType::Programmed).1,
        "Programmed"
    );
}

#[test]
fn a_change_elsewhere_doesnt_unsettle_a_policy() {
    let mut state = typical();
    let before = settle(&mut state);
    state.members[2].progress.programmed = Some(before.plans["shop"].digest().to_string());
    state.members[2].in_force = Some(Arc::new(before.plans["shop"].clone()));
    let late = policy("late", &[("name", "shop")], &["paris"]);
    state.policies.push(late.clone());
    let r = settle(&mut state);
    assert_ne!(before.plans["shop"], r.plans["shop"]);
    assert!(verdict(&r, &state.policies[0], ConditionType::Programmed).0);
    assert_eq!(verdict(&r, &late, ConditionType::Programmed).1, "Pending");

    state.members[2].progress.refusal = Some(Refusal {
        digest: r.plans["shop"].digest().to_string(),
        resource: ResourceKey::policy(&late.source).to_string(),
        reason: "not allowed here".into(),
    });
    let r = resolve(&state);
    assert!(
        verdict(&r, &state.policies[0], ConditionType::Programmed).0,
        "the plan before stays in force"
    );
    assert_eq!(verdict(&r, &late, ConditionType::Programmed).1, "Refused");

    state.policies[0].pods = LabelSelector::default();
    let r = resolve(&state);
    assert_eq!(
        verdict(&r, &state.policies[0], ConditionType::Programmed).1,
        "Pending"
    );
}

#[test]
fn a_policy_that_awaits_its_identity_is_not_called_programmed() {
    let mut state = typical();
    let before = settle(&mut state);
    state.members[2].in_force = Some(Arc::new(before.plans["shop"].clone()));
    state.members[2].progress.programmed = Some(before.plans["shop"].digest().to_string());
    state.policies[0].through[0].egress_ip = Some(AddressPair {
        ipv4: Some("203.0.113.15".into()),
        ipv6: None,
    });
    let r = resolve(&state);
    assert_eq!(
        verdict(&r, &state.policies[0], ConditionType::Programmed).1,
        "Pending"
    );
}

/// A federation out of small parts, with faults among them.
fn federations() -> impl Strategy<Value = FederationState> {
    let members = prop::collection::btree_map(1u16..6, 0u8..3, 0..5);
    let gateways = prop::collection::btree_map(
        0u8..4,
        (prop::collection::vec(1u16..7, 1..3), 0u8..6, 0i64..3),
        0..4,
    );
    let policies = prop::collection::btree_map(
        0u8..5,
        (
            prop::option::of(1u16..6),
            prop::collection::vec((0u8..5, prop::option::of(0u8..8)), 0..3),
            any::<bool>(),
        ),
        0..5,
    );
    (members, gateways, policies).prop_map(|(members, gateways, policies)| FederationState {
        members: members
            .into_iter()
            .map(|(id, nodes)| member(&format!("m{id}"), id, nodes))
            .collect(),
        gateways: gateways
            .into_iter()
            .map(|(g, (hosts, pool, created))| {
                let hosts: Vec<_> = hosts.iter().map(|h| format!("m{h}")).collect();
                let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
                gateway(
                    &format!("g{g}"),
                    created,
                    &hosts,
                    &[&format!("203.0.113.{pool}-203.0.113.{}", pool + 2)],
                )
            })
            .collect(),
        policies: policies
            .into_iter()
            .map(|(p, (target, through, good))| {
                let target = target.map(|t| format!("m{t}"));
                let selector: Vec<_> = target.iter().map(|t| ("name", t.as_str())).collect();
                let mut policy = policy(&format!("p{p}"), &selector, &[]);
                policy.through = through
                    .into_iter()
                    .map(|(g, ip)| Through {
                        gateway: format!("g{g}"),
                        egress_ip: ip.map(|i| AddressPair {
                            ipv4: Some(format!("203.0.113.{i}")),
                            ipv6: None,
                        }),
                    })
                    .collect();
                if !good {
                    policy.to.cidrs = vec!["10.0.0.1/8".into()];
                }
                policy
            })
            .collect(),
        ..FederationState::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_order_of_objects_does_not_matter(mut state in federations()) {
        let before = resolve(&state);
        state.members.reverse();
        state.gateways.reverse();
        state.policies.reverse();
        prop_assert_eq!(before, resolve(&state));
    }

    #[test]
    fn what_is_recorded_is_never_allocated_again(mut state in federations()) {
        let first = settle(&mut state);
        let again = resolve(&state);
        prop_assert!(again.allocations.is_empty());
        prop_assert!(again.waiting.is_empty());
        prop_assert_eq!(first, again);
    }

    #[test]
    fn an_identity_stands_for_one_thing_in_the_whole_federation(mut state in federations()) {
        settle(&mut state);
        let ids: Vec<_> = state.gateways.iter().flat_map(|g| g.identities.iter().map(|i| i.id)).collect();
        prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }

    #[test]
    fn every_reference_in_a_plan_can_be_followed(mut state in federations()) {
        let resolution = settle(&mut state);
        for plan in resolution.plans.values() {
            for (_, resource, _) in plan.resources() {
                let Resource::Policy(p) = resource else { continue };
                for through in &p.through {
                    let key = ResourceKey { kind: ResourceKind::Gateway, name: through.gateway.clone() };
                    let Some(Resource::Gateway(g)) = plan.get(&key) else {
                        return Err(TestCaseError::fail(format!("{key} is missing")));
                    };
                    prop_assert!(g.identities.iter().any(|i| i.id == through.identity));
                }
            }
        }
    }

    #[test]
    fn a_broken_policy_changes_no_plan_it_does_not_select(mut state in federations(), gateway in 0u8..9) {
        let before = settle(&mut state);
        let mut broken = policy("zz-broken", &[("name", "m1")], &[]);
        broken.through = vec![Through {
            gateway: format!("g{gateway}"),
            egress_ip: Some(AddressPair { ipv4: Some("192.0.2.1".into()), ipv6: None }),
        }];
        state.policies.push(broken);
        let after = settle(&mut state);
        for (member, plan) in &before.plans {
            if member != "m1" {
                prop_assert_eq!(plan, &after.plans[member], "{}", member);
            }
        }
    }

    #[test]
    fn a_younger_gateway_never_changes_what_older_ones_do(mut state in federations(), pool in 0u8..6) {
        let before = settle(&mut state);
        state.gateways.push(gateway("zz-younger", 99, &["m1"], &[&format!("203.0.113.{pool}")]));
        let after = settle(&mut state);
        for (member, plan) in &before.plans {
            for (key, resource, _) in plan.resources() {
                prop_assert_eq!(Some(resource), after.plans[member].get(key));
            }
        }
    }

    #[test]
    fn a_plan_never_names_members_it_has_nothing_to_do_with(mut state in federations()) {
        let resolution = settle(&mut state);
        for (member, plan) in &resolution.plans {
            let mut related = BTreeSet::from([member.clone()]);
            for gateway in &state.gateways {
                let hosts: BTreeSet<_> = gateway.spec.nodes.iter().map(|n| n.member.clone()).collect();
                let users: BTreeSet<_> = state
                    .policies
                    .iter()
                    .filter(|p| p.through.iter().any(|t| t.gateway == gateway.name))
                    .flat_map(|p| &resolution.policies[&p.source].selected)
                    .cloned()
                    .collect();
                if hosts.contains(member) {
                    related.extend(users.iter().cloned());
                }
                if users.contains(member) || hosts.contains(member) {
                    related.extend(hosts);
                }
            }
            for (_, resource, _) in plan.resources() {
                match resource {
                    Resource::Peer(p) => prop_assert!(related.contains(&p.member)),
                    Resource::Gateway(g) => prop_assert!(g.nodes.iter().all(|n| related.contains(&n.member))),
                    Resource::Member(m) => prop_assert_eq!(&m.member, member),
                    Resource::Policy(p) => {
                        let outcome = &resolution.policies[&p.source];
                        prop_assert!(outcome.selected.contains(member));
                    }
                }
            }
        }
    }
}

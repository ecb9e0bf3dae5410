//! What holds for every federation.

use std::collections::BTreeSet;

use proptest::prelude::*;
use spillway_crds::hub::Allocation;

use super::*;

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
            prop::collection::vec((0u8..5, prop::option::of(0u8..8), any::<[bool; 2]>()), 0..3),
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
                    .map(|(g, ip, [pool, exclusive])| Through {
                        gateway: format!("g{g}"),
                        egress_ip: ip.map(|i| AddressPair {
                            ipv4: Some(format!("203.0.113.{i}")),
                            ipv6: None,
                        }),
                        allocation: if pool {
                            Allocation::Pool
                        } else {
                            Allocation::Default
                        },
                        exclusive,
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
            ..Through::default()
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
                    Resource::Gateway(g) => prop_assert!(g.nodes.iter().all(|n| related.contains(&n.node.member))),
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

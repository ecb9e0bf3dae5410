//! A small federation to resolve, and readers of what comes out.

mod eips;
mod faults;
mod grants;
mod node_ip;
mod paths;
mod pins;
mod plans;
mod ports;
mod properties;
mod reach;
mod shadows;
mod verdicts;

use std::collections::BTreeMap;
use std::sync::Arc;

use spillway_crds::LabelSelector;
use spillway_crds::address::AddressPair;
use spillway_crds::condition::ConditionType;
use spillway_crds::hub::{AddressPool, Destinations, EgressGatewaySpec, GatewayNodes, MemberNode, Through};
use spillway_crds::member::{NodeRef, PlannedGatewaySpec, PlannedPeerSpec, PlannedPolicySpec, PolicyRef};

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
        reported: true,
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
                ..AddressPool::default()
            },
            ..EgressGatewaySpec::default()
        },
        ..GatewayInput::default()
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
            ..Destinations::default()
        },
        through: gateways
            .iter()
            .map(|g| Through {
                gateway: (*g).into(),
                ..Through::default()
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
        if let Some(given) = resolution.allocations.gateways.get(&g.name) {
            g.identities.clone_from(&given.identities);
            g.slices.clone_from(&given.slices);
        }
    }
    for p in &mut state.policies {
        p.held.clone_from(&resolution.policies[&p.source].egress);
    }
}

/// Lets every node of these members program the newest plan, as far as it is published.
fn program(state: &mut FederationState, resolution: &Resolution, names: &[&str]) {
    for member in state
        .members
        .iter_mut()
        .filter(|m| names.contains(&m.name.as_str()))
    {
        let Some(plan) = resolution.plans.get(&member.name) else {
            continue;
        };
        if resolution.waiting.contains(&member.name) {
            continue;
        }
        let digest = plan.digest().to_string();
        member.plans.insert(digest.clone(), Arc::new(plan.clone()));
        member.in_force = Some(Arc::new(plan.clone()));
        member.progress.acknowledged = Some(digest.clone());
        member.progress.programmed = Some(digest.clone());
        for node in &mut member.nodes {
            node.programmed = Some(digest.clone());
        }
    }
}

/// Resolves until everything is recorded and every node has its plan.
fn run_in(state: &mut FederationState) -> Resolution {
    for _ in 0..20 {
        let resolution = settle(state);
        let before = state.members.clone();
        let names: Vec<_> = before.iter().map(|m| m.name.as_str()).collect();
        program(state, &resolution, &names);
        if before == state.members {
            return resolution;
        }
    }
    panic!("the federation never comes to rest")
}

/// Resolves until everything is recorded.
fn settle(state: &mut FederationState) -> Resolution {
    for _ in 0..5 {
        let resolution = resolve(state);
        let recorded = |p: &PolicyInput| p.held == resolution.policies[&p.source].egress;
        if resolution.allocations.is_empty() && state.policies.iter().all(recorded) {
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

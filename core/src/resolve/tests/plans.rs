//! Who gets what.

use std::collections::BTreeSet;

use spillway_crds::member::GatewayNodeState;

use super::*;

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
    assert_eq!(
        peer(&r, "fra-1", "fra-2").expect("a peer").nodes.len(),
        1,
        "hosts of one gateway probe each other's nodes of it"
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
    assert_eq!(r.allocations.gateways["frankfurt"].identities.len(), 1);
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
        .find(|m| m.name == holder.node.member)
        .expect("known");
    dead.nodes[0].ready = false;
    let after = settle(&mut state);
    let moved = &planned_gateway(&after, "shop", "frankfurt")
        .expect("planned")
        .nodes;
    assert_eq!(moved[0], order[1]);
    assert_eq!(
        (&moved[1].node, moved[1].state),
        (&holder.node, GatewayNodeState::NotReady)
    );
    assert_eq!(after.gateways["frankfurt"].ready_nodes, 1);
    assert_eq!(
        after.gateways["frankfurt"].holder,
        Some(order[1].node.to_string())
    );
    let other = state.members.iter_mut().find(|m| m.name == order[1].node.member);
    let other = &mut other.expect("known").nodes[0];
    (other.ready, other.draining) = (false, true);
    let drained = settle(&mut state);
    let last = &planned_gateway(&drained, "shop", "frankfurt")
        .expect("planned")
        .nodes;
    assert_eq!(
        last.iter().map(|n| n.state).collect::<Vec<_>>(),
        [GatewayNodeState::NotReady, GatewayNodeState::Draining]
    );
    assert!(
        peer(&after, "shop", &holder.node.member).is_some(),
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
fn a_node_at_an_address_where_nobody_else_is_gets_no_tunnel() {
    for odd in [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "169.254.0.1",
        "255.255.255.255",
    ] {
        let mut state = typical();
        state.members[2].nodes[0].underlay.ipv4 = Some(odd.into());
        let r = settle(&mut state);
        let key = ResourceKey {
            kind: ResourceKind::Peer,
            name: "shop".into(),
        };
        let Some(Resource::Peer(peer)) = r.plans["fra-1"].get(&key) else {
            panic!("shop has another node")
        };
        let names: Vec<_> = peer.nodes.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["shop-n2"], "{odd}");
    }
}

#[test]
fn a_wiped_record_holds_every_plan_that_depends_on_it_and_comes_back_as_it_was() {
    let mut state = typical();
    // Not the number that the hash would give.
    settle(&mut state);
    state.gateways[0].identities[0].id = 4711;
    let before = settle(&mut state);
    let mut memory = crate::alloc::Memory::default();
    let addresses = crate::address::Addresses::parse(&state.gateways[0].identities[0].egress_ip);
    let egress = crate::alloc::Egress {
        gateway: "frankfurt".into(),
        addresses: addresses.expect("recorded"),
    };
    memory.identity(4711, &egress);
    state.memory = std::sync::Arc::new(memory);
    state.gateways[0].identities.clear();
    state.gateways[0].lost = std::mem::take(&mut state.gateways[0].slices);
    let wiped = resolve(&state);
    for member in ["shop", "fra-1", "fra-2"] {
        assert!(wiped.waiting.contains(member), "{member} keeps its plan");
    }
    assert_eq!(settle(&mut state).plans, before.plans);
}

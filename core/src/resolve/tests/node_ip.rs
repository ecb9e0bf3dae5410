//! Gateways that leave with their nodes' own addresses.

use spillway_crds::hub::{Allocated, Allocation, HeldAddress, Translation};

use super::*;

/// Gateway frankfurt without a pool, and `shop` leaving through it.
fn lent() -> FederationState {
    let mut state = typical();
    state.gateways[0].spec.addresses = AddressPool {
        node_ip: true,
        ..AddressPool::default()
    };
    state
}

fn leaves_with(r: &Resolution) -> (Option<String>, Allocated) {
    let (_, outcome) = r.policies.first_key_value().expect("a policy");
    let egress = &outcome.egress[0];
    (egress.egress_ip.ipv4.clone(), egress.allocated)
}

#[test]
fn it_translates_on_its_nodes_and_its_identity_has_no_address() {
    let mut state = lent();
    let r = run_in(&mut state);
    for member in ["shop", "fra-1", "fra-2"] {
        let planned = planned_gateway(&r, member, "frankfurt").expect("planned");
        assert!(planned.node_ip && planned.slices.is_empty());
        assert_eq!(planned.translation, Translation::GatewayNode);
        assert_eq!(planned.identities.len(), 1);
        assert_eq!(planned.identities[0].egress_ip, AddressPair::default());
    }
    assert!(gateway_verdict(&r, "frankfurt", ConditionType::Accepted).0);
    assert!(gateway_verdict(&r, "frankfurt", ConditionType::Programmed).0);
    assert!(verdict(&r, &state.policies[0], ConditionType::Programmed).0);
}

#[test]
fn the_policy_says_whose_address_it_is_by_the_nodes_word_or_else_the_plans() {
    let mut state = lent();
    let r = run_in(&mut state);
    let first = planned_gateway(&r, "shop", "frankfurt").expect("planned").nodes[0]
        .node
        .clone();
    let node = |state: &FederationState, name: &NodeRef| {
        let member = state
            .members
            .iter()
            .find(|m| m.name == name.member)
            .expect("known");
        let node = member.nodes.iter().find(|n| n.name == name.node).expect("known");
        node.underlay.ipv4.clone()
    };
    assert_eq!(leaves_with(&r), (node(&state, &first), Allocated::NodeIP));

    // The other one took over.
    let other = usize::from(first.member == "fra-1");
    let taker = &mut state.members[other].nodes[0];
    let address = taker.underlay.ipv4.clone();
    taker.held = vec![HeldAddress {
        address: address.clone().expect("an address"),
        ..HeldAddress::default()
    }];
    let r = settle(&mut state);
    assert_eq!(leaves_with(&r), (address, Allocated::NodeIP));
    let holder = format!(
        "{}/{}",
        state.members[other].name, state.members[other].nodes[0].name
    );
    assert_eq!(r.gateways["frankfurt"].holder.as_ref(), Some(&holder));
}

#[test]
fn there_is_nothing_to_choose_from() {
    let choices: [fn(&mut Through); 3] = [
        |t| t.allocation = Allocation::Pool,
        |t| t.exclusive = true,
        |t| {
            t.egress_ip = Some(AddressPair {
                ipv4: Some("172.30.1.1".into()),
                ipv6: None,
            });
        },
    ];
    for choose in choices {
        let mut state = lent();
        choose(&mut state.policies[0].through[0]);
        let r = settle(&mut state);
        let (ok, reason, message) = verdict(&r, &state.policies[0], ConditionType::Accepted);
        assert_eq!((ok, reason.as_str()), (false, "NoPool"), "{message}");
        let planned = planned_policy(&r, "shop", &state.policies[0]).expect("planned");
        assert!(planned.through.is_empty(), "it blocks");
    }
}

#[test]
fn a_family_that_none_of_the_nodes_has_is_refused() {
    let mut state = lent();
    state.policies[0].to.cidrs = vec!["2001:db8:99::/64".into()];
    let r = settle(&mut state);
    let (ok, reason, _) = verdict(&r, &state.policies[0], ConditionType::Accepted);
    assert_eq!((ok, reason.as_str()), (false, "NoAddressOfFamily"));
    state.members[0].nodes[0].underlay.ipv6 = Some("fd30::1".into());
    let r = settle(&mut state);
    assert!(verdict(&r, &state.policies[0], ConditionType::Accepted).0);
}

/// A node's address must not become an egress IP of a pool, nor the other way round.
#[test]
fn a_pool_and_nodes_addresses_follow_each_other() {
    let mut state = lent();
    run_in(&mut state);
    let pool = typical().gateways.remove(0).spec.addresses;
    let none = std::mem::replace(&mut state.gateways[0].spec.addresses, pool);
    let r = run_in(&mut state);
    assert_eq!(leaves_with(&r), (Some("203.0.113.10".into()), Allocated::Default));
    state.gateways[0].spec.addresses = none;
    let r = run_in(&mut state);
    assert_eq!(leaves_with(&r).1, Allocated::NodeIP);
    assert!(gateway_verdict(&r, "frankfurt", ConditionType::Accepted).0);
}

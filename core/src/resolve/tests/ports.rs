//! Port slices from grant to end.

use spillway_crds::hub::{HeldAddress, PortLevel, PortRange, PortSlice, PortUse, Translation};

use super::*;

const ADDRESS: &str = "203.0.113.10";

fn range(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

/// The recorded slice of a node of one member.
fn slice(state: &FederationState, node: &str) -> Option<PortSlice> {
    let slices = &state.gateways[0]
        .slices
        .iter()
        .find(|a| a.address == ADDRESS)?
        .slices;
    slices.iter().find(|s| s.node == node).cloned()
}

fn planned(r: &Resolution, member: &str) -> Vec<PortSlice> {
    let gateway = planned_gateway(r, member, "frankfurt").expect("planned");
    gateway.slices.iter().flat_map(|a| a.slices.clone()).collect()
}

#[test]
fn a_source_gets_ports_once_every_gateway_node_knows_them() {
    let mut state = typical();
    let r = settle(&mut state);
    let granted = slice(&state, "shop-n1").expect("granted");
    assert_eq!(granted.pending, [range(16384, 32767)]);
    assert!(granted.ports.is_empty());
    assert_eq!(planned(&r, "fra-1").len(), 2, "the gateway knows both");
    assert_eq!(planned(&r, "shop").len(), 2);

    program(&mut state, &r, &["fra-1", "shop"]);
    assert!(
        resolve(&state).allocations.is_empty(),
        "fra-2 doesn't know them yet"
    );
    let digest = state.members[1].nodes[0].programmed.clone();
    state.members[1].disconnected = Some("no stream".into());
    assert!(
        !resolve(&state).allocations.is_empty(),
        "who isn't heard of holds nobody up"
    );
    state.members[1].disconnected = None;
    assert_eq!(digest, None);
    program(&mut state, &r, &["fra-2"]);
    let r = settle(&mut state);
    assert_eq!(
        slice(&state, "shop-n1").expect("granted").ports,
        [range(16384, 32767)]
    );
    assert_eq!(
        slice(&state, "shop-n2").expect("granted").ports,
        [range(49152, 65535)]
    );
    assert!(
        !verdict(&r, &state.policies[0], ConditionType::Programmed).0,
        "shop has to hear of it"
    );
    let r = run_in(&mut state);
    assert!(verdict(&r, &state.policies[0], ConditionType::Programmed).0);
    assert!(gateway_verdict(&r, "frankfurt", ConditionType::PortsAvailable).0);
}

#[test]
fn a_member_never_sees_ports_of_another() {
    let mut state = typical();
    state.policies[0].members = LabelSelector::default();
    let r = run_in(&mut state);
    assert!(planned(&r, "shop").iter().all(|s| s.member == "shop"));
    assert_eq!(planned(&r, "other").len(), 1);
    assert_eq!(planned(&r, "fra-1").len(), 6, "a host sees all");
    assert_eq!(state.gateways[1].slices, [], "nobody uses paris");
}

#[test]
fn ports_of_a_policy_that_is_gone_drain_until_they_are_empty() {
    let mut state = typical();
    run_in(&mut state);
    state.policies.clear();
    let r = run_in(&mut state);
    let left = slice(&state, "shop-n1").expect("still recorded");
    assert!(left.ports.is_empty() && left.draining.len() == 8);
    assert_eq!(planned(&r, "fra-2").len(), 2, "replies still find their way");
    assert_eq!(planned(&r, "shop").len(), 2);
    assert!(peer(&r, "fra-1", "shop").is_some());
    for node in &mut state.members[2].nodes {
        node.port_use = vec![PortUse {
            address: ADDRESS.into(),
            level: PortLevel::Idle,
            measured: 0,
            vacated: slice(&state_of(&state.gateways), &node.name)
                .expect("recorded")
                .draining,
        }];
    }
    let r = run_in(&mut state);
    assert!(state.gateways[0].slices.is_empty());
    assert!(planned_gateway(&r, "shop", "frankfurt").is_none());
}

fn state_of(gateways: &[GatewayInput]) -> FederationState {
    FederationState {
        gateways: gateways.to_vec(),
        ..FederationState::default()
    }
}

#[test]
fn a_node_that_is_missing_keeps_its_ports_until_it_is_gone_for_good() {
    let mut state = typical();
    run_in(&mut state);
    let had = slice(&state, "shop-n2");
    state.members[2].nodes.pop();
    run_in(&mut state);
    assert_eq!(slice(&state, "shop-n2"), had);
    state.gone.insert(NodeRef::new("shop", "shop-n2"));
    run_in(&mut state);
    assert_eq!(slice(&state, "shop-n2"), None);
    state.members.retain(|m| m.name != "shop");
    run_in(&mut state);
    assert!(state.gateways[0].slices.is_empty(), "the whole member left");
}

#[test]
fn a_node_that_fills_its_slice_gets_as_much_again() {
    let mut state = typical();
    run_in(&mut state);
    state.members[2].nodes[0].port_use = vec![PortUse {
        address: ADDRESS.into(),
        level: PortLevel::High,
        measured: 16384,
        vacated: vec![],
    }];
    let r = settle(&mut state);
    let grown = slice(&state, "shop-n1").expect("recorded");
    assert_eq!(grown.ports, [range(16384, 32767)]);
    assert_eq!(grown.pending, [range(32768, 49151)]);
    program(&mut state, &r, &["fra-1", "fra-2", "shop"]);
    settle(&mut state);
    assert_eq!(
        slice(&state, "shop-n1").expect("recorded").ports,
        [range(16384, 49151)]
    );
    assert!(
        resolve(&state).allocations.is_empty(),
        "what it said was about the smaller slice"
    );
}

#[test]
fn an_old_kernel_makes_the_whole_gateway_translate_itself() {
    let mut state = typical();
    state.members[1].nodes[0].features = vec!["nftables".into()];
    let r = run_in(&mut state);
    assert!(state.gateways[0].slices.is_empty());
    let gateway = planned_gateway(&r, "shop", "frankfurt").expect("planned");
    assert_eq!(gateway.translation, Translation::GatewayNode);
    assert!(verdict(&r, &state.policies[0], ConditionType::Programmed).0);
    let (ok, reason, message) = gateway_verdict(&r, "frankfurt", ConditionType::PortsAvailable);
    assert_eq!((ok, reason.as_str()), (false, "KernelTooOld"));
    assert!(
        message.contains("fra-2/fra-2-n1") && message.contains("5.16"),
        "{message}"
    );
}

#[test]
fn too_few_ports_are_said_where_somebody_looks() {
    let mut state = typical();
    state.members[2] = member("shop", 3, 250);
    for id in 5..9 {
        state.members.push(member(&format!("m{id}"), id, 250));
    }
    state.policies[0].members = LabelSelector::default();
    run_in(&mut state);
    let r = run_in(&mut state);
    let used: usize = state.gateways[0].slices[0]
        .slices
        .iter()
        .filter(|s| !s.ports.is_empty())
        .count();
    assert_eq!(used, 1008);
    let (ok, reason, message) = gateway_verdict(&r, "frankfurt", ConditionType::PortsAvailable);
    assert_eq!((ok, reason.as_str()), (false, "PortsExhausted"));
    assert!(
        message.contains(ADDRESS) && message.contains("and 241 more"),
        "{message}"
    );
    let (ok, reason, message) = verdict(&r, &state.policies[0], ConditionType::Programmed);
    assert_eq!((ok, reason.as_str()), (false, "PortsExhausted"));
    assert!(message.contains("egressIP"), "{message}");
}

#[test]
fn who_holds_an_address_is_what_its_nodes_say() {
    let mut state = typical();
    let held = |address: &str, since: &str| HeldAddress {
        address: address.into(),
        since: since.into(),
        reason: "first of its gateway".into(),
    };
    state.members[0].nodes[0].held = vec![
        held(ADDRESS, "2026-01-01T00:00:00Z"),
        held("192.0.2.1", "2026-01-01T00:00:00Z"),
    ];
    state.members[0].nodes[1].held = vec![held("203.0.113.11", "2026-01-01T00:00:00Z")];
    let r = resolve(&state);
    assert_eq!(
        r.gateways["frankfurt"].holder, None,
        "members have no numbers yet"
    );
    let r = settle(&mut state);
    let outcome = &r.gateways["frankfurt"];
    assert_eq!(
        outcome.holders.len(),
        1,
        "neither strange addresses nor nodes of no gateway"
    );
    assert_eq!(outcome.holder.as_deref(), Some("fra-1/fra-1-n1"));
    state.members[1].nodes[0].held = vec![held(ADDRESS, "2026-01-01T00:00:01Z")];
    let holder = |state: &FederationState| resolve(state).gateways["frankfurt"].holders[0].node.clone();
    assert_eq!(holder(&state), "fra-2-n1", "the later claim");
    state.members[1].disconnected = Some("power".into());
    assert_eq!(holder(&state), "fra-1-n1", "the one that can be asked");
}

//! Egress IPs that are pinned to nodes.

use spillway_crds::hub::{AddressPin, HeldAddress, Translation};

use super::*;

const EIP: &str = "203.0.113.10";

/// `bank`'s egress IP is pinned.
fn pinned(member: &str, node: &str) -> FederationState {
    let mut state = typical();
    state.gateways[0].spec.pins = vec![AddressPin {
        address: EIP.into(),
        node: NodeRef::new(member, node),
    }];
    state
}

fn hold(state: &mut FederationState, member: usize) {
    for m in &mut state.members {
        m.nodes[0].held.clear();
    }
    state.members[member].nodes[0].held = vec![HeldAddress {
        address: EIP.into(),
        ..HeldAddress::default()
    }];
}

fn said(r: &Resolution) -> (bool, String, String) {
    gateway_verdict(r, "frankfurt", ConditionType::PinsHeld)
}

#[test]
fn hosts_alone_are_told_and_the_condition_follows_the_holder() {
    let mut state = pinned("fra-2", "fra-2-n1");
    hold(&mut state, 0);
    let r = run_in(&mut state);
    for (member, pins) in [("fra-1", 1), ("fra-2", 1), ("shop", 0)] {
        let planned = planned_gateway(&r, member, "frankfurt").expect("planned");
        assert_eq!(planned.pins.len(), pins, "{member}");
    }
    let (ok, reason, message) = said(&r);
    assert_eq!((ok, reason.as_str()), (false, "HeldElsewhere"));
    assert!(
        message.contains("fra-2/fra-2-n1, which has yet to take it; fra-1/fra-1-n1 holds"),
        "{message}"
    );
    hold(&mut state, 1);
    assert_eq!(
        said(&settle(&mut state)),
        (true, "PinsHeld".into(), String::new())
    );
    state.gateways[0].spec.pins.clear();
    assert_eq!(said(&settle(&mut state)).1, "NoPins");
}

#[test]
fn a_node_that_cant_hold_it_is_named_with_the_reason() {
    let because = |state: &mut FederationState| {
        hold(state, 0);
        let (ok, reason, message) = said(&run_in(state));
        assert!(!ok);
        (reason, message)
    };
    let mut state = pinned("fra-2", "fra-2-n1");
    state.members[1].nodes[0].draining = true;
    assert!(
        because(&mut state)
            .1
            .contains("which is being drained; fra-1/fra-1-n1 holds it until then")
    );
    let mut state = pinned("fra-2", "fra-2-n1");
    state.members[1].nodes[0].ready = false;
    assert!(because(&mut state).1.contains("which isn't ready"));
    // A node that the selector leaves out, and one that nobody knows.
    for (member, node) in [("fra-1", "fra-1-n2"), ("shop", "shop-n1"), ("nowhere", "n1")] {
        let (reason, message) = because(&mut pinned(member, node));
        assert_eq!(reason, "NodeNotInGateway", "{message}");
    }
}

#[test]
fn what_cant_be_pinned_is_refused_and_the_rest_counts() {
    let mut state = pinned("fra-2", "fra-2-n1");
    let pin = |address: &str| AddressPin {
        address: address.into(),
        node: NodeRef::new("fra-1", "fra-1-n1"),
    };
    for (second, reason) in [
        ("192.0.2.1", "AddressNotInPool"),
        ("203.0.113.10/32", "InvalidAddress"),
        (EIP, "DuplicateEntry"),
    ] {
        state.gateways[0].spec.pins.truncate(1);
        state.gateways[0].spec.pins.push(pin(second));
        let r = run_in(&mut state);
        let (ok, why, message) = gateway_verdict(&r, "frankfurt", ConditionType::Accepted);
        assert_eq!((ok, why.as_str()), (false, reason), "{message}");
        assert!(message.contains("spec.pins[1]"), "{message}");
        let planned = planned_gateway(&r, "fra-1", "frankfurt").expect("planned");
        assert_eq!(planned.pins, state.gateways[0].spec.pins[..1]);
    }
    state.gateways[0].spec.translation = Translation::GatewayNode;
    let r = run_in(&mut state);
    assert_eq!(
        gateway_verdict(&r, "frankfurt", ConditionType::Accepted).1,
        "NotPinnable"
    );
    assert!(
        planned_gateway(&r, "fra-1", "frankfurt")
            .expect("planned")
            .pins
            .is_empty()
    );
}

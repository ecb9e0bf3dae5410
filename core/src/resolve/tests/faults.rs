//! What objects that contradict themselves or each other do: say so, and harm nobody else.

use spillway_crds::hub::{DestinationPort, OnUnavailable, Protocol};

use super::*;

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
    let cases: [(&str, &str, Break); 11] = [
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
        ("InvalidPort", "spec.to.ports[1]", |p| {
            p.to.ports = vec![tcp(443, None), tcp(443, Some(80))];
        }),
        ("InvalidPort", "spec.to.ports[0]: ICMP", |p| {
            p.to.ports = vec![DestinationPort {
                protocol: Protocol::Icmp,
                ..tcp(8, None)
            }];
        }),
        (
            "DuplicateEntry",
            "spec.to.ports[2] repeats spec.to.ports[0]",
            |p| {
                p.to.ports = vec![tcp(443, None), tcp(80, None), tcp(443, Some(443))];
            },
        ),
        ("TooManyPorts", "10000 entries", |p| {
            p.to.ports = (1..=10_000).map(|port| tcp(port, None)).collect();
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

fn tcp(port: i32, end_port: Option<i32>) -> DestinationPort {
    DestinationPort {
        protocol: Protocol::Tcp,
        port: Some(port),
        end_port,
    }
}

#[test]
fn ports_none_of_which_can_be_read_block_all_of_them_and_lead_nowhere() {
    let mut state = typical();
    state.policies[0].to.ports = vec![tcp(443, None), tcp(0, None)];
    let r = settle(&mut state);
    let planned = planned_policy(&r, "shop", &state.policies[0]).expect("planned");
    assert_eq!(planned.to.ports, [tcp(443, None)], "what makes sense is planned");
    assert_eq!(planned.through.len(), 1);
    for ports in [
        vec![tcp(0, None)],
        (1..=10_000).map(|port| tcp(port, None)).collect(),
    ] {
        state.policies[0].to.ports = ports;
        let r = settle(&mut state);
        let planned = planned_policy(&r, "shop", &state.policies[0]).expect("it must not open the way");
        assert!(planned.to.ports.is_empty() && planned.through.is_empty());
        assert_eq!(planned.to.cidrs, ["198.51.100.0/24"]);
        let (ok, _, message) = verdict(&r, &state.policies[0], ConditionType::Accepted);
        assert!(
            !ok && message.contains("onUnavailable rules for all ports"),
            "{message}"
        );
    }
}

#[test]
fn destinations_none_of_which_can_be_read_block_everything_and_lead_nowhere() {
    let mut state = typical();
    settle(&mut state);
    let identities = state.gateways[0].identities.clone();
    state.policies[0].to.cidrs = vec!["198.51.100.7/24".into()];
    state.policies[0].to.except = vec!["192.0.2.0/24".into()];
    let r = settle(&mut state);
    let planned = planned_policy(&r, "shop", &state.policies[0]).expect("it must not open the way");
    assert!(
        planned.through.is_empty(),
        "nobody asked for all of it to take a gateway"
    );
    assert!(planned.to.cidrs.is_empty(), "whatever it was meant to take");
    assert_eq!(planned.to.except, ["192.0.2.0/24"]);
    assert_eq!(planned.on_unavailable, state.policies[0].on_unavailable);
    let (ok, reason, message) = verdict(&r, &state.policies[0], ConditionType::Accepted);
    assert_eq!((ok, reason.as_str()), (false, "InvalidCIDR"));
    assert!(
        message.contains("everything") && message.contains("onUnavailable"),
        "{message}"
    );
    assert_eq!(
        state.gateways[0].identities, identities,
        "its number is kept for it"
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
fn an_edit_into_addresses_that_are_in_use_harms_only_whoever_made_it() {
    let mut state = typical();
    state
        .policies
        .push(policy("late", &[("name", "other")], &["paris"]));
    let before = settle(&mut state);
    state.gateways[0].spec.addresses.ipv4 = vec!["203.0.113.10-203.0.113.40".into()];
    let r = settle(&mut state);
    let (ok, reason, message) = gateway_verdict(&r, "frankfurt", ConditionType::Accepted);
    assert_eq!((ok, reason.as_str()), (false, "AddressOverlap"));
    assert!(
        message.contains("203.0.113.32") && message.contains("paris"),
        "{message}"
    );
    assert!(gateway_verdict(&r, "paris", ConditionType::Accepted).0);
    assert_eq!(before.plans["other"], r.plans["other"]);
    assert!(!state.gateways[0].slices.is_empty(), "its ports are kept for it");
    state.gateways[0].spec.addresses.ipv4 = vec!["203.0.113.10-203.0.113.19".into()];
    let r = settle(&mut state);
    assert!(gateway_verdict(&r, "frankfurt", ConditionType::Accepted).0);
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

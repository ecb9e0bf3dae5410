//! What users are told.

use spillway_crds::hub::Refusal;

use super::*;

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
    let (ok, _, message) = verdict(&resolve(&state), &bank, ConditionType::Programmed);
    assert!(
        !ok && message.contains("203.0.113.10 on shop/shop-n1, shop/shop-n2"),
        "{message}"
    );
    let r = run_in(&mut state);
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
    let before = run_in(&mut state);
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
    run_in(&mut state);
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

#[test]
fn what_a_member_waits_for_is_named() {
    let mut state = typical();
    settle(&mut state);
    let bank = state.policies[0].clone();
    let message = |state: &FederationState| {
        let (ok, reason, message) = verdict(&resolve(state), &bank, ConditionType::Programmed);
        assert_eq!((ok, reason.as_str()), (false, "Pending"));
        message
    };
    assert_eq!(message(&state), "waiting for shop");
    state.members[2].nodes[1].message = "no VXLAN driver".into();
    assert_eq!(
        message(&state),
        "waiting for shop (node shop-n2: no VXLAN driver)"
    );
    state.members[2].disconnected = Some("the stream ended".into());
    assert_eq!(
        message(&state),
        "waiting for shop (not connected: the stream ended)"
    );
    let (_, _, of_member) = find(&resolve(&state).members["shop"], ConditionType::Programmed);
    assert_eq!(of_member, "not connected: the stream ended");
}

#[test]
fn a_member_without_nodes_has_programmed_what_it_acknowledged() {
    let mut state = typical();
    state.members[2].nodes.clear();
    let r = settle(&mut state);
    let shop = r.plans["shop"].digest().to_string();
    let bank = state.policies[0].clone();
    assert!(!verdict(&r, &bank, ConditionType::Programmed).0);
    state.members[2].progress.acknowledged = Some(shop);
    assert!(verdict(&resolve(&state), &bank, ConditionType::Programmed).0);
    state.members[2].reported = false;
    let r = resolve(&state);
    let (ok, _, message) = verdict(&r, &bank, ConditionType::Programmed);
    assert!(!ok && message.contains("no nodes yet"), "{message}");
}

#[test]
fn a_gateway_without_nodes_says_whose_are_missing() {
    let mut state = typical();
    state.members[3].nodes.clear();
    state.members[3].disconnected = Some("the replica is gone".into());
    let r = settle(&mut state);
    let (_, reason, message) = gateway_verdict(&r, "paris", ConditionType::Programmed);
    assert_eq!(reason, "NoMatchingNode");
    assert!(
        message.contains("other is not connected: the replica is gone"),
        "{message}"
    );
    for member in &mut state.members[..2] {
        for node in &mut member.nodes {
            node.ready = false;
            node.message = "the node's agent isn't running".into();
        }
    }
    let (_, reason, message) = gateway_verdict(&resolve(&state), "frankfurt", ConditionType::Programmed);
    assert_eq!(reason, "NoReadyNode");
    assert!(
        message.contains("fra-1/fra-1-n1 (the node's agent isn't running), fra-2/"),
        "{message}"
    );
}

//! Gateways that not everybody may use.

use proptest::prelude::*;
use spillway_crds::hub::GatewayGrant;

use super::*;

/// `shop` and `other` leave through frankfurt, and through paris where they can't; frankfurt is granted so.
fn state(allow: Option<Vec<GatewayGrant>>) -> FederationState {
    let mut state = typical();
    state.policies = vec![policy("bank", &[], &["frankfurt", "paris"])];
    state.policies[0].members.match_expressions = vec![spillway_crds::Requirement {
        key: "name".into(),
        operator: spillway_crds::Operator::In,
        values: vec!["shop".into(), "other".into()],
    }];
    state.gateways[0].spec.allow = allow;
    state
}

fn grant(members: &[(&str, &str)], namespaces: &[&str]) -> GatewayGrant {
    GatewayGrant {
        members: select(members),
        namespaces: namespaces.iter().map(|n| (*n).into()).collect(),
    }
}

/// Gateways of the policy in a member's plan.
fn ways(state: &FederationState, r: &Resolution, member: &str) -> Vec<String> {
    let planned = planned_policy(r, member, &state.policies[0]).expect("planned");
    planned.through.iter().map(|t| t.gateway.clone()).collect()
}

fn accepted(state: &FederationState, r: &Resolution) -> (bool, String, String) {
    verdict(r, &state.policies[0], ConditionType::Accepted)
}

const BOTH: [&str; 2] = ["frankfurt", "paris"];

#[test]
fn without_grants_and_with_one_for_all_everybody_may() {
    for allow in [
        None,
        Some(vec![grant(&[], &[])]),
        Some(vec![grant(&[], &["x"]), grant(&[], &["payments"])]),
    ] {
        let mut state = state(allow);
        let r = run_in(&mut state);
        assert_eq!(ways(&state, &r, "shop"), BOTH);
        assert_eq!(ways(&state, &r, "other"), BOTH);
        assert!(accepted(&state, &r).0);
        assert!(verdict(&r, &state.policies[0], ConditionType::Programmed).0);
    }
}

#[test]
fn a_member_without_a_grant_has_what_is_left_of_the_list_and_gateways_drop_what_it_sends() {
    let mut state = state(Some(vec![grant(&[("name", "shop")], &["payments"])]));
    let r = run_in(&mut state);
    assert_eq!(ways(&state, &r, "shop"), BOTH);
    assert_eq!(ways(&state, &r, "other"), ["paris"]);
    let (ok, reason, message) = accepted(&state, &r);
    assert_eq!((ok, reason.as_str()), (false, "NotGranted"));
    assert!(
        message.contains("spec.through[0].gateway") && message.contains("namespace payments in other;"),
        "{message}"
    );
    let hosted = planned_gateway(&r, "fra-1", "frankfurt").expect("planned");
    let [identity] = &hosted.identities[..] else {
        panic!("{:?}", hosted.identities)
    };
    assert_eq!(identity.granted.len(), 1, "shop's overlay prefix alone");
    let owners: Vec<_> = hosted
        .slices
        .iter()
        .flat_map(|s| &s.slices)
        .map(|s| s.member.as_str())
        .collect();
    assert!(
        !owners.is_empty() && owners.iter().all(|m| *m == "shop"),
        "{owners:?}"
    );
    assert_eq!(planned_gateway(&r, "other", "frankfurt"), None);
}

#[test]
fn what_nobody_of_a_policy_may_use_gives_it_nothing() {
    for allow in [
        vec![],
        vec![grant(&[], &["elsewhere"])],
        vec![grant(&[("name", "fra-1")], &[])],
    ] {
        let mut state = state(Some(allow));
        state.policies[0].through[0].exclusive = true;
        state.policies[0].through[0].egress_ip = Some(AddressPair {
            ipv4: Some("203.0.113.10".into()),
            ipv6: None,
        });
        let r = run_in(&mut state);
        assert_eq!(ways(&state, &r, "shop"), ["paris"]);
        assert_eq!(accepted(&state, &r).1, "NotGranted");
        assert!(
            r.gateways["frankfurt"].used.is_empty(),
            "not even an address of its own"
        );
    }
}

#[test]
fn cluster_wide_policies_need_a_grant_for_all_namespaces() {
    let mut state = state(Some(vec![grant(&[], &["payments"])]));
    state.policies[0].source.namespace = None;
    state.policies[0].namespaces = Some(LabelSelector::default());
    let r = run_in(&mut state);
    assert_eq!(ways(&state, &r, "shop"), ["paris"]);
    assert!(
        accepted(&state, &r)
            .2
            .contains("cluster-wide policies in other, shop")
    );
    state.gateways[0].spec.allow = Some(vec![grant(&[("name", "shop")], &[])]);
    let r = run_in(&mut state);
    assert_eq!(
        (ways(&state, &r, "shop"), ways(&state, &r, "other")),
        (BOTH.map(String::from).to_vec(), vec!["paris".into()])
    );
}

fn entries() -> impl Strategy<Value = Option<Vec<GatewayGrant>>> {
    let members = prop_oneof![
        Just(None),
        prop::sample::select(vec!["shop", "other", "fra-1"]).prop_map(Some)
    ];
    let namespaces = prop::sample::subsequence(vec!["payments", "web"], 0..=2);
    let entry = (members, namespaces).prop_map(|(member, namespaces)| {
        let members: Vec<_> = member.into_iter().map(|m| ("name", m)).collect();
        grant(&members, &namespaces)
    });
    prop::option::of(prop::collection::vec(entry, 0..4))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// In words of the field's own: who isn't granted has neither way, identity nor ports; others notice nothing of it.
    #[test]
    fn nobody_has_more_than_some_entry_grants(allow in entries(), wide in any::<bool>()) {
        let mut state = state(allow.clone());
        if wide {
            state.policies[0].source.namespace = None;
            state.policies[0].namespaces = Some(LabelSelector::default());
        }
        let r = run_in(&mut state);
        let may = |member: &str| allow.as_ref().is_none_or(|entries| {
            entries.iter().any(|e| {
                let whose = e.namespaces.is_empty() || (!wide && e.namespaces.iter().any(|n| n == "payments"));
                let named = e.members.match_labels.get("name");
                whose && named.is_none_or(|n| n == member)
            })
        });
        let mut prefixes = 0;
        for member in ["shop", "other"] {
            let expected = if may(member) { &BOTH[..] } else { &BOTH[1..] };
            prop_assert_eq!(ways(&state, &r, member), expected);
            prefixes += usize::from(may(member));
        }
        let hosted = planned_gateway(&r, "fra-1", "frankfurt").expect("its host has it");
        let granted = hosted.identities.iter().map(|i| i.granted.len()).max().unwrap_or(0);
        prop_assert_eq!(granted, prefixes);
        for slice in hosted.slices.iter().flat_map(|s| &s.slices) {
            prop_assert!(may(&slice.member), "{:?}", slice);
        }
        prop_assert_eq!(accepted(&state, &r).0, prefixes == 2);
    }
}

//! Which egress IPs policies get, what waits for their being recorded, and what is said of it.

use spillway_crds::hub::{Allocated, Allocation};

use super::*;

const DEFAULT: &str = "203.0.113.10";

/// Policies `shop/p0`, … through frankfurt, each younger than the one before, after `change`.
fn several(change: impl Fn(usize, &mut Through)) -> FederationState {
    let mut state = typical();
    state.policies = (0..3)
        .map(|i| {
            let mut policy = policy(&format!("p{i}"), &[("name", "shop")], &["frankfurt"]);
            policy.created = 100 + i64::try_from(i).expect("few");
            change(i, &mut policy.through[0]);
            policy
        })
        .collect();
    state
}

fn has(r: &Resolution, policy: &PolicyInput) -> Option<String> {
    let egress = r.policies[&policy.source].egress.first()?;
    egress.egress_ip.ipv4.clone()
}

fn fixed(through: &mut Through, address: &str) {
    through.egress_ip = Some(AddressPair {
        ipv4: Some(address.into()),
        ipv6: None,
    });
}

#[test]
fn an_address_of_the_pool_is_recorded_before_a_plan_names_it() {
    let mut state = several(|i, t| {
        t.allocation = if i == 0 {
            Allocation::Default
        } else {
            Allocation::Pool
        }
    });
    let mut named_early = false;
    let settled = loop {
        let r = resolve(&state);
        let waits = r.waiting.contains("shop");
        let recorded = state
            .policies
            .iter()
            .all(|p| p.held == r.policies[&p.source].egress);
        named_early |= !recorded && !waits;
        if recorded && r.allocations.is_empty() {
            break r;
        }
        record(&mut state, &r);
    };
    assert!(
        !named_early,
        "a plan of which not everything was recorded is served"
    );
    assert!(settled.waiting.is_empty());
    let given: Vec<_> = state
        .policies
        .iter()
        .map(|p| has(&settled, p).expect("given"))
        .collect();
    assert_eq!(given[0], DEFAULT);
    assert!(
        given[1] != DEFAULT && given[2] != DEFAULT && given[1] != given[2],
        "{given:?}"
    );
    let allocated = |i: usize| settled.policies[&state.policies[i].source].egress[0].allocated;
    assert_eq!(
        (allocated(0), allocated(1)),
        (Allocated::Default, Allocated::Pool)
    );
    let used: Vec<_> = settled.gateways["frankfurt"]
        .used
        .iter()
        .map(|u| u.by.clone())
        .collect();
    assert!(
        used.contains(&"payments/p1".to_owned()) && used.len() == 3,
        "{used:?}"
    );
    // Without any record it comes out as it did.
    let mut lost = state.clone();
    for policy in &mut lost.policies {
        policy.held.clear();
    }
    let again = settle(&mut lost);
    let others: Vec<_> = lost
        .policies
        .iter()
        .map(|p| has(&again, p).expect("given"))
        .collect();
    assert_eq!(others, given);
}

#[test]
fn the_default_is_the_gateways_word_or_the_pools_first() {
    let mut state = several(|_, _| {});
    state.gateways[0].spec.addresses.default = Some(AddressPair {
        ipv4: Some("203.0.113.15".into()),
        ipv6: None,
    });
    let r = settle(&mut state);
    assert_eq!(has(&r, &state.policies[0]).as_deref(), Some("203.0.113.15"));
    state.gateways[0].spec.addresses.default = Some(AddressPair {
        ipv4: Some("192.0.2.1".into()),
        ipv6: None,
    });
    let r = settle(&mut state);
    assert_eq!(has(&r, &state.policies[0]).as_deref(), Some(DEFAULT));
    let (ok, reason, message) = gateway_verdict(&r, "frankfurt", ConditionType::Accepted);
    assert_eq!((ok, reason.as_str()), (false, "AddressNotInPool"));
    assert!(message.contains("spec.addresses.default: 192.0.2.1"), "{message}");
}

#[test]
fn what_is_one_policys_own_is_refused_to_others_and_the_other_way_round() {
    let own = "203.0.113.12";
    let mut state = several(|_, _| {});
    fixed(&mut state.policies[1].through[0], own);
    state.policies[1].through[0].exclusive = true;
    settle(&mut state);
    fixed(&mut state.policies[0].through[0], own);
    let r = settle(&mut state);
    let (ok, reason, message) = verdict(&r, &state.policies[0], ConditionType::Accepted);
    assert_eq!(
        (ok, reason.as_str()),
        (false, "AddressTaken"),
        "though it is older"
    );
    assert!(
        message.contains(own) && message.contains("payments/p1"),
        "{message}"
    );
    let planned = planned_policy(&r, "shop", &state.policies[0]).expect("it must not open the way");
    assert!(planned.through.is_empty());
    assert_eq!(has(&r, &state.policies[1]).as_deref(), Some(own));

    fixed(&mut state.policies[0].through[0], DEFAULT);
    state.policies[0].through[0].exclusive = true;
    let r = settle(&mut state);
    let (ok, reason, message) = verdict(&r, &state.policies[0], ConditionType::Accepted);
    assert_eq!((ok, reason.as_str()), (false, "AddressInUse"));
    assert!(message.contains("payments/p2"), "{message}");
    assert_eq!(has(&r, &state.policies[2]).as_deref(), Some(DEFAULT));
}

#[test]
fn an_address_in_use_is_not_taken_out_of_the_pool() {
    let mut state = several(|i, t| fixed(t, &format!("203.0.113.1{}", i + 1)));
    let before = settle(&mut state);
    state.gateways[0].spec.addresses.ipv4 = vec!["203.0.113.10".into(), "203.0.113.12-203.0.113.19".into()];
    let r = settle(&mut state);
    assert_eq!(has(&r, &state.policies[0]), has(&before, &state.policies[0]));
    assert_eq!(r.plans["shop"], before.plans["shop"]);
    let (ok, reason, message) = gateway_verdict(&r, "frankfurt", ConditionType::Accepted);
    assert_eq!((ok, reason.as_str()), (false, "AddressInUse"));
    assert!(
        message.contains("203.0.113.11") && message.contains("payments/p0"),
        "{message}"
    );
    assert!(verdict(&r, &state.policies[0], ConditionType::Accepted).0);
    // Nobody else's pool may have it meanwhile, and no other policy.
    state
        .gateways
        .push(gateway("elsewhere", 5, &["other"], &["203.0.113.11"]));
    fixed(&mut state.policies[1].through[0], "203.0.113.11");
    let r = settle(&mut state);
    assert_eq!(
        gateway_verdict(&r, "elsewhere", ConditionType::Accepted).1,
        "AddressOverlap"
    );
    assert_eq!(
        verdict(&r, &state.policies[1], ConditionType::Accepted).1,
        "AddressNotInPool"
    );
    // Its policy lets go of it.
    fixed(&mut state.policies[0].through[0], "203.0.113.13");
    let r = settle(&mut state);
    assert!(gateway_verdict(&r, "frankfurt", ConditionType::Accepted).0);
    assert!(gateway_verdict(&r, "elsewhere", ConditionType::Accepted).0);
}

#[test]
fn a_pool_without_an_address_left_says_so() {
    let mut state = several(|_, t| {
        t.allocation = Allocation::Pool;
        t.exclusive = true;
    });
    state.gateways[0].spec.addresses.ipv4 = vec!["203.0.113.10-203.0.113.11".into()];
    let r = settle(&mut state);
    let denied = verdict(&r, &state.policies[2], ConditionType::Accepted);
    assert_eq!((denied.0, denied.1.as_str()), (false, "PoolExhausted"));
    assert!(has(&r, &state.policies[0]).is_some() && has(&r, &state.policies[1]).is_some());
}

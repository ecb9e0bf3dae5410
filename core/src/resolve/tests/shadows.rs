//! What is said of policies that take others' packets. That nothing untrue is said is a property in
//! `core/tests/total_order`.

use spillway_crds::hub::{DestinationPort, Protocol, Sources};
use spillway_crds::{Operator, Requirement};

use super::*;

/// Policy `payments/bank` for `app=billing` in all members to 198.51.100.0/24, and another one that is changed.
fn beside(change: impl FnOnce(&mut PolicyInput)) -> FederationState {
    let mut bank = policy("bank", &[], &["frankfurt"]);
    bank.created = 50;
    let mut other = policy("other", &[], &["frankfurt"]);
    change(&mut other);
    FederationState {
        policies: vec![bank, other],
        ..typical()
    }
}

/// Column and condition of `policies[i]`.
#[track_caller]
fn said(state: &mut FederationState, i: usize) -> (Option<String>, bool, String, String) {
    let r = settle(state);
    let outcome = &r.policies[&state.policies[i].source];
    let (holds, reason, message) = find(&outcome.verdicts, ConditionType::Effective);
    (outcome.shadowed.clone(), holds, reason, message)
}

#[track_caller]
fn check(change: impl FnOnce(&mut PolicyInput), bank: Option<&str>, other: Option<&str>) {
    let mut state = beside(change);
    assert_eq!(said(&mut state, 0).0.as_deref(), bank, "bank");
    assert_eq!(said(&mut state, 1).0.as_deref(), other, "other");
}

fn wide(p: &mut PolicyInput) {
    p.source = PolicyRef {
        namespace: None,
        name: "wide".into(),
    };
    p.namespaces = Some(LabelSelector::default());
}

#[test]
fn age_then_priority_then_prefix() {
    check(|_| {}, None, Some("All by payments/bank"));
    check(|p| p.priority = 1, Some("All by payments/other"), None);
    let half = |p: &mut PolicyInput| p.to.cidrs = vec!["198.51.100.0/25".into()];
    check(half, Some("Part by payments/other"), None);
    let wider = |p: &mut PolicyInput| {
        p.to.cidrs = vec!["198.51.0.0/16".into()];
        p.priority = 9;
    };
    check(wider, None, Some("Part by payments/bank"));
    check(|p| p.to.cidrs = vec!["192.0.2.0/24".into()], None, None);
    check(|p| p.to.except = vec!["198.51.100.0/24".into()], None, None);
}

#[test]
fn ports_go_behind_prefixes_and_before_priority() {
    let tcp = |port, end_port| DestinationPort {
        protocol: Protocol::Tcp,
        port: Some(port),
        end_port,
    };
    let https = |p: &mut PolicyInput| p.to.ports = vec![tcp(443, None)];
    check(https, Some("Part by payments/other"), None);
    let wider = |p: &mut PolicyInput| {
        https(p);
        p.to.cidrs = vec!["198.51.0.0/16".into()];
    };
    check(wider, None, Some("Part by payments/bank"));
    let first = |p: &mut PolicyInput| {
        https(p);
        p.priority = -9;
    };
    check(first, Some("Part by payments/other"), None);

    let mut state = beside(|p| p.to.ports = vec![tcp(440, Some(449))]);
    state.policies[0].to.ports = vec![tcp(443, None)];
    assert_eq!(said(&mut state, 0).0, None);
    assert_eq!(said(&mut state, 1).0.as_deref(), Some("Part by payments/bank"));
    // Two ranges that cover a third.
    state.policies[0].to.ports = vec![tcp(440, Some(444)), tcp(445, Some(449))];
    assert_eq!(said(&mut state, 1).0.as_deref(), Some("All by payments/bank"));
    state.policies[0].to.ports = vec![tcp(443, None)];
    state.policies[1].to.ports = vec![tcp(80, None)];
    assert_eq!((said(&mut state, 0).0, said(&mut state, 1).0), (None, None));
    state.policies[1].to.ports = vec![tcp(443, None)];
    assert_eq!(said(&mut state, 1).0.as_deref(), Some("All by payments/bank"));
}

#[test]
fn only_who_selects_all_pods_counts() {
    let all = |p: &mut PolicyInput| {
        p.pods = LabelSelector::default();
        p.priority = 1;
    };
    check(all, Some("All by payments/other"), None);
    // Some of its pods only: nothing can be said of all of them.
    let more = |p: &mut PolicyInput| {
        p.pods = select(&[("app", "billing"), ("tier", "x")]);
        p.priority = 1;
    };
    check(more, None, None);
    let narrower = |p: &mut PolicyInput| p.pods = select(&[("app", "billing"), ("tier", "x")]);
    check(narrower, None, Some("All by payments/bank"));
    let apps = |p: &mut PolicyInput| {
        p.pods = LabelSelector {
            match_expressions: vec![Requirement {
                key: "app".into(),
                operator: Operator::In,
                values: vec!["billing".into(), "shop".into()],
            }],
            ..LabelSelector::default()
        };
        p.priority = 1;
    };
    check(apps, Some("All by payments/other"), None);
    let elsewhere = |p: &mut PolicyInput| {
        p.source.namespace = Some("shop".into());
        p.priority = 1;
    };
    check(elsewhere, None, None);
}

#[test]
fn cluster_wide_policies_cover_namespaces_that_they_surely_select() {
    let first = |p: &mut PolicyInput| {
        wide(p);
        p.priority = 1;
    };
    check(first, Some("All by wide"), None);
    let named = |p: &mut PolicyInput| {
        first(p);
        p.namespaces = Some(select(&[("kubernetes.io/metadata.name", "payments")]));
    };
    check(named, Some("All by wide"), None);
    let by_label = |p: &mut PolicyInput| {
        first(p);
        p.namespaces = Some(select(&[("team", "red")]));
    };
    check(by_label, None, None);
    check(wide, None, None);
}

#[test]
fn fixed_sources_narrow() {
    let one = |p: &mut PolicyInput| {
        p.sources = Some(Sources {
            cidrs: vec!["10.244.0.7/32".into()],
        });
        p.priority = 1;
    };
    check(one, None, None);
    let mut state = beside(one);
    state.policies[0].sources = Some(Sources {
        cidrs: vec!["10.244.0.7/32".into()],
    });
    assert_eq!(said(&mut state, 0).0.as_deref(), Some("All by payments/other"));
}

#[test]
fn members_count_one_by_one() {
    let mut state = beside(|p| {
        p.members = select(&[("name", "shop")]);
        p.priority = 1;
    });
    let (column, holds, reason, message) = said(&mut state, 0);
    assert_eq!(column.as_deref(), Some("Part by payments/other"));
    assert!(holds);
    assert_eq!(reason, "PartlyShadowed");
    assert!(
        message.contains("all of its destinations") && message.ends_with("in shop"),
        "{message}"
    );
}

#[test]
fn several_policies_may_leave_nothing_together() {
    let mut state = beside(|p| p.to.cidrs = vec!["198.51.100.0/25".into()]);
    let mut third = state.policies[1].clone();
    third.source.name = "third".into();
    third.to.cidrs = vec!["198.51.100.128/25".into()];
    state.policies.push(third);
    let (column, holds, reason, message) = said(&mut state, 0);
    assert_eq!(column.as_deref(), Some("All by payments/other, payments/third"));
    assert_eq!((holds, reason.as_str()), (false, "Shadowed"));
    assert!(message.contains("spec.priority"), "{message}");
}

#[test]
fn what_cannot_be_read_blocks_and_has_nothing() {
    let mut state = beside(|p| p.priority = 1);
    state.policies[1].to.cidrs = vec!["nonsense".into()];
    assert_eq!(said(&mut state, 0).2, "Effective");
    assert_eq!(said(&mut state, 1).2, "NotAccepted");
    let mut state = beside(|p| p.priority = 1);
    state.policies[1].sources = Some(Sources {
        cidrs: vec!["10.0.0.1/8".into()],
    });
    assert_eq!(
        said(&mut state, 0).0.as_deref(),
        Some("All by payments/other"),
        "not one readable source is every source"
    );
    let r = settle(&mut state);
    let accepted = verdict(&r, &state.policies[1], ConditionType::Accepted);
    assert!(
        !accepted.0 && accepted.2.contains("spec.sources.cidrs[0]"),
        "{accepted:?}"
    );
}

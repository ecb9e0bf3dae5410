//! Policies whose pods may send so much only.

use std::net::IpAddr;

use spillway_crds::hub::{Bandwidth, DestinationPort, OnUnavailable};
use spillway_crds::member::{PlannedThrough, PolicyRef};

use super::flows::{Meter, Verdict};
use super::inputs::NodeInputs;
use super::state::DesiredState;
use super::tests::nft_accepts;
use super::{compile, fixtures};

const SERVER: (&str, &str) = ("10.244.0.5", "198.51.100.1");

fn bandwidth(rate: &str, burst: Option<&str>) -> Bandwidth {
    Bandwidth {
        rate: rate.into(),
        burst: burst.map(str::to_owned),
    }
}

fn metered(mut inputs: NodeInputs) -> NodeInputs {
    let plan = inputs.plan.as_mut().expect("a plan");
    plan.policies[0].bandwidth = Some(bandwidth("50M", Some("20M")));
    inputs
}

fn meter() -> Meter {
    Meter::of(&fixtures::bank().source)
}

fn judge(state: &DesiredState, (pod, to): (&str, &str), port: u16) -> Option<Verdict> {
    let ip = |s: &str| s.parse::<IpAddr>().expect("address");
    state.flows.judge(ip(pod), ip(to), (6, port))
}

fn chains<'s>(state: &'s DesiredState, prefix: &str) -> Vec<(&'s str, &'s [String])> {
    let table = state.ruleset.as_ref().expect("a table");
    let all = table.chains.iter().filter(|(name, _)| name.starts_with(prefix));
    all.map(|(name, chain)| (name.as_str(), chain.rules.as_slice()))
        .collect()
}

#[test]
fn what_a_policy_takes_passes_its_limit_and_then_goes_its_way() {
    for inputs in [
        metered(fixtures::source()),
        metered(fixtures::both()),
        metered(fixtures::stateless_source()),
    ] {
        let state = compile(&inputs);
        nft_accepts(&state);
        let verdict = judge(&state, SERVER, 443);
        assert_eq!(verdict.and_then(Verdict::identity), Some(7));
        assert!(matches!(verdict, Some(Verdict::Metered(m, ..)) if m == meter()));
        let [(name, rules)] = chains(&state, "meter_")[..] else {
            panic!("both families have one verdict")
        };
        assert_eq!(name, format!("meter_{}_7", meter()));
        assert_eq!(
            rules,
            [format!("jump limit_{}", meter()), "goto egress_7".to_owned()]
        );
        let limit = "limit rate over 6250000 bytes/second burst 2500000 bytes counter drop";
        assert_eq!(
            chains(&state, "limit_"),
            [(format!("limit_{}", meter()).as_str(), &[limit.to_owned()][..])]
        );
    }
}

#[test]
fn each_policy_has_a_limit_of_its_own_though_they_share_an_identity() {
    let mut inputs = metered(fixtures::source());
    let plan = inputs.plan.as_mut().expect("a plan");
    let mut web = plan.policies[0].clone();
    web.source = PolicyRef {
        namespace: Some("payments".into()),
        name: "web".into(),
    };
    web.to.ports = vec![DestinationPort {
        port: Some(80),
        ..DestinationPort::default()
    }];
    web.bandwidth = Some(bandwidth("1M", None));
    let mut free = web.clone();
    free.source.name = "free".into();
    free.to.ports[0].port = Some(81);
    free.bandwidth = None;
    plan.policies.extend([web.clone(), free]);
    let state = compile(&inputs);
    nft_accepts(&state);
    assert_eq!(chains(&state, "limit_").len(), 2);
    let of = |port| judge(&state, SERVER, port);
    assert!(matches!(of(443), Some(Verdict::Metered(m, 7, _)) if m == meter()));
    assert!(matches!(of(80), Some(Verdict::Metered(m, 7, _)) if m == Meter::of(&web.source)));
    assert_eq!(of(81), Some(Verdict::Identity(7)));
}

#[test]
fn flows_that_began_elsewhere_count_as_well_and_none_is_cut_for_a_limit() {
    let mut inputs = fixtures::source();
    let plan = inputs.plan.as_mut().expect("a plan");
    let mut second = plan.gateways[0].clone();
    second.gateway = "vienna".into();
    second.identities[0].id = 9;
    plan.gateways.push(second);
    plan.policies[0].through.push(PlannedThrough {
        gateway: "vienna".into(),
        identity: 9,
    });
    let without = compile(&inputs);
    let inputs = metered(inputs);
    let state = compile(&inputs);
    nft_accepts(&state);
    let [(name, rules)] = chains(&state, "meter_")[..] else {
        panic!("one chain")
    };
    assert_eq!(name, format!("meter_{}_7_9", meter()));
    assert_eq!(
        (rules.len(), rules[0].as_str()),
        (3, format!("jump limit_{}", meter()).as_str())
    );
    assert!(rules[1].ends_with("goto egress_9"), "{rules:?}");
    let ids = |state: &DesiredState| -> Vec<u16> {
        let verdict = judge(state, SERVER, 443).expect("taken");
        verdict.identities().collect()
    };
    assert_eq!(ids(&state), ids(&without));
}

#[test]
fn where_nothing_is_to_leave_or_be_taken_nothing_is_limited() {
    let mut inputs = metered(fixtures::source());
    let plan = inputs.plan.as_mut().expect("a plan");
    plan.policies[0].through.clear();
    assert_eq!(judge(&compile(&inputs), SERVER, 443), Some(Verdict::Block));
    let plan = inputs.plan.as_mut().expect("a plan");
    plan.policies[0].on_unavailable = OnUnavailable::NodeIP;
    assert_eq!(judge(&compile(&inputs), SERVER, 443), None);
}

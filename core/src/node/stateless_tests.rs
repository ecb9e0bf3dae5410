//! Stateless gateways: what a node's tables let through, held against the words of the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use spillway_crds::hub::{AddressSlices, OnUnavailable, PortRange, PortSlice};
use spillway_crds::member::{GatewayNodeState, NodeRef, PlannedThrough};

use super::flows::{Flow, Others, Verdict};
use super::gateways::Liveness;
use super::inputs::{Addresses, NodeInputs, NodePlan};
use super::nft::{Atom, Set};
use super::state::{DesiredState, RouteTarget};
use super::{compile, compile_numbered, fixtures, problems};

const EIP: &str = "203.0.113.10";
const A1: u32 = 0x6440_0401;
const B1: u32 = 0x6440_0801;
const B2: u32 = 0x6440_0802;

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

fn plan(inputs: &mut NodeInputs) -> &mut NodePlan {
    inputs.plan.as_mut().expect("fixtures have a plan")
}

fn set<'a>(state: &'a DesiredState, name: &str) -> &'a Set {
    &state.ruleset.as_ref().expect("a table").sets[name]
}

fn mac(peer: u32) -> Atom {
    let [a, b, c, d] = peer.to_be_bytes();
    Atom::Mac([2, 0x53, a, b, c, d])
}

/// The elements of a set that a packet with these fields and this port matches, as the kernel finds them.
fn matching<'a>(set: &'a Set, fields: &[Atom], port: u16) -> Vec<&'a Option<Atom>> {
    let hit = |key: &[Atom]| match key.split_last() {
        Some((Atom::Ports(first, last), before)) => before == fields && (*first..=*last).contains(&port),
        _ => false,
    };
    set.elements
        .iter()
        .filter(|(k, _)| hit(k))
        .map(|(_, v)| v)
        .collect()
}

/// Peers that may send with this port, and the one that replies to it go to.
fn at_gateway(state: &DesiredState, eip: &str, port: u16) -> (BTreeSet<u32>, Option<u32>) {
    let may = [A1, B1, B2].into_iter().filter(|peer| {
        let from = [mac(*peer), Atom::Number(7), Atom::Ip(ip(eip))];
        let hits = ["out4", "out_id4", "out_err4"].map(|s| matching(set(state, s), &from, port).len());
        assert!(hits.iter().all(|h| *h == hits[0] && *h < 2), "{hits:?}");
        hits[0] == 1
    });
    let may = may.collect();
    let found =
        ["reply4", "reply_id4", "reply_err4"].map(|s| matching(set(state, s), &[Atom::Ip(ip(eip))], port));
    assert!(found.iter().all(|f| *f == found[0] && f.len() < 2), "{found:?}");
    let to = found[0].first().and_then(|v| match v {
        Some(Atom::Number(peer)) => Some(*peer),
        _ => None,
    });
    (may, to)
}

/// Ports that new connections of identity 7 get, by the chains' own words.
fn translated(state: &DesiredState) -> Vec<PortRange> {
    let chains = &state.ruleset.as_ref().expect("a table").chains;
    let of_snat = chains.iter().filter(|(name, _)| name.starts_with("snat_7"));
    let targets = of_snat
        .flat_map(|(_, c)| &c.rules)
        .filter_map(|r| r.split_once(&format!("snat ip to {EIP}:")));
    targets
        .map(|(_, range)| {
            let (first, last) = range.split_once('-').expect("a range");
            PortRange {
                first: first.parse().expect("a port"),
                last: last.parse().expect("a port"),
            }
        })
        .collect()
}

fn own(state: &DesiredState, port: u16) -> bool {
    let hits =
        ["own4", "own_id4", "own_err4"].map(|s| matching(set(state, s), &[Atom::Ip(ip(EIP))], port).len());
    assert!(hits.iter().all(|h| *h == hits[0] && *h < 2), "{hits:?}");
    hits[0] == 1
}

fn flow(port: u16) -> Flow {
    Flow {
        source: ip("10.244.0.5"),
        destination: ip("198.51.100.1"),
        translated: ip(EIP),
        port,
        protocol: 6,
        to_port: 443,
        mark: 0x5300_0007,
    }
}

/// Every verdict of every class.
fn verdicts(state: &DesiredState) -> impl Iterator<Item = Verdict> {
    let outcomes = state.flows.classes.values().flatten();
    outcomes.flat_map(|(_, outcome)| outcome.verdicts())
}

fn dead(nodes: &[&str]) -> Liveness {
    Liveness {
        dead: nodes.iter().map(|n| fixtures::node_ref("b", n)).collect(),
        ..Liveness::default()
    }
}

prop_compose! {
    /// Whole blocks of 64 ports out of the first few, in any state.
    fn ranges()(list in prop::collection::vec((16u16..32, 1u16..4), 0..3)) -> Vec<PortRange> {
        list.into_iter().map(|(first, blocks)| PortRange { first: first * 64, last: (first + blocks) * 64 - 1 }).collect()
    }
}

prop_compose! {
    fn slice(node: NodeRef)(ports in ranges(), pending in ranges(), draining in ranges()) -> PortSlice {
        PortSlice { member: node.member.clone(), node: node.node.clone(), ports, pending, draining }
    }
}

prop_compose! {
    /// Slices of three nodes, which may well overlap, in any order.
    fn slices()(
        list in (
            slice(fixtures::node_ref("a", "a-1")),
            slice(fixtures::node_ref("b", "b-1")),
            slice(fixtures::node_ref("b", "b-2")),
        ).prop_map(|(a, b, c)| vec![a, b, c]).prop_shuffle(),
    ) -> Vec<AddressSlices> {
        vec![AddressSlices { address: EIP.into(), slices: list }]
    }
}

/// Whose `port` is by the plan's own words: the first slice that has it.
fn owner(slices: &[AddressSlices], port: u16) -> Option<&PortSlice> {
    slices[0].slices.iter().find(|s| {
        [&s.ports, &s.pending, &s.draining]
            .into_iter()
            .flatten()
            .any(|r| (r.first..=r.last).contains(&port))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_packet_passes_with_a_port_that_isnt_its_nodes(slices in slices()) {
        let mut gateway = fixtures::stateless_gateway();
        plan(&mut gateway).gateways[0].slices = slices.clone();
        let gateway = compile(&gateway);
        let mut source = fixtures::stateless_source();
        plan(&mut source).gateways[0].slices = slices.clone();
        let source = compile(&source);
        let translated = translated(&source);
        for port in (900..2400).step_by(16) {
            let owner = owner(&slices, port);
            let (may, to) = at_gateway(&gateway, EIP, port);
            let peer = owner.and_then(|s| match s.node.as_str() {
                "a-1" => Some(A1),
                "b-2" => Some(B2),
                _ => None,
            });
            prop_assert_eq!(to, peer, "replies to port {}", port);
            prop_assert_eq!(may, peer.into_iter().collect::<BTreeSet<_>>(), "who leaves with port {}", port);

            let usable = |lists: &[fn(&PortSlice) -> &Vec<PortRange>]| owner.is_some_and(|s| {
                s.node == "a-1" && lists.iter().flat_map(|l| l(s)).any(|r| (r.first..=r.last).contains(&port))
            });
            let new = translated.iter().any(|r| (r.first..=r.last).contains(&port));
            prop_assert_eq!(new, usable(&[|s| &s.ports]), "new connections with port {}", port);
            let old = usable(&[|s| &s.ports, |s| &s.draining]);
            prop_assert_eq!(own(&source, port), old, "the source's guard, port {}", port);
            prop_assert!(!old || to == Some(A1), "a gateway knows every port in use");
            if verdicts(&source).any(|v| v.identity().is_some()) {
                prop_assert_eq!(source.flows.cut(&flow(port)), !old, "entries with port {}", port);
            }
        }
    }

    #[test]
    fn an_equal_plan_gives_an_equal_state(slices in slices()) {
        for mut inputs in [fixtures::stateless_gateway(), fixtures::stateless_source(), fixtures::stateless_both()] {
            plan(&mut inputs).gateways[0].slices = slices.clone();
            let first = compile_numbered(&inputs);
            inputs.gateway_indexes = first.gateway_indexes.clone();
            prop_assert_eq!(&compile_numbered(&inputs), &first);
        }
    }
}

fn second() -> NodeInputs {
    NodeInputs {
        node: "b-2".into(),
        ..fixtures::stateless_gateway()
    }
}

/// The state without what a take-over may change.
fn but_for_answers(state: &DesiredState) -> DesiredState {
    DesiredState {
        proxies: BTreeSet::new(),
        held: BTreeMap::new(),
        ..state.clone()
    }
}

#[test]
fn a_take_over_changes_nothing_but_who_answers() {
    let before = [fixtures::stateless_gateway(), second()].map(|i| compile(&i));
    let all: Vec<IpAddr> = before.iter().flat_map(|s| s.held.keys().copied()).collect();
    assert_eq!(all.len(), 2, "every egress IP has one holder: {all:?}");
    for (state, mut inputs, other) in [
        (&before[0], fixtures::stateless_gateway(), "b-2"),
        (&before[1], second(), "b-1"),
    ] {
        inputs.liveness = dead(&[other]);
        let after = compile(&inputs);
        assert_eq!(after.held.len(), 2, "the survivor answers for both");
        assert_eq!(after.proxies.len(), 2);
        assert_eq!(but_for_answers(&after), but_for_answers(state));
        assert_eq!(after.flows, state.flows);
        // It comes back; this one keeps what it is told to keep until the other has it.
        inputs.liveness = Liveness {
            kept: after.held.keys().copied().collect(),
            ..Liveness::default()
        };
        assert_eq!(compile(&inputs), after);
    }
}

#[test]
fn a_dead_next_hop_changes_nothing_but_routes() {
    let mut inputs = fixtures::stateless_source();
    let before = compile(&inputs);
    inputs.liveness = dead(&["b-1"]);
    let after = compile(&inputs);
    let via = |state: &DesiredState| -> BTreeSet<IpAddr> {
        let in_table = state.routes.iter().filter(|r| r.table != 254);
        in_table
            .flat_map(|r| match &r.target {
                RouteTarget::Device { via, .. } => via.iter().copied().collect(),
                RouteTarget::Spread { via, .. } => via.clone(),
                RouteTarget::Unreachable => BTreeSet::new(),
            })
            .collect()
    };
    assert_eq!(via(&before).len(), 4);
    assert_eq!(via(&after), ["100.64.8.2", "fd64:5711:0:2::2"].map(ip).into());
    let but_routes = |state: &DesiredState| DesiredState {
        routes: BTreeSet::new(),
        ..state.clone()
    };
    assert_eq!(but_routes(&before), but_routes(&after));
    assert!(!after.flows.cut(&flow(1024)));
}

#[test]
fn flows_wait_for_a_gateway_that_is_gone_and_are_cut_where_another_way_is_meant() {
    let mut inputs = fixtures::stateless_source();
    let before = compile(&inputs);
    inputs.liveness = dead(&["b-1", "b-2"]);
    let ready = plan(&mut inputs).gateways[0].nodes.clone();
    for node in &mut plan(&mut inputs).gateways[0].nodes {
        node.state = GatewayNodeState::NotReady;
    }
    let gone = compile(&inputs);
    assert!(
        !gone.flows.cut(&flow(1024)),
        "it goes on when the gateway is back"
    );
    assert!(gone.flows.cut(&Flow {
        mark: 0,
        ..flow(1024)
    }));
    let table = gone.ruleset.as_ref().expect("table");
    let to = table.sets.iter().filter(|(name, _)| name.starts_with("to4"));
    for value in to.flat_map(|(_, s)| s.elements.values()) {
        assert_eq!(*value, Some(Atom::Goto("blocked".into())));
    }
    plan(&mut inputs).policies[0].on_unavailable = OnUnavailable::NodeIP;
    assert!(
        compile(&inputs).flows.cut(&flow(1024)),
        "it may leave otherwise now"
    );
    inputs.liveness = Liveness::default();
    plan(&mut inputs).gateways[0].nodes = ready;
    assert_eq!(compile(&inputs), before);
}

/// An agent that is replaced answers nothing, and its node's kernel forwards all the while.
#[test]
fn where_nothing_answers_a_policy_that_blocks_still_tries_what_its_cluster_calls_ready() {
    let mut inputs = fixtures::stateless_source();
    let before = compile(&inputs);
    inputs.liveness = dead(&["b-1", "b-2"]);
    assert_eq!(compile(&inputs), before, "both of them, as if they answered");
    let alone =
        |inputs: &mut NodeInputs| plan(inputs).gateways[0].nodes[1].state = GatewayNodeState::NotReady;
    alone(&mut inputs);
    let one = compile(&inputs);
    inputs.liveness = dead(&["b-2"]);
    assert_eq!(compile(&inputs), one, "the one that is called ready");
    inputs.liveness = dead(&["b-1", "b-2"]);
    plan(&mut inputs).policies[0].on_unavailable = OnUnavailable::NodeIP;
    assert!(verdicts(&compile(&inputs)).next().is_none());
}

#[test]
fn a_flow_of_another_gateway_of_the_policy_lives_while_that_does() {
    let mut inputs = fixtures::stateless_source();
    let paris = fixtures::gateway_of(
        "paris",
        9,
        spillway_crds::address::AddressPair {
            ipv4: Some("203.0.113.20".into()),
            ipv6: None,
        },
        vec![fixtures::node_ref("b", "b-2")],
        false,
    );
    let plan = plan(&mut inputs);
    plan.gateways.push(paris);
    plan.policies[0].through.push(PlannedThrough {
        gateway: "paris".into(),
        identity: 9,
    });
    let through_paris = Flow {
        mark: 0x5300_0009,
        translated: ip("100.64.4.1"),
        ..flow(40_000)
    };
    let both = compile(&inputs);
    assert_eq!(
        verdicts(&both).next(),
        Some(Verdict::Prefer(7, Others::from_iter([9])))
    );
    assert!(!both.flows.cut(&through_paris) && !both.flows.cut(&flow(1024)));
    let chains = &both.ruleset.as_ref().expect("table").chains;
    assert_eq!(
        chains["prefer_7_9"].rules,
        [
            "ct mark and 0xff00ffff == 0x53000009 goto egress_9",
            "goto egress_7"
        ]
    );
    assert!(chains.contains_key("egress_9"));
    assert_eq!(both.rules.len(), 4, "both gateways have their tables");

    inputs.liveness = dead(&["b-2"]);
    let first = compile(&inputs);
    assert!(
        first.flows.cut(&through_paris),
        "its gateway is gone, it would hang"
    );
    assert!(!first.flows.cut(&flow(1024)));
}

#[test]
fn a_node_without_ports_blocks_and_says_so() {
    let mut inputs = fixtures::stateless_source();
    for address in &mut plan(&mut inputs).gateways[0].slices {
        address.slices[0].ports.clear();
        address.slices[0].draining.clear();
    }
    let state = compile(&inputs);
    assert!(verdicts(&state).all(|v| v == Verdict::Block));
    let found = problems(&inputs).join("\n");
    assert!(found.contains("frankfurt") && found.contains(EIP), "{found}");
    assert!(problems(&fixtures::stateless_source()).is_empty());
}

#[test]
fn a_range_that_becomes_usable_is_no_news_to_gateways() {
    let mut inputs = fixtures::stateless_gateway();
    let before = compile(&inputs);
    for address in &mut plan(&mut inputs).gateways[0].slices {
        let slice = &mut address.slices[0];
        let pending = std::mem::take(&mut slice.pending);
        slice.ports.extend(pending);
        let first = slice.ports.remove(0);
        slice.draining.push(first);
    }
    assert_eq!(compile(&inputs), before);
}

#[test]
fn ports_that_are_claimed_twice_are_the_firsts_and_named() {
    let mut inputs = fixtures::stateless_gateway();
    plan(&mut inputs).gateways[0].slices[0].slices[2].ports = vec![PortRange {
        first: 1024,
        last: 65_535,
    }];
    let state = compile(&inputs);
    assert_eq!(at_gateway(&state, EIP, 1024), ([A1].into(), Some(A1)));
    assert_eq!(at_gateway(&state, EIP, 40_000), ([B2].into(), Some(B2)));
    assert_eq!(
        at_gateway(&state, EIP, 20_000),
        (BTreeSet::new(), None),
        "its own"
    );
    let found = problems(&inputs).join("\n");
    assert!(found.contains(EIP) && found.contains("1024-2111"), "{found}");
}

#[test]
fn a_node_that_left_a_gateway_forwards_and_answers_for_nothing() {
    let mut inputs = second();
    let before = compile(&inputs);
    let was = plan(&mut inputs).gateways[0].clone();
    plan(&mut inputs).gateways[0].nodes.pop();
    inputs.leaving = vec![was];
    let after = compile(&inputs);
    assert!(after.held.is_empty() && after.proxies.is_empty());
    assert_eq!(after.steering, before.steering);
    let sets = |state: &DesiredState| state.ruleset.as_ref().expect("table").sets.clone();
    let changed: Vec<String> = sets(&before)
        .into_iter()
        .filter(|(name, was)| sets(&after)[name] != *was)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(changed, ["away"], "its own pods go through the tunnel now");
    assert_eq!(but_for_answers(&after).routes, but_for_answers(&before).routes);
    inputs.leaving.clear();
    let gone = compile(&inputs);
    assert!(gone.steering.is_none() && set(&gone, "forwarded4").elements.is_empty());
}

#[test]
fn a_retiring_node_sends_its_own_pods_through_the_tunnel_with_their_ports() {
    let mut inputs = fixtures::stateless_both();
    let before = compile(&inputs);
    assert!(before.rules.is_empty(), "its pods leave here");
    plan(&mut inputs).gateways[0].nodes[0].state = GatewayNodeState::Draining;
    let after = compile(&inputs);
    assert_eq!(after.rules.len(), 2);
    assert!(after.held.is_empty() && !before.held.is_empty());
    assert_eq!(set(&after, "out4"), set(&before, "out4"));
    assert!(!before.flows.cut(&flow(16_384)) && !after.flows.cut(&flow(16_384)));
}

#[test]
fn peers_are_bound_to_their_addresses() {
    let state = compile(&fixtures::stateless_source());
    let bound: Vec<_> = set(&state, "bound4").elements.keys().cloned().collect();
    assert_eq!(
        bound,
        [
            vec![Atom::Ip(ip("10.0.0.2")), Atom::Number(B1)],
            vec![Atom::Ip(ip("10.0.0.12")), Atom::Number(B2)],
        ]
    );
    let overlay = Addresses::of(&fixtures::second_node().overlay);
    for (name, address) in ["peers4", "peers6"].into_iter().zip(overlay.iter()) {
        assert!(
            set(&state, name)
                .elements
                .contains_key(&vec![mac(B2), Atom::Ip(address)])
        );
    }
}

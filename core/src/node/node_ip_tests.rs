//! Gateways that leave with their nodes' own addresses.

use std::net::IpAddr;

use spillway_crds::address::AddressPair;

use super::flows::Verdict;
use super::inputs::NodeInputs;
use super::nft::Atom;
use super::tests::nft_accepts;
use super::{compile, fixtures, problems};

/// The gateway of `inputs` without a pool.
fn lent(mut inputs: NodeInputs) -> NodeInputs {
    for gateway in &mut inputs.plan.as_mut().expect("fixtures have a plan").gateways {
        gateway.node_ip = true;
        for identity in &mut gateway.identities {
            identity.egress_ip = AddressPair::default();
        }
    }
    inputs
}

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

const V4: (&str, &str) = ("10.244.0.5", "198.51.100.1");
const V6: (&str, &str) = ("fd00:244::5", "2001:db8:99::1");

#[test]
fn the_node_that_carries_it_translates_to_its_own_address_and_answers_for_nothing() {
    for inputs in [lent(fixtures::gateway()), lent(fixtures::both())] {
        let state = compile(&inputs);
        nft_accepts(&state);
        let table = state.ruleset.as_ref().expect("a table");
        for (map, own) in [("eip4", "10.0.0.2"), ("eip6", "fd00:10::2")] {
            let elements: Vec<_> = table.sets[map].elements.values().cloned().collect();
            assert_eq!(elements, [Some(Atom::Ip(ip(own)))], "{map}");
        }
        let leaves = table.chains["leaves_7"].rules.join("\n");
        assert!(leaves.contains("ip saddr != 10.0.0.2 counter drop"), "{leaves}");
        assert_eq!(state.held.len(), 2);
        assert!(state.proxies.is_empty(), "{:?}", state.proxies);
        let own =
            |r: &&super::state::Route| [ip("10.0.0.2"), ip("fd00:10::2")].contains(&r.destination.addr());
        assert_eq!(state.routes.iter().find(own), None, "it would be cut off");
        assert_eq!(problems(&inputs), Vec::<String>::new());
    }
}

#[test]
fn a_source_uses_it_in_the_families_that_its_nodes_have() {
    let mut inputs = lent(fixtures::source());
    let judge =
        |inputs: &NodeInputs, (pod, to): (&str, &str)| compile(inputs).flows.judge(ip(pod), ip(to), (6, 443));
    assert_eq!(judge(&inputs, V4), Some(Verdict::Identity(7)));
    assert_eq!(judge(&inputs, V6), Some(Verdict::Identity(7)));
    let plan = inputs.plan.as_mut().expect("a plan");
    plan.peers[0].nodes[0].underlay.ipv6 = None;
    assert_eq!(judge(&inputs, V4), Some(Verdict::Identity(7)));
    assert_eq!(
        judge(&inputs, V6),
        Some(Verdict::Block),
        "no other address is right"
    );
}

#[test]
fn a_node_without_the_address_that_its_cluster_knows_blocks_and_says_so() {
    let mut inputs = lent(fixtures::both());
    inputs.facts.links.remove("eth0");
    let state = compile(&inputs);
    let table = state.ruleset.as_ref().expect("a table");
    assert!(table.sets["eip4"].elements.is_empty() && state.held.is_empty());
    let leaves = table.chains["leaves_7"].rules.join("\n");
    assert!(leaves.contains("meta nfproto ipv4 counter drop"), "{leaves}");
    let said = problems(&inputs);
    assert!(said.iter().any(|p| p.contains("addresses.nodeIP")), "{said:?}");
}

//! Encrypted paths in whole nodes' states.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::inputs::{Addresses, NodeInputs};
use super::state::{DesiredState, RouteTarget};
use super::tests::{nft_accepts, show};
use super::{compile, fixtures, problems, watched};
use crate::wireguard::PublicKey;

/// A key for each node, made of its name.
fn key(node: &str) -> PublicKey {
    let byte = |n: usize| *node.as_bytes().get(n).unwrap_or(&0);
    PublicKey::from(std::array::from_fn(byte))
}

fn encrypted(inputs: NodeInputs) -> NodeInputs {
    fixtures::encrypted(inputs, |node| Some(key(node).to_string()))
}

fn remotes(state: &DesiredState) -> BTreeSet<IpAddr> {
    state.forwarding.iter().map(|f| f.remote).collect()
}

/// Underlay addresses of all nodes but the one itself.
fn underlays(inputs: &NodeInputs) -> BTreeSet<IpAddr> {
    let siblings = inputs.nodes.iter().filter(|(name, _)| **name != inputs.node);
    let siblings = siblings.map(|(_, spec)| &spec.underlay);
    let foreign = inputs.plan.iter().flat_map(|p| &p.peers).flat_map(|p| &p.nodes);
    siblings
        .chain(foreign.map(|n| &n.underlay))
        .flat_map(|pair| Addresses::of(pair).iter())
        .collect()
}

#[test]
fn a_source_node_behind_wireguard() {
    let state = compile(&encrypted(fixtures::stateless_source()));
    insta::assert_snapshot!(show(&state));
    nft_accepts(&state);
}

#[test]
fn a_gateway_node_behind_wireguard() {
    let state = compile(&encrypted(fixtures::stateless_gateway()));
    insta::assert_snapshot!(show(&state));
    nft_accepts(&state);
}

#[test]
fn an_underlay_of_ipv6_is_encrypted_too() {
    let mut inputs = encrypted(fixtures::stateless_source());
    for spec in inputs.nodes.values_mut() {
        spec.underlay.ipv4 = None;
    }
    let state = compile(&inputs);
    nft_accepts(&state);
    assert_eq!(
        remotes(&state),
        ["fd64:5711:0:2::1", "fd64:5711:0:2::2"]
            .map(|a| a.parse().expect("address"))
            .into()
    );
    let device = state.wireguard.expect("a device");
    assert_eq!(device.mtu, 1420);
    assert!(device.peers.values().all(|p| p.endpoint.is_ipv6()));
    assert!(state.rules.iter().any(|r| r.ipv6 && r.udp.is_some()));
}

#[test]
fn a_node_without_a_key_gets_nothing_and_is_named() {
    let inputs = fixtures::encrypted(fixtures::stateless_source(), |_| None);
    let state = compile(&inputs);
    nft_accepts(&state);
    assert_eq!(state.forwarding, BTreeSet::new());
    assert_eq!(state.wireguard, None);
    let ruleset = state.ruleset.expect("a table");
    assert_eq!(
        ruleset.sets["exposed4"].elements.len(),
        2,
        "the guard knows both nodes"
    );
    assert!(
        ruleset.chains["leave"]
            .rules
            .iter()
            .any(|r| r.contains("@exposed4 counter drop")),
        "{:?}",
        ruleset.chains["leave"]
    );
    let problems = problems(&inputs).join("\n");
    assert!(problems.contains("node b/b-1 must be encrypted"), "{problems}");
    assert!(watched(&inputs).is_empty(), "nobody probes where nothing is sent");
}

#[test]
fn a_key_that_two_nodes_claim_is_nobodys() {
    let mut inputs = encrypted(fixtures::stateless_source());
    let plan = inputs.plan.as_mut().expect("a plan");
    plan.peers[0].nodes[1].public_keys = vec![key("b-1").to_string()];
    let state = compile(&inputs);
    assert_eq!(state.forwarding, BTreeSet::new());
    assert_eq!(state.wireguard, None);
    let problems = problems(&inputs).join("\n");
    assert!(
        problems.contains("node b/b-2 claims its public key"),
        "{problems}"
    );
}

#[test]
fn the_key_that_comes_next_is_known_before_it_is_used() {
    let mut inputs = encrypted(fixtures::stateless_source());
    let plan = inputs.plan.as_mut().expect("a plan");
    plan.peers[0].nodes[0].public_keys.push(key("next").to_string());
    let device = compile(&inputs).wireguard.expect("a device");
    assert_eq!(device.peers.len(), 3);
    assert_eq!(
        device.peers[&key("next")].address,
        None,
        "nothing is sent to it or taken from it"
    );
    assert_eq!(
        device.peers[&key("next")].endpoint,
        device.peers[&key("b-1")].endpoint
    );
}

#[test]
fn only_what_must_be_is_encrypted_and_its_path_is_narrower() {
    let mut inputs = encrypted(fixtures::stateless_gateway());
    inputs.plan.as_mut().expect("a plan").member.encrypted = false;
    let state = compile(&inputs);
    let sibling: IpAddr = "10.0.0.12".parse().expect("address");
    let peer: IpAddr = "100.64.4.1".parse().expect("address");
    assert_eq!(remotes(&state), [sibling, peer].into());
    let mtu = |to: &str| {
        let to: IpAddr = to.parse().expect("address");
        let route = state
            .routes
            .iter()
            .find(|r| r.table == 254 && r.destination == to.into());
        match &route.expect("a route").target {
            RouteTarget::Device { mtu, .. } => *mtu,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(mtu("100.64.8.2"), 0);
    assert_eq!(mtu("100.64.4.1"), 1390, "1500 less 60 and 50");
    assert_eq!(mtu("203.0.113.10"), 1390, "replies may go there");
}

#[test]
fn an_underlay_address_that_two_partitions_have_stays_open_for_the_one_in_the_clear() {
    let mut inputs = encrypted(fixtures::stateless_gateway());
    let plan = inputs.plan.as_mut().expect("a plan");
    plan.member.encrypted = false;
    plan.peers[0].nodes[0].underlay.ipv4 = Some("10.0.0.12".into());
    let state = compile(&inputs);
    let ruleset = state.ruleset.expect("a table");
    assert!(ruleset.sets["exposed4"].elements.is_empty());
    assert_eq!(ruleset.sets["encrypted4"].elements.len(), 1);
}

#[test]
fn a_published_endpoint_is_called_instead_and_tells_equal_addresses_apart() {
    let mut inputs = encrypted(fixtures::stateless_source());
    let nodes = &mut inputs.plan.as_mut().expect("a plan").peers[0].nodes;
    nodes[0].underlay.ipv4 = Some("10.0.0.1".into());
    let uncalled = compile(&inputs);
    assert_eq!(remotes(&uncalled).len(), 2, "it may call this one");
    let nodes = &mut inputs.plan.as_mut().expect("a plan").peers[0].nodes;
    nodes[0].endpoint = Some("198.51.100.1:7000".into());
    let state = compile(&inputs);
    nft_accepts(&state);
    assert_eq!(remotes(&state).len(), 2);
    let device = state.wireguard.expect("a device");
    let endpoints: BTreeSet<String> = device.peers.values().map(|p| p.endpoint.to_string()).collect();
    assert_eq!(
        endpoints,
        ["198.51.100.1:7000", "10.0.0.12:5713"].map(str::to_owned).into()
    );
    let exposed = &state.ruleset.expect("a table").sets["exposed4"];
    assert_eq!(exposed.elements.len(), 1, "this node's own address is no peer's");
}

proptest! {
    /// Whoever has told of which key, right or wrong: the tunnel sends nothing to an underlay address, and WireGuard has
    /// no address twice.
    #[test]
    fn nothing_is_sent_in_the_clear(keys in prop::collection::vec(prop::option::of(0_u8..3), 4), own in any::<bool>()) {
        let mut inputs = if own { fixtures::stateless_both() } else { fixtures::stateless_source() };
        inputs = fixtures::encrypted(inputs, |node| {
            let n = ["a-1", "b-1", "b-2"].iter().position(|n| *n == node).unwrap_or(3);
            keys[n].map(|k| if k == 2 { "no key".into() } else { PublicKey::from([k; 32]).to_string() })
        });
        let state = compile(&inputs);
        let clear = underlays(&inputs);
        prop_assert!(remotes(&state).is_disjoint(&clear));
        let peers = state.wireguard.iter().flat_map(|w| w.peers.values());
        let addresses: Vec<IpAddr> = peers.filter_map(|p| p.address).collect();
        let distinct: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        prop_assert_eq!(distinct.len(), addresses.len());
        prop_assert_eq!(distinct, remotes(&state), "what the tunnel sends to, WireGuard leads to");
        let led: BTreeSet<IpAddr> = state
            .routes
            .iter()
            .filter(|r| r.table == inputs.settings.table_base && r.target != RouteTarget::Unreachable)
            .map(|r| r.destination.addr())
            .collect();
        prop_assert_eq!(led, remotes(&state));
    }
}

//! Relayed paths in whole nodes' states.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::gateways::Liveness;
use super::inputs::NodeInputs;
use super::nft::Atom;
use super::state::{DesiredState, RouteTarget, UdpPort};
use super::tests::{nft_accepts, show};
use super::{called, compile, fixtures, problems, watched};
use crate::wireguard::PublicKey;

fn key(node: &str) -> PublicKey {
    let byte = |n: usize| *node.as_bytes().get(n).unwrap_or(&0);
    PublicKey::from(std::array::from_fn(byte))
}

fn known(node: &str) -> Option<String> {
    let nodes = ["a-1", "b-1", "b-2", "r-1", "r-2"];
    nodes.contains(&node).then(|| key(node).to_string())
}

fn source() -> NodeInputs {
    fixtures::relayed(fixtures::stateless_source(), known)
}

/// Where `state` sends what is for `node`.
fn endpoint(state: &DesiredState, node: &str) -> SocketAddr {
    state.wireguard.as_ref().expect("a device").peers[&key(node)].endpoint
}

fn elements(state: &DesiredState, set: &str) -> BTreeSet<String> {
    let set = &state.ruleset.as_ref().expect("a table").sets[set];
    let render = |(k, v): (&Vec<Atom>, &Option<Atom>)| super::nft::Set::element(k, v.as_ref());
    set.elements.iter().map(render).collect()
}

fn texts<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

#[test]
fn an_end_calls_its_peers_at_the_relay() {
    let state = compile(&source());
    nft_accepts(&state);
    assert_eq!(endpoint(&state, "b-1").to_string(), "100.64.12.1:40002");
    assert_eq!(endpoint(&state, "b-2").to_string(), "100.64.12.1:40003");
    assert_eq!(
        endpoint(&state, "r-1").to_string(),
        "10.0.0.3:5713",
        "the relay itself directly"
    );
    assert_eq!(
        elements(&state, "doors4"),
        texts([
            "100.64.12.1 . 40002",
            "100.64.12.1 . 40003",
            "100.64.12.2 . 40002",
            "100.64.12.2 . 40003"
        ]),
        "the other relay's, too: the peer may answer through it"
    );
    assert!(elements(&state, "relayed4").is_empty());
    let mtu = |to: &str| {
        let to = to.parse::<std::net::IpAddr>().expect("address").into();
        let route = state
            .routes
            .iter()
            .find(|r| r.table == 254 && r.destination == to);
        match &route.expect("a route").target {
            RouteTarget::Device { mtu, .. } => *mtu,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        mtu("100.64.8.1"),
        1326,
        "1500 less 60, 60 and 50, filled up to 16"
    );
    assert_eq!(mtu("100.64.12.1"), 1390);
    let ports: Vec<UdpPort> = state.rules.iter().filter_map(|r| Some(r.udp?.1)).collect();
    assert_eq!(ports, [UdpPort::Source(5713), UdpPort::Destination(4799)]);
}

#[test]
fn a_relay_passes_on_what_it_is_told_to_and_nothing_else() {
    let state = compile(&fixtures::relay(1, known, true));
    insta::assert_snapshot!(show(&state));
    nft_accepts(&state);
    assert_eq!(
        elements(&state, "relay_to4"),
        texts([
            "100.64.4.1 . 40002 : 100.64.8.1",
            "100.64.8.1 . 40001 : 100.64.4.1"
        ])
    );
    assert_eq!(
        elements(&state, "relayed4"),
        texts(["100.64.4.1 . 100.64.8.1", "100.64.8.1 . 100.64.4.1"])
    );
    let state = compile(&fixtures::relay(1, known, false));
    nft_accepts(&state);
    for set in ["relay_to4", "relayed4", "relay_port4", "doors4"] {
        assert!(elements(&state, set).is_empty(), "{set}");
    }
    assert!(
        state
            .rules
            .iter()
            .all(|r| r.udp.is_some_and(|(_, p)| p == UdpPort::Destination(4799)))
    );
}

#[test]
fn of_several_relays_the_best_is_used() {
    let through = |alive: &[&str], retiring: &[&str], dead: &[&str]| {
        let set = |names: &[&str]| names.iter().map(|n| fixtures::node_ref("r", n)).collect();
        let mut inputs = source();
        inputs.liveness = Liveness {
            alive: set(alive),
            retiring: set(retiring),
            dead: set(dead),
            ..Liveness::default()
        };
        endpoint(&compile(&inputs), "b-1").ip().to_string()
    };
    assert_eq!(through(&[], &[], &[]), "100.64.12.1");
    assert_eq!(through(&["r-1", "r-2"], &[], &[]), "100.64.12.1");
    assert_eq!(through(&["r-2"], &[], &[]), "100.64.12.2", "one that answers");
    assert_eq!(through(&["r-2"], &["r-1"], &[]), "100.64.12.2");
    assert_eq!(through(&[], &["r-2"], &["r-1"]), "100.64.12.2");
    assert_eq!(
        through(&[], &[], &["r-1", "r-2"]),
        "100.64.12.1",
        "rather that than none"
    );
}

#[test]
fn relays_are_probed() {
    let names: Vec<String> = watched(&source()).into_keys().map(|n| n.to_string()).collect();
    assert_eq!(names, ["b/b-1", "b/b-2", "r/r-1", "r/r-2"]);
}

#[test]
fn who_cant_be_called_calls() {
    let mut inputs = fixtures::relayed(fixtures::stateless_gateway(), known);
    let names = |inputs: &NodeInputs| {
        called(inputs)
            .into_keys()
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
    };
    assert!(
        names(&inputs).is_empty(),
        "within a partition each finds the other"
    );
    let plan = inputs.plan.as_mut().expect("a plan");
    for peer in &mut plan.peers {
        peer.partition = "elsewhere".into();
    }
    assert_eq!(names(&inputs), ["a/a-1", "r/r-1", "r/r-2"]);
    inputs.plan.as_mut().expect("a plan").member.uncallable.clear();
    assert!(names(&inputs).is_empty());
}

#[test]
fn without_a_relay_that_can_be_used_nothing_is_sent_and_it_is_said() {
    let unknown = |node: &str| known(node).filter(|_| !node.starts_with('r'));
    let inputs = fixtures::relayed(fixtures::stateless_source(), unknown);
    let state = compile(&inputs);
    nft_accepts(&state);
    assert!(state.forwarding.is_empty());
    assert_eq!(state.wireguard, None);
    let problems = problems(&inputs).join("\n");
    assert!(
        problems.contains("the path to r/r-1 isn't ready yet"),
        "{problems}"
    );
    assert_eq!(elements(&state, "exposed4").len(), 4);
}

#[test]
fn a_node_that_can_be_called_needs_no_relay() {
    let mut inputs = source();
    inputs.plan.as_mut().expect("a plan").member.uncallable.clear();
    let state = compile(&inputs);
    assert_eq!(endpoint(&state, "b-1").to_string(), "10.0.0.2:5713");
    assert!(elements(&state, "doors4").is_empty());
}

proptest! {
    /// Whatever each end thinks of the relays: what it sends is passed on to the other, who takes it.
    #[test]
    fn ends_and_relays_agree(dead in any::<[[bool; 2]; 2]>()) {
        let relays = [1, 2].map(|n| compile(&fixtures::relay(n, known, true)));
        let liveness = |dead: [bool; 2]| Liveness {
            dead: (1..).zip(dead).filter(|(_, d)| *d).map(|(n, _)| fixtures::node_ref("r", &format!("r-{n}"))).collect(),
            ..Liveness::default()
        };
        let ends = [(source(), "b-1", "100.64.4.1"), (fixtures::relayed(fixtures::stateless_gateway(), known), "a-1", "100.64.8.1")];
        let states = [0, 1].map(|n| {
            let mut inputs = ends[n].0.clone();
            inputs.liveness = liveness(dead[n]);
            compile(&inputs)
        });
        for n in [0, 1] {
            let door = endpoint(&states[n], ends[n].1);
            let relay = &relays[usize::from(door.ip() != "100.64.12.1".parse::<std::net::IpAddr>().expect("address"))];
            let passed = format!("{} . {} : {}", ends[n].2, door.port(), ends[1 - n].2);
            prop_assert!(elements(relay, "relay_to4").contains(&passed), "{passed}");
            let port = elements(relay, "relay_port4");
            let port = port.iter().find_map(|e| e.strip_prefix(&format!("{} : ", ends[n].2))).expect("a port");
            let seen = format!("{} . {port}", door.ip());
            prop_assert!(elements(&states[1 - n], "doors4").contains(&seen), "{seen}");
        }
    }
}

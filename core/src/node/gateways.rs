//! Which of a gateway's nodes carry it, as this node sees it: what the plan says and what the probes found.
//!
//! Every node decides for itself and nobody is asked. Two that see it differently both forward rightly, since a
//! gateway's nodes all know the whole plan and keep no connection state.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use spillway_crds::hub::Translation;
use spillway_crds::member::{GatewayNodeState, NodeRef, PlannedGatewaySpec};

/// What this node's probes say of gateways' nodes, itself included. Empty where nothing was probed yet: then the
/// plan decides.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Liveness {
    /// Nodes that answer.
    pub alive: BTreeSet<NodeRef>,
    /// Nodes that don't, or not for long enough since they failed.
    pub dead: BTreeSet<NodeRef>,
    /// Nodes that answer and ask to be left: they forward what reaches them and take nothing new.
    pub retiring: BTreeSet<NodeRef>,
    /// Those of them that only leave their place to better ones, since a colleague doesn't count them yet. They haven't
    /// failed lately.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub yielding: BTreeSet<NodeRef>,
    /// Egress IPs that this node goes on answering for though another is to hold them, until that one says that it
    /// does.
    pub kept: BTreeSet<IpAddr>,
    /// How often this node was heard again after nobody had heard it for a while: what it announced meanwhile was lost.
    #[serde(default, skip_serializing_if = "super::state::is_zero")]
    pub heard_anew: u32,
}

/// How good a node is as a gateway's, best first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Rank {
    /// It says itself that it is ready.
    Answers,
    /// Its cluster says so. It may not have heard of the gateway yet, and would drop what is sent to it.
    Promised,
    /// It leaves its place to those, and to no others.
    Yields,
    /// It asks to be left, or is to be.
    Retires,
}

impl Liveness {
    /// `None` where the node can't be used at all.
    fn rank(&self, node: &NodeRef, state: GatewayNodeState) -> Option<Rank> {
        if self.dead.contains(node) {
            return None;
        }
        if state == GatewayNodeState::Draining {
            return Some(Rank::Retires);
        }
        if self.retiring.contains(node) {
            let yields = self.yielding.contains(node);
            return Some(if yields { Rank::Yields } else { Rank::Retires });
        }
        if self.alive.contains(node) {
            return Some(Rank::Answers);
        }
        (state == GatewayNodeState::Ready).then_some(Rank::Promised)
    }
}

/// Whether `node` is one of the gateway's, in whatever state.
pub fn includes(gateway: &PlannedGatewaySpec, node: &NodeRef) -> bool {
    gateway.nodes.iter().any(|n| n.node == *node)
}

/// Whether a gateway's packets are translated on their own node.
pub fn is_source_node(gateway: &PlannedGatewaySpec) -> bool {
    gateway.translation == Translation::SourceNode
}

/// Nodes that carry `gateway` now, in the plan's order: all that are equally good, none worse than another that is
/// there. Empty where it is unavailable.
pub fn carriers<'a>(gateway: &'a PlannedGatewaySpec, liveness: &Liveness) -> Vec<&'a NodeRef> {
    let usable: Vec<(Rank, &NodeRef)> = gateway
        .nodes
        .iter()
        .filter_map(|n| Some((liveness.rank(&n.node, n.state)?, &n.node)))
        .collect();
    let best = usable.iter().map(|(rank, _)| *rank).min();
    usable
        .into_iter()
        .filter(|(rank, _)| Some(*rank) == best)
        .map(|(_, node)| node)
        .collect()
}

/// The node among `carriers` that answers for `address`: the one that it is pinned to, if that is among them. Else by
/// rendezvous hash, so that a node's loss moves only what it held; a gateway that translates itself has its connections'
/// state on one node, the first.
pub fn holder<'a>(
    gateway: &PlannedGatewaySpec,
    carriers: &[&'a NodeRef],
    address: IpAddr,
) -> Option<&'a NodeRef> {
    match gateway.translation {
        Translation::GatewayNode => carriers.first().copied(),
        Translation::SourceNode => pinned(gateway, address)
            .and_then(|pin| carriers.iter().copied().find(|node| *node == pin))
            .or_else(|| carriers.iter().copied().max_by_key(|node| weight(address, node))),
    }
}

/// The node that `address` is pinned to, whatever state it is in.
pub fn pinned(gateway: &PlannedGatewaySpec, address: IpAddr) -> Option<&NodeRef> {
    if gateway.pins.is_empty() {
        return None;
    }
    let address = address.to_string();
    gateway
        .pins
        .iter()
        .find(|p| p.address == address)
        .map(|p| &p.node)
}

/// Rendezvous weight of `node` for `address` (Thaler and Ravishankar, 1998); the node's name breaks ties.
fn weight(address: IpAddr, node: &NodeRef) -> ([u8; 32], NodeRef) {
    let digest = Sha256::digest(format!("{address}/{node}"));
    (digest.into(), node.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spillway_crds::hub::AddressPin;
    use spillway_crds::member::GatewayNode;

    use super::*;

    fn node(name: &str) -> NodeRef {
        NodeRef::new("b", name)
    }

    fn gateway(nodes: &[(&str, GatewayNodeState)]) -> PlannedGatewaySpec {
        PlannedGatewaySpec {
            nodes: nodes
                .iter()
                .map(|(name, state)| GatewayNode {
                    node: node(name),
                    state: *state,
                })
                .collect(),
            ..PlannedGatewaySpec::default()
        }
    }

    fn set(names: &[&str]) -> BTreeSet<NodeRef> {
        names.iter().map(|n| node(n)).collect()
    }

    fn names(gateway: &PlannedGatewaySpec, liveness: &Liveness) -> Vec<String> {
        carriers(gateway, liveness)
            .into_iter()
            .map(|n| n.node.clone())
            .collect()
    }

    use GatewayNodeState::{Draining, NotReady, Ready};

    #[test]
    fn before_any_probe_the_plan_decides() {
        let none = Liveness::default();
        assert_eq!(
            names(&gateway(&[("1", Ready), ("2", NotReady), ("3", Draining)]), &none),
            ["1"]
        );
        assert!(names(&gateway(&[("2", NotReady)]), &none).is_empty());
        assert_eq!(names(&gateway(&[("2", NotReady), ("3", Draining)]), &none), ["3"]);
    }

    #[test]
    fn an_answer_counts_for_more_than_what_the_cluster_says() {
        let liveness = Liveness {
            alive: set(&["2"]),
            dead: set(&["1"]),
            ..Liveness::default()
        };
        assert_eq!(
            names(&gateway(&[("1", Ready), ("2", NotReady)]), &liveness),
            ["2"]
        );
    }

    #[test]
    fn a_node_that_was_only_announced_waits_until_it_says_that_it_is_ready() {
        let three = gateway(&[("1", Ready), ("2", Ready), ("3", Ready)]);
        let mut liveness = Liveness {
            alive: set(&["1"]),
            retiring: set(&["3"]),
            ..Liveness::default()
        };
        assert_eq!(names(&three, &liveness), ["1"]);
        liveness.alive.clear();
        assert_eq!(
            names(&three, &liveness),
            ["1", "2"],
            "better than one that retires"
        );
    }

    #[test]
    fn a_node_that_retires_is_used_where_there_is_no_other() {
        let two = gateway(&[("1", Ready), ("2", Draining)]);
        let mut liveness = Liveness {
            alive: set(&["1", "2"]),
            ..Liveness::default()
        };
        assert_eq!(names(&two, &liveness), ["1"]);
        liveness.dead = set(&["1"]);
        assert_eq!(names(&two, &liveness), ["2"]);
        liveness.dead = set(&["1", "2"]);
        assert!(names(&two, &liveness).is_empty());
    }

    #[test]
    fn a_node_that_yields_yields_to_none_that_failed_lately() {
        let two = gateway(&[("1", Ready), ("2", Ready)]);
        let mut liveness = Liveness {
            retiring: set(&["1", "2"]),
            yielding: set(&["2"]),
            ..Liveness::default()
        };
        assert_eq!(names(&two, &liveness), ["2"]);
        liveness.yielding = set(&["1", "2"]);
        assert_eq!(names(&two, &liveness), ["1", "2"], "all know of each other");
        let drained = gateway(&[("1", Ready), ("2", Draining)]);
        liveness.yielding = set(&["2"]);
        assert_eq!(
            names(&drained, &liveness),
            ["1", "2"],
            "which is more than yielding"
        );
    }

    #[test]
    fn a_nodes_loss_moves_only_what_it_held() {
        let three = gateway(&[("1", Ready), ("2", Ready), ("3", Ready)]);
        let all = carriers(&three, &Liveness::default());
        let two = [all[0], all[2]];
        let mut moved = 0;
        for last in 0..=255_u8 {
            let address = IpAddr::from([203, 0, 113, last]);
            let before = holder(&three, &all, address).expect("a holder");
            let after = holder(&three, &two, address).expect("a holder");
            if before == all[1] {
                moved += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert!((40..140).contains(&moved), "{moved} of 256 moved");
    }

    fn somewhere() -> impl Strategy<Value = (PlannedGatewaySpec, Liveness)> {
        let state = prop_oneof![Just(Ready), Just(NotReady), Just(Draining)];
        let nodes = prop::collection::vec((state, 0..5_u8), 0..4);
        let pins = prop::collection::btree_map(10..14_u8, 0..5_usize, 0..4);
        (nodes, pins).prop_map(|(nodes, pins)| {
            let name = |n: usize| node(&n.to_string());
            let mut liveness = Liveness::default();
            let mut gateway = PlannedGatewaySpec::default();
            for (n, (state, seen)) in nodes.into_iter().enumerate() {
                gateway.nodes.push(GatewayNode { node: name(n), state });
                match seen {
                    0 => drop(liveness.dead.insert(name(n))),
                    1 => drop(liveness.retiring.insert(name(n))),
                    2 | 3 => drop(liveness.alive.insert(name(n))),
                    _ => {}
                }
            }
            gateway.pins = pins
                .into_iter()
                .map(|(last, n)| AddressPin {
                    address: format!("203.0.113.{last}"),
                    node: name(n),
                })
                .collect();
            (gateway, liveness)
        })
    }

    proptest! {
        /// Pinned to whomever: an address has a holder while the gateway has a carrier, and that is the pinned one if it can.
        #[test]
        fn a_pin_leaves_no_address_without_a_holder((gateway, liveness) in somewhere(), last in 10..14_u8) {
            let address = IpAddr::from([203, 0, 113, last]);
            let carriers = carriers(&gateway, &liveness);
            let holder = holder(&gateway, &carriers, address);
            prop_assert_eq!(holder.is_some(), !carriers.is_empty());
            prop_assert!(holder.is_none_or(|h| carriers.contains(&h)));
            let pin = pinned(&gateway, address);
            if let Some(pin) = pin.filter(|p| carriers.contains(p)) {
                prop_assert_eq!(holder, Some(pin));
            } else {
                let bare = PlannedGatewaySpec { pins: Vec::new(), ..gateway.clone() };
                prop_assert_eq!(holder, super::holder(&bare, &carriers, address), "as if it weren't there");
            }
        }
    }
}

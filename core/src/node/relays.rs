//! Relays: nodes that neither can call the other talk through a third that both can call.
//!
//! ```text
//!  a ══ WireGuard a–b, to relay:port of b ══╗                             ╔═══ from relay:port of a ═══ b
//!  a ── WireGuard a–relay ──────────────────╨─► relay: b's port → b ──────╨── WireGuard relay–b ──► b
//! ```
//!
//! What a and b say to each other is encrypted between the two, and the relay has no key to it. To them the relay is an
//! endpoint like any other: its overlay address and the port that stands for the other node. They reach it through the
//! WireGuard that they share with it, which has dealt with NATs, so that the relay knows for certain whom a packet is from.
//! It passes on what the plan lets it, without a state: by source and port to the destination, with its own address and the
//! source's port instead. An end that takes another relay is followed by the other end, since WireGuard answers to
//! wherever it last heard somebody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use spillway_crds::member::NodeRef;

use super::encrypted::{Waiting, relayed_mtu};
use super::gateways::Liveness;
use super::inputs::{NodeInputs, NodePlan};
use super::peers::Peer;

/// This node's part in relaying.
#[derive(Clone, Debug, Default)]
pub(super) struct Relays {
    /// Nodes through which this one reaches others.
    pub(super) used: BTreeSet<NodeRef>,
    /// Relays' addresses, with the ports that stand for peers there.
    pub(super) doors: BTreeSet<(IpAddr, u16)>,
    /// What this node passes on: to whom, by source and port.
    pub(super) to: BTreeMap<(IpAddr, u16), IpAddr>,
    /// The port that stands for a source.
    pub(super) ports: BTreeMap<IpAddr, u16>,
}

impl Relays {
    /// Finds a relay for each of `others` that needs one. One that has none that can be used goes to `waiting`.
    pub(super) fn new(
        inputs: &NodeInputs,
        plan: &NodePlan,
        others: &mut BTreeMap<NodeRef, Peer>,
        waiting: &mut Vec<Waiting>,
    ) -> Self {
        let mut relays = Self::default();
        if plan.member.uncallable.contains(&inputs.node) {
            relays.reach(inputs, plan, others, waiting);
        }
        relays.pass_on(plan, others);
        relays
    }

    fn reach(
        &mut self,
        inputs: &NodeInputs,
        plan: &NodePlan,
        others: &mut BTreeMap<NodeRef, Peer>,
        waiting: &mut Vec<Waiting>,
    ) {
        for spec in plan.peers.iter().chain(&inputs.departed) {
            for node in spec.nodes.iter().filter(|n| !n.relays.is_empty()) {
                let name = NodeRef::new(&spec.member, &node.name);
                let usable: Vec<(&NodeRef, IpAddr)> = node
                    .relays
                    .iter()
                    .filter_map(|relay| Some((relay, others.get(relay).filter(|p| p.keys.is_some())?.remote)))
                    .collect();
                let best = usable
                    .iter()
                    .min_by_key(|(relay, _)| rank(relay, &inputs.liveness));
                let Some(peer) = others.get_mut(&name).filter(|p| p.keys.is_some()) else {
                    continue;
                };
                let Some((_, address)) = best.filter(|_| node.relay_port > 0) else {
                    waiting.push(Waiting {
                        underlay: peer.underlay,
                        reason: format!(
                            "it is reached through relays, and the path to {} isn't ready yet",
                            node.relays.first().map(ToString::to_string).unwrap_or_default()
                        ),
                        node: name.clone(),
                    });
                    others.remove(&name);
                    continue;
                };
                peer.endpoint = Some(SocketAddr::new(*address, node.relay_port));
                peer.mtu = relayed_mtu(peer.mtu, peer.remote);
                for (relay, address) in usable {
                    self.used.insert(relay.clone());
                    self.doors.insert((address, node.relay_port));
                }
            }
        }
    }

    fn pass_on(&mut self, plan: &NodePlan, others: &BTreeMap<NodeRef, Peer>) {
        let mut ends: BTreeMap<NodeRef, (IpAddr, u16)> = BTreeMap::new();
        for spec in &plan.peers {
            for node in spec.nodes.iter().filter(|n| n.relay_port > 0) {
                let name = NodeRef::new(&spec.member, &node.name);
                if let Some(peer) = others.get(&name).filter(|p| p.keys.is_some()) {
                    ends.insert(name, (peer.remote, node.relay_port));
                }
            }
        }
        for spec in &plan.peers {
            for node in &spec.nodes {
                let Some(one) = ends.get(&NodeRef::new(&spec.member, &node.name)) else {
                    continue;
                };
                for other in node.relayed.iter().filter_map(|name| ends.get(name)) {
                    for (from, to) in [(one, other), (other, one)] {
                        self.to.insert((from.0, to.1), to.0);
                        self.ports.insert(from.0, from.1);
                    }
                }
            }
        }
    }

    /// Whether this node sends to relays or is one.
    pub(super) fn any(&self) -> bool {
        !self.doors.is_empty() || !self.to.is_empty()
    }
}

/// How good a relay is, best first: it answers, nobody knows, it asks to be left, it doesn't answer.
fn rank(relay: &NodeRef, liveness: &Liveness) -> u8 {
    if liveness.dead.contains(relay) {
        3
    } else if liveness.retiring.contains(relay) {
        2
    } else {
        u8::from(!liveness.alive.contains(relay))
    }
}

//! What this node forwards for stateless gateways: who may leave with which port of an egress IP, and whose a reply
//! is.
//!
//! Every node of a gateway knows all of it. Which of them answers for an egress IP is the only difference, so that
//! whoever takes over has nothing to learn.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use spillway_crds::member::{PlannedGatewaySpec, PlannedIdentity};

use super::gateways::{carriers, holder, is_source_node};
use super::held::Taken;
use super::inputs::{Addresses, NodeInputs, NodePlan};
use super::own::shares;
use super::peers::{Mac, Peers};
use crate::slices::Ports;

/// What this node forwards.
#[derive(Clone, Debug, Default)]
pub(super) struct Forwarded {
    /// Egress IPs.
    pub(super) eips: BTreeSet<IpAddr>,
    /// Those that this node answers for, with their gateways.
    pub(super) answered: BTreeMap<IpAddr, String>,
    /// Ports that may come out of the tunnel, by peer, identity and egress IP.
    pub(super) grants: BTreeMap<(Mac, u16, IpAddr), Ports>,
    /// Whose the ports of an egress IP are; this node's own aren't among them.
    pub(super) replies: BTreeMap<(IpAddr, Mac), Ports>,
}

impl Forwarded {
    /// What the plan has this node forward, and what it was asked to forward until lately.
    pub(super) fn new(inputs: &NodeInputs, plan: &NodePlan, peers: &Peers) -> Self {
        let mut out = Self::default();
        let taken = Taken::new(inputs, plan, peers);
        let mine = |g: &&PlannedGatewaySpec| g.nodes.iter().any(|n| peers.is_self(&n.node));
        for gateway in plan.gateways.iter().filter(|g| is_source_node(g)).filter(mine) {
            let nodes = carriers(gateway, &inputs.liveness);
            for address in out.forward(inputs, gateway, peers, &taken) {
                let holds = holder(gateway, &nodes, address).is_some_and(|n| peers.is_self(n));
                if holds || inputs.liveness.kept.contains(&address) {
                    out.answered.insert(address, gateway.gateway.clone());
                }
            }
        }
        for left in inputs.leaving.iter().filter(|g| is_source_node(g)) {
            let now = plan.gateways.iter().find(|g| g.gateway == left.gateway);
            // Members that host a gateway are told of all its slices, also of those granted since.
            let hosted =
                |g: &&PlannedGatewaySpec| g.nodes.iter().any(|n| n.node.member == plan.member.member);
            // Until another has them.
            for address in out.forward(inputs, now.filter(hosted).unwrap_or(left), peers, &taken) {
                if inputs.liveness.kept.contains(&address) {
                    out.answered.insert(address, left.gateway.clone());
                }
            }
        }
        out
    }

    /// Adds a gateway's egress IPs that aren't there yet, and says which they are.
    fn forward(
        &mut self,
        inputs: &NodeInputs,
        gateway: &PlannedGatewaySpec,
        peers: &Peers,
        taken: &Taken,
    ) -> BTreeSet<IpAddr> {
        let usable = |a: &IpAddr| taken.by(*a).is_none() && !inputs.facts.is_own(*a);
        let mut leaves: BTreeMap<IpAddr, Vec<(u16, Vec<IpNet>)>> = BTreeMap::new();
        for identity in &gateway.identities {
            for address in Addresses::of(&identity.egress_ip).iter() {
                if self.eips.contains(&address) || !usable(&address) {
                    continue;
                }
                let granted = (identity.id, granted(identity));
                leaves.entry(address).or_default().push(granted);
            }
        }
        for slices in &gateway.slices {
            let Ok(address) = slices.address.parse() else {
                continue;
            };
            let Some(identities) = leaves.get(&address) else {
                continue;
            };
            for (node, share) in shares(slices) {
                let Some(peer) = peers.get(&node).filter(|_| !share.all.is_empty()) else {
                    continue;
                };
                self.replies.insert((address, peer.mac), share.all);
                let may = |(_, prefixes): &&(u16, Vec<IpNet>)| {
                    prefixes
                        .iter()
                        .any(|prefix| peer.overlay.iter().any(|a| prefix.contains(&a)))
                };
                for (id, _) in identities.iter().filter(may) {
                    self.grants.insert((peer.mac, *id, address), share.all);
                }
            }
        }
        let eips: BTreeSet<IpAddr> = leaves.into_keys().collect();
        self.eips.extend(&eips);
        eips
    }
}

/// Overlay prefixes of the nodes that the plan lets use `identity`.
fn granted(identity: &PlannedIdentity) -> Vec<IpNet> {
    let prefixes = identity.granted.iter().flat_map(|p| [&p.ipv4, &p.ipv6]);
    prefixes.flatten().filter_map(|p| p.parse().ok()).collect()
}

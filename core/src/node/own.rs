//! This node's own ports: what its pods' connections leave with where their own node translates them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use spillway_crds::hub::AddressSlices;
use spillway_crds::member::NodeRef;

use super::gateways::is_source_node;
use super::inputs::{Addresses, NodePlan};
use super::peers::Peers;
use crate::slices::Ports;

/// Ports of one egress IP that one node has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    /// For new connections.
    pub(super) usable: Ports,
    /// For new connections, and for those that began there earlier.
    pub(super) living: Ports,
    /// All that gateways must know of.
    pub(super) all: Ports,
}

/// Who has which ports of one egress IP. Of two that claim a port the first has it: the map of a port to its node
/// can't hold both, and nft would refuse everything else with it.
pub(super) fn shares(slices: &AddressSlices) -> BTreeMap<NodeRef, Share> {
    let mut taken = Ports::NONE;
    let mut out: BTreeMap<NodeRef, Share> = BTreeMap::new();
    for slice in &slices.slices {
        let [usable, draining, pending] =
            [&slice.ports, &slice.draining, &slice.pending].map(|r| Ports::within(r).minus(&taken));
        let living = usable.or(&draining);
        let all = living.or(&pending);
        taken = taken.or(&all);
        let share = out.entry(slice.owner()).or_default();
        share.usable = share.usable.or(&usable);
        share.living = share.living.or(&living);
        share.all = share.all.or(&all);
    }
    out
}

/// What of an address's ports is claimed twice.
pub(super) fn doubled(slices: &AddressSlices) -> Ports {
    let mut taken = Ports::NONE;
    let mut twice = Ports::NONE;
    for slice in &slices.slices {
        let all = [&slice.ports, &slice.draining, &slice.pending]
            .map(|r| Ports::within(r))
            .iter()
            .fold(Ports::NONE, |all, ports| all.or(ports));
        twice = twice.or(&taken.and(&all));
        taken = taken.or(&all);
    }
    twice
}

/// What this node may translate to.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    /// Its share of each egress IP.
    pub(super) shares: BTreeMap<IpAddr, Share>,
    /// Identities whose packets their own node translates, with their egress IPs.
    pub(super) identities: BTreeMap<u16, Addresses>,
}

impl Own {
    pub(super) fn new(plan: &NodePlan, peers: &Peers) -> Self {
        let mut own = Self::default();
        for gateway in plan.gateways.iter().filter(|g| is_source_node(g)) {
            for identity in &gateway.identities {
                own.identities
                    .insert(identity.id, Addresses::of(&identity.egress_ip));
            }
            for slices in &gateway.slices {
                let Ok(address) = slices.address.parse() else {
                    continue;
                };
                let mine = shares(slices).into_iter().find(|(node, _)| peers.is_self(node));
                if let Some((_, share)) = mine {
                    own.shares.insert(address, share);
                }
            }
        }
        own
    }

    /// The share of `address`; none of its ports where it has none.
    pub(super) fn share(&self, address: IpAddr) -> Share {
        self.shares.get(&address).copied().unwrap_or_default()
    }
}

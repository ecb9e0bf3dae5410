//! What this node does as a gateway that translates: the identities whose gateway it carries, who may use them, and
//! the egress IPs it answers for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use spillway_crds::member::{PlannedGatewaySpec, PlannedIdentity};

use super::compile::{NEVER, overlay_range};
use super::exits::{Exit, exit};
use super::gateways::is_source_node;
use super::inputs::{Addresses, NodeInputs, NodePlan};
use super::interval::Family;
use super::peers::Peers;

/// What this node holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    /// Egress IPs by identity.
    pub(super) identities: BTreeMap<u16, Addresses>,
    /// Egress IPs by who may use which identity.
    pub(super) granted: BTreeMap<(IpNet, u16), BTreeSet<IpAddr>>,
    /// Egress IPs that are no address of this node's own: nothing may be addressed to them once connection
    /// tracking has seen it.
    pub(super) guarded: BTreeSet<IpAddr>,
    /// All egress IPs, with their gateways.
    pub(super) answered: BTreeMap<IpAddr, String>,
}

impl Held {
    /// What the plan has this node hold: such a gateway is one node's, since its connections' state is there.
    pub(super) fn new(inputs: &NodeInputs, plan: &NodePlan, peers: &Peers) -> Self {
        let mut held = Self::default();
        let taken = Taken::new(inputs, plan, peers);
        let mine = |g: &&PlannedGatewaySpec| {
            !is_source_node(g) && matches!(exit(g, peers, &inputs.liveness), Exit::Here)
        };
        for gateway in plan.gateways.iter().filter(mine) {
            for identity in &gateway.identities {
                held.hold(inputs, gateway, identity, &taken);
            }
        }
        held.granted = widest(held.granted);
        held
    }

    fn hold(
        &mut self,
        inputs: &NodeInputs,
        gateway: &PlannedGatewaySpec,
        identity: &PlannedIdentity,
        taken: &Taken,
    ) {
        let egress = if gateway.node_ip {
            lent(inputs)
        } else {
            Addresses::of(&identity.egress_ip)
        };
        let egress = egress.without(|a| taken.by(a).is_some());
        self.identities.insert(identity.id, egress);
        self.answered
            .extend(egress.iter().map(|a| (a, gateway.gateway.clone())));
        self.guarded
            .extend(egress.iter().filter(|a| !inputs.facts.is_own(*a)));
        for prefix in identity.granted.iter().flat_map(|p| [&p.ipv4, &p.ipv6]).flatten() {
            let Ok(prefix) = prefix.parse::<IpNet>() else {
                continue;
            };
            let family = Family::of(prefix.addr());
            self.granted
                .entry((prefix.trunc(), identity.id))
                .or_default()
                .extend(egress.get(family));
        }
    }
}

/// The node's own addresses, as its cluster has them. One that no interface has would not be this node's to leave with.
pub(super) fn lent(inputs: &NodeInputs) -> Addresses {
    let node = inputs.nodes.get(&inputs.node);
    node.map(|n| Addresses::of(&n.underlay))
        .unwrap_or_default()
        .without(|a| !inputs.facts.is_own(a))
}

/// Without what lies within another prefix of the same identity: nft takes no overlapping elements, and refuses
/// all others with them.
fn widest(granted: BTreeMap<(IpNet, u16), BTreeSet<IpAddr>>) -> BTreeMap<(IpNet, u16), BTreeSet<IpAddr>> {
    let mut last: BTreeMap<u16, IpNet> = BTreeMap::new();
    // A prefix comes before all that lie within it.
    granted
        .into_iter()
        .filter(|((prefix, id), _)| {
            let within = last.get(id).is_some_and(|wide| wide.contains(prefix));
            if !within {
                last.insert(*id, *prefix);
            }
            !within
        })
        .collect()
}

/// Addresses that can't be egress IPs, since a route to them into the tunnel would cut this node off from what
/// has them.
pub(super) struct Taken<'a> {
    hosts: BTreeMap<IpAddr, String>,
    overlay: Vec<IpNet>,
    inputs: &'a NodeInputs,
}

impl<'a> Taken<'a> {
    pub(super) fn new(inputs: &'a NodeInputs, plan: &NodePlan, peers: &Peers) -> Self {
        let mut hosts = BTreeMap::new();
        for source in &inputs.network.sources {
            let nets = source.cidrs.iter().filter_map(|c| c.parse::<IpNet>().ok());
            for net in nets.filter(|n| n.prefix_len() == n.max_prefix_len()) {
                hosts.insert(
                    net.addr(),
                    format!("an address of this cluster ({})", source.source),
                );
            }
        }
        // Another partition may have this node's own address as well.
        let others = peers
            .underlays()
            .filter(|(_, remote)| Some(*remote) != peers.own_underlay());
        for (node, remote) in others {
            hosts.insert(remote, format!("the address of node {node}"));
        }
        for (node, spec) in &inputs.nodes {
            for address in Addresses::of(&spec.underlay).iter() {
                hosts.insert(address, format!("the address of node {node}"));
            }
        }
        Self {
            hosts,
            overlay: overlay_range(plan),
            inputs,
        }
    }

    /// What has `address`, in words. This node's own addresses are nobody else's.
    pub(super) fn by(&self, address: IpAddr) -> Option<&str> {
        let never = |range: &str| range.parse::<IpNet>().is_ok_and(|range| range.contains(&address));
        if NEVER.into_iter().any(never) || address.is_unspecified() {
            Some("no unicast address")
        } else if self.overlay.iter().any(|range| range.contains(&address)) {
            Some("in the federation's overlay range")
        } else if self.inputs.facts.is_own(address) {
            None
        } else {
            self.hosts.get(&address).map(String::as_str)
        }
    }
}

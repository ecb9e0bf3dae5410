//! The tunnel device and the nodes at its far ends.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use spillway_crds::address::AddressPair;
use spillway_crds::member::NodeRef;

use super::inputs::{Addresses, NodeInputs, NodePlan};
use super::interval::Family;
use super::state::{DesiredState, ForwardingEntry, Neighbour, Route, RouteTarget, TunnelDevice};

/// Number of the main routing table.
pub(super) const MAIN: u32 = 254;
/// Metric of our routes; any but 0, which IPv6 doesn't have.
pub(super) const METRIC: u32 = 100;

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// A node at the tunnel's far end.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) overlay: Addresses,
    pub(super) remote: IpAddr,
    pub(super) mac: [u8; 6],
}

/// This node's own end of the tunnel.
#[derive(Clone, Debug)]
struct Own {
    overlay: Addresses,
    local: IpAddr,
    mac: [u8; 6],
}

/// All tunnel ends that matter to this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    me: NodeRef,
    own: Option<Own>,
    others: BTreeMap<NodeRef, Peer>,
    /// Nodes left out because another has their overlay address, with that address and the other.
    pub(super) doubles: Vec<(NodeRef, IpAddr, NodeRef)>,
}

impl Peers {
    /// Nodes of this cluster and of the plan's peers, as far as this node can send to them: one device's
    /// underlay is of one family, IPv4 where the node has it.
    pub(super) fn new(inputs: &NodeInputs, plan: &NodePlan) -> Self {
        let me = NodeRef::new(&plan.member.member, &inputs.node);
        let Some(own) = inputs.nodes.get(&inputs.node).and_then(|spec| {
            let overlay = Addresses::of(&spec.overlay);
            Some(Own {
                local: Addresses::of(&spec.underlay).iter().next()?,
                mac: mac(&overlay)?,
                overlay,
            })
        }) else {
            return Self {
                me,
                ..Self::default()
            };
        };
        let family = Family::of(own.local);
        let siblings = inputs.nodes.iter().map(|(name, spec)| {
            (
                plan.member.member.as_str(),
                name.as_str(),
                &spec.overlay,
                &spec.underlay,
            )
        });
        // The departed last: whoever has their addresses now keeps them.
        let foreign = plan.peers.iter().chain(&inputs.departed).flat_map(|p| {
            p.nodes
                .iter()
                .map(|n| (p.member.as_str(), n.name.as_str(), &n.overlay, &n.underlay))
        });
        let found = siblings
            .chain(foreign)
            .filter_map(|(member, node, overlay, underlay)| {
                let name = NodeRef::new(member, node);
                Some((name, peer(overlay, underlay, family)?))
            })
            .filter(|(name, peer)| *name != me && peer.remote != own.local);
        let is_departed = |name: &NodeRef| {
            let mut departed = inputs.departed.iter().filter(|p| p.member == name.member);
            departed.any(|p| p.nodes.iter().any(|n| n.name == name.node))
        };
        // Two behind one address would take each other's place in the kernel for ever.
        let mut owners: BTreeMap<IpAddr, NodeRef> =
            own.overlay.iter().map(|address| (address, me.clone())).collect();
        let mut others = BTreeMap::new();
        let mut doubles = Vec::new();
        for (name, peer) in found {
            let owner = |address: &IpAddr| owners.get(address).filter(|owner| **owner != name);
            if let Some(address) = peer.overlay.iter().find(|a| owner(a).is_some()) {
                let owner = owner(&address).cloned().unwrap_or_default();
                if !is_departed(&name) {
                    doubles.push((name, address, owner));
                }
                continue;
            }
            owners.extend(peer.overlay.iter().map(|address| (address, name.clone())));
            others.insert(name, peer);
        }
        Self {
            me,
            own: Some(own),
            others,
            doubles,
        }
    }

    pub(super) fn is_self(&self, node: &NodeRef) -> bool {
        self.own.is_some() && *node == self.me
    }

    pub(super) fn get(&self, node: &NodeRef) -> Option<&Peer> {
        self.others.get(node)
    }

    pub(super) fn own_overlay(&self) -> Addresses {
        self.own.as_ref().map(|o| o.overlay).unwrap_or_default()
    }

    /// The other nodes.
    pub(super) fn others(&self) -> impl Iterator<Item = &Peer> {
        self.others.values()
    }

    /// Addresses of the other nodes.
    pub(super) fn underlays(&self) -> impl Iterator<Item = (&NodeRef, IpAddr)> {
        self.others.iter().map(|(node, peer)| (node, peer.remote))
    }

    /// The device, forwarding entries, neighbours, and a route to every peer's overlay address: replies
    /// that a gateway has translated back take it.
    pub(super) fn program(&self, inputs: &NodeInputs, plan: &NodePlan, state: &mut DesiredState) {
        let Some(own) = &self.own else {
            return;
        };
        let settings = &inputs.settings;
        let ipv6 = !inputs.facts.without_ipv6;
        state.tunnel = Some(TunnelDevice {
            name: settings.device.clone(),
            vni: plan.member.tunnel.vni,
            port: plan.member.tunnel.port,
            mac: own.mac,
            mtu: tunnel_mtu(inputs, own.local),
            local: own.local,
            addresses: own
                .overlay
                .iter()
                .filter(|a| a.is_ipv4() || ipv6)
                .map(IpNet::from)
                .collect(),
        });
        for peer in self.others.values() {
            state.forwarding.insert(ForwardingEntry {
                mac: peer.mac,
                remote: peer.remote,
            });
            for address in peer.overlay.iter().filter(|a| a.is_ipv4() || ipv6) {
                state.neighbours.insert(Neighbour {
                    address,
                    mac: peer.mac,
                });
                state.routes.insert(Route {
                    table: MAIN,
                    destination: address.into(),
                    metric: METRIC,
                    target: RouteTarget::Device {
                        device: settings.device.clone(),
                        via: None,
                        mtu: 0,
                    },
                });
            }
        }
    }
}

fn peer(overlay: &AddressPair, underlay: &AddressPair, family: Family) -> Option<Peer> {
    let overlay = Addresses::of(overlay);
    Some(Peer {
        remote: Addresses::of(underlay).get(family)?,
        mac: mac(&overlay)?,
        overlay,
    })
}

/// A locally administered MAC that every node derives alike: 02:53 and the IPv4 overlay address, or a
/// digest of the IPv6 one where there is no other.
fn mac(overlay: &Addresses) -> Option<[u8; 6]> {
    let low = match overlay.iter().next()? {
        IpAddr::V4(a) => a.octets(),
        IpAddr::V6(a) => {
            let digest = Sha256::digest(a.octets());
            [digest[0], digest[1], digest[2], digest[3]]
        }
    };
    Some([0x02, 0x53, low[0], low[1], low[2], low[3]])
}

/// Bytes that the encapsulation adds: Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40.
const fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// The MTU of the device that bears the underlay address, less the encapsulation.
fn tunnel_mtu(inputs: &NodeInputs, local: IpAddr) -> u32 {
    let facts = &inputs.facts;
    let uplink = facts.device_of(local).or_else(|| facts.uplink_for(local));
    let mtu = uplink.and_then(|d| facts.links.get(d)).map_or(1500, |l| l.mtu);
    // IPv6 needs 1280 bytes on every link.
    mtu.saturating_sub(overhead(Family::of(local))).max(1280)
}

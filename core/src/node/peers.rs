//! The tunnel device and the nodes at its far ends.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use spillway_crds::address::AddressPair;
use spillway_crds::member::NodeRef;

use super::encrypted::{Claims, Keys, Waiting, device_mtu};
use super::inputs::{Addresses, NodeInputs, NodePlan};
use super::interval::Family;
use super::relays::Relays;
use super::state::{DesiredState, ForwardingEntry, Neighbour, Route, RouteTarget, TunnelDevice};
use crate::wireguard::PublicKey;

/// Number of the main routing table.
pub(super) const MAIN: u32 = 254;
/// Metric of our routes; any but 0, which IPv6 doesn't have.
pub(super) const METRIC: u32 = 100;
/// Metric of what stands below the routes of a table, so that a lookup never falls through to the main one.
pub(super) const LAST_RESORT: u32 = 1_000_000;
/// Bytes that the encapsulation adds: Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40.
pub(super) const VXLAN: Overhead = Overhead { v4: 50, v6: 70 };

/// Bytes that an encapsulation adds over an underlay of either family.
pub(super) struct Overhead {
    v4: u32,
    v6: u32,
}

impl Overhead {
    pub(super) const fn of(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// A node at the tunnel's far end.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) overlay: Addresses,
    /// Where the tunnel's packets are sent and come from: its underlay address, or on an encrypted path its overlay
    /// address, to which WireGuard leads.
    pub(super) remote: IpAddr,
    pub(super) underlay: IpAddr,
    /// Where its WireGuard is reached, if not at its underlay address.
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) mac: [u8; 6],
    /// Its keys, where the path is encrypted.
    pub(super) keys: Option<Keys>,
    /// MTU of the path, 0 for the tunnel device's own.
    pub(super) mtu: u32,
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
    /// Nodes left out because the path to them must be encrypted and can't be.
    pub(super) waiting: Vec<Waiting>,
    /// MTU of the WireGuard device.
    pub(super) wireguard_mtu: u32,
    /// Whom this node reaches through others, and between whom it passes packets on.
    pub(super) relays: Relays,
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
        let wireguard_mtu = device_mtu(underlay_mtu(inputs, own.local), family);
        let siblings = inputs.nodes.iter().map(|(name, spec)| End {
            node: NodeRef::new(&plan.member.member, name),
            overlay: &spec.overlay,
            underlay: &spec.underlay,
            endpoint: None,
            keys: plan
                .member
                .encrypted
                .then(|| inputs.public_keys.get(name).map_or(&[][..], Vec::as_slice)),
        });
        // The departed last: whoever has their addresses now keeps them.
        let foreign = plan.peers.iter().chain(&inputs.departed).flat_map(|p| {
            p.nodes.iter().map(|n| End {
                node: NodeRef::new(&p.member, &n.name),
                overlay: &n.overlay,
                underlay: &n.underlay,
                endpoint: n.endpoint.as_ref().and_then(|e| e.parse().ok()),
                keys: p.encrypted.then_some(n.public_keys.as_slice()),
            })
        });
        let ends: Vec<End<'_>> = siblings.chain(foreign).filter(|end| end.node != me).collect();
        let claimed = Claims::new(&ends);
        let mut waiting = Vec::new();
        let mut found = Vec::new();
        for end in ends {
            // Another partition may have this node's own address as well: whoever can calls the other's endpoint.
            let distinct = |a: &IpAddr| *a != own.local || end.keys.is_some();
            let Some(underlay) = Addresses::of(end.underlay).get(family).filter(distinct) else {
                continue;
            };
            let built = match own.overlay.get(family) {
                None if end.keys.is_some() => {
                    Err("this node has no overlay address of its underlay's family".into())
                }
                _ => peer(&end, underlay, &claimed, wireguard_mtu),
            };
            match built {
                Ok(peer) => found.extend(peer.map(|peer| (end.node, peer))),
                Err(reason) => waiting.push(Waiting {
                    node: end.node,
                    underlay,
                    reason,
                }),
            }
        }
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
        let relays = Relays::new(inputs, plan, &mut others, &mut waiting);
        Self {
            me,
            own: Some(own),
            relays,
            others,
            doubles,
            waiting,
            wireguard_mtu,
        }
    }

    /// This node's underlay address.
    pub(super) fn own_underlay(&self) -> Option<IpAddr> {
        self.own.as_ref().map(|own| own.local)
    }

    /// Family of the underlay.
    pub(super) fn underlay_family(&self) -> Option<Family> {
        self.own.as_ref().map(|own| Family::of(own.local))
    }

    /// The least MTU of a path, where one has less than the tunnel device.
    pub(super) fn least_mtu(&self) -> Option<u32> {
        self.others.values().map(|p| p.mtu).filter(|mtu| *mtu > 0).min()
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
        self.others.iter().map(|(node, peer)| (node, peer.underlay))
    }

    /// Nodes with encrypted paths and the keys that these are encrypted to.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&NodeRef, PublicKey)> {
        self.others
            .iter()
            .filter_map(|(node, peer)| Some((node, peer.keys.as_ref()?.current)))
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
            without_checksums: self.must_encrypt(),
            addresses: own
                .overlay
                .iter()
                .filter(|a| a.is_ipv4() || ipv6)
                .map(IpNet::from)
                .collect(),
        });
        self.encrypt(inputs, plan, own.local, state);
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
                        mtu: peer.mtu,
                    },
                });
            }
        }
    }
}

/// A node as the plan or the cluster names it.
pub(super) struct End<'a> {
    pub(super) node: NodeRef,
    overlay: &'a AddressPair,
    underlay: &'a AddressPair,
    /// Where its WireGuard is reached, if not there.
    endpoint: Option<SocketAddr>,
    /// Its public keys, where the path must be encrypted.
    pub(super) keys: Option<&'a [String]>,
}

/// `None` for a node that can't be sent to, the reason for one that waits for its key.
fn peer(
    end: &End<'_>,
    underlay: IpAddr,
    claimed: &Claims,
    wireguard_mtu: u32,
) -> Result<Option<Peer>, String> {
    let overlay = Addresses::of(end.overlay);
    let Some(mac) = mac(&overlay) else {
        return Ok(None);
    };
    let keys = end.keys.map(|keys| claimed.of(&end.node, keys)).transpose()?;
    let remote = match keys {
        Some(_) => overlay.get(Family::of(underlay)),
        None => Some(underlay),
    };
    Ok(remote.map(|remote| Peer {
        overlay,
        remote,
        underlay,
        endpoint: end.endpoint,
        mac,
        mtu: match keys {
            Some(_) => wireguard_mtu - VXLAN.of(Family::of(underlay)),
            None => 0,
        },
        keys,
    }))
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

/// The MTU of the device that bears the underlay address.
fn underlay_mtu(inputs: &NodeInputs, local: IpAddr) -> u32 {
    let facts = &inputs.facts;
    let uplink = facts.device_of(local).or_else(|| facts.uplink_for(local));
    uplink.and_then(|d| facts.links.get(d)).map_or(1500, |l| l.mtu)
}

/// The same less the encapsulation.
fn tunnel_mtu(inputs: &NodeInputs, local: IpAddr) -> u32 {
    // IPv6 needs 1280 bytes on every link.
    underlay_mtu(inputs, local)
        .saturating_sub(VXLAN.of(Family::of(local)))
        .max(1280)
}

//! What a node's kernel must hold. Compared with what it does hold by `spillway-dataplane`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::flows::Flows;
use super::nft::Ruleset;
use crate::wireguard::PublicKey;

/// Everything of ours in one node's kernel. Equal values need no write.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct DesiredState {
    /// The tunnel device; absent where the node has nobody to talk to, or after a teardown.
    pub tunnel: Option<TunnelDevice>,
    /// The device under encrypted paths. Absent where none of them can be up yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireGuardDevice>,
    /// Static forwarding entries of the tunnel device: which underlay address a MAC is behind.
    pub forwarding: BTreeSet<ForwardingEntry>,
    /// Permanent neighbours on the tunnel device.
    pub neighbours: BTreeSet<Neighbour>,
    /// Routes, all with our protocol number.
    pub routes: BTreeSet<Route>,
    /// Policy rules, all with our protocol number.
    pub rules: BTreeSet<Rule>,
    /// Addresses that this node answers neighbour requests for without owning them (egress IPs it holds).
    pub proxies: BTreeSet<ProxyNeighbour>,
    /// Kernel settings below /proc/sys, written with slashes: `net/ipv4/conf/spillway0/rp_filter` → `2`.
    pub sysctls: BTreeMap<String, String>,
    /// Our nftables table. Absent after a teardown.
    pub ruleset: Option<Ruleset>,
    /// The table that drops what gets past the first one while somebody has deleted that. It is written first and goes
    /// last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seal: Option<Ruleset>,
    /// The `netdev` table of the same name, whose chain gives replies their way to the peer: it hooks into the tunnel
    /// device's egress, and so can be there only after the device. Absent where this node carries no stateless gateway.
    pub steering: Option<Ruleset>,
    /// Egress IPs that this node answers for now, with their gateways. For the node's status; the kernel knows them
    /// as `proxies`.
    pub held: BTreeMap<IpAddr, String>,
    /// Which connection-tracking entries agree with all that. After an apply, entries for which
    /// [`Flows::cut`] is true are deleted.
    #[serde(skip)]
    pub flows: Flows,
}

/// A VXLAN device with the GBP extension, without learning.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct TunnelDevice {
    /// Interface name.
    pub name: String,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// MAC address, derived from the overlay address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// Underlay address the tunnel's packets leave with.
    pub local: IpAddr,
    /// Its packets bear no UDP checksum, as RFC 7348 would have it (RFC 6935 for IPv6). Where an encrypted path changes their
    /// source, nft can't put one right that covers an inner packet whose own is still to be filled in.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub without_checksums: bool,
    /// Addresses on the device, host prefixes.
    pub addresses: BTreeSet<IpNet>,
}

/// A WireGuard device.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct WireGuardDevice {
    /// Interface name.
    pub name: String,
    /// UDP port it is reached at.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
    /// The node's overlay address of the underlay's family, a host prefix. The tunnel device has it as well; without one
    /// here the kernel's reverse path filter takes nothing from the device, not even a loose one
    /// (`__fib_validate_source()` in net/ipv4/fib_frontend.c).
    pub address: IpNet,
    /// Peers by public key. Never empty.
    pub peers: BTreeMap<PublicKey, WireGuardPeer>,
}

impl WireGuardDevice {
    /// Keys of the peers that are called through another peer, a relay.
    pub fn relayed(&self) -> BTreeSet<PublicKey> {
        let addresses: BTreeSet<IpAddr> = self.peers.values().filter_map(|p| p.address).collect();
        let relayed = self
            .peers
            .iter()
            .filter(|(_, p)| addresses.contains(&p.endpoint.ip()));
        relayed.map(|(key, _)| *key).collect()
    }
}

/// One peer of a WireGuard device.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct WireGuardPeer {
    /// Where its packets are sent until it is heard from elsewhere.
    pub endpoint: SocketAddr,
    /// The one address that it may send from and that is sent to it; none for a key that isn't in use yet.
    pub address: Option<IpAddr>,
    /// Seconds between packets that only keep the way open.
    pub keepalive: u16,
}

/// `bridge fdb add MAC dev TUNNEL dst UNDERLAY`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ForwardingEntry {
    /// The peer's MAC on the tunnel device.
    pub mac: [u8; 6],
    /// The peer's underlay address; on an encrypted path its overlay address, to which WireGuard leads.
    pub remote: IpAddr,
}

/// `ip neigh add ADDRESS lladdr MAC dev TUNNEL nud permanent`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Neighbour {
    /// The peer's overlay address.
    pub address: IpAddr,
    /// The peer's MAC on the tunnel device.
    pub mac: [u8; 6],
}

/// A route.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Route {
    /// Table number; 254 is main.
    pub table: u32,
    /// Destination.
    pub destination: IpNet,
    /// Metric. IPv6 has no metric 0: the kernel stores 1024 for it.
    pub metric: u32,
    /// Where packets go.
    pub target: RouteTarget,
}

/// Where a route leads.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum RouteTarget {
    /// Through an interface, to a next hop that is on link, or directly.
    Device {
        /// Interface name.
        device: String,
        /// Next hop; `onlink`.
        via: Option<IpAddr>,
        /// Path MTU to record, 0 for the device's own.
        mtu: u32,
    },
    /// Through one interface to several next hops on link, of which each flow takes one (RFC 2992).
    Spread {
        /// Interface name.
        device: String,
        /// Next hops, two or more, of equal weight.
        via: BTreeSet<IpAddr>,
        /// Path MTU to record, 0 for the device's own.
        #[serde(skip_serializing_if = "is_zero")]
        mtu: u32,
    },
    /// `unreachable`: what a gateway's table holds below its default route, so that a lookup never falls
    /// through to the main table.
    Unreachable,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
pub(super) fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// `ip rule add pref P fwmark M/MASK lookup TABLE`, or `… to PREFIX ipproto udp {sport|dport} PORT lookup TABLE`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Rule {
    /// True for the IPv6 rule.
    pub ipv6: bool,
    /// Preference; lower comes first.
    pub priority: u32,
    /// Mark.
    pub mark: u32,
    /// Which bits of the mark count; 0 for any mark.
    pub mask: u32,
    /// Only for UDP to these addresses, to or from this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<(IpNet, UdpPort)>,
    /// Table to look up.
    pub table: u32,
}

/// A port of UDP packets.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum UdpPort {
    /// They are sent from it.
    Source(u16),
    /// They are sent to it.
    Destination(u16),
}

/// `ip neigh add proxy ADDRESS dev DEVICE`; a new one is announced with gratuitous ARP or an unsolicited
/// neighbour advertisement.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ProxyNeighbour {
    /// The egress IP.
    pub address: IpAddr,
    /// The interface on which it is answered.
    pub device: String,
}

/// What the node is like, as its kernel says. Input to the compiler, never desired.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Facts {
    /// Interfaces that are no loopback, our tunnel device left out, by name.
    pub links: BTreeMap<String, LinkFacts>,
    /// Interface of the main table's IPv4 default route with the lowest metric.
    pub default_device4: Option<String>,
    /// The same for IPv6.
    pub default_device6: Option<String>,
    /// The kernel has no IPv6, so nothing of that family can be programmed but nftables sets.
    #[serde(default)]
    pub without_ipv6: bool,
}

/// One interface.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LinkFacts {
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses with their on-link prefixes, such as 192.0.2.7/24. IPv6 link-local ones are left out.
    pub addresses: BTreeSet<IpNet>,
}

impl Facts {
    /// The interface that has `address`.
    pub fn device_of(&self, address: IpAddr) -> Option<&str> {
        self.links
            .iter()
            .find(|(_, l)| l.addresses.iter().any(|a| a.addr() == address))
            .map(|(name, _)| name.as_str())
    }

    /// True where one of the node's interfaces has `address`.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.device_of(address).is_some()
    }

    /// The interface on which neighbours of `address` are: the one with the longest on-link prefix that
    /// contains it, else the one with the default route of its family.
    pub fn uplink_for(&self, address: IpAddr) -> Option<&str> {
        let on_link = self
            .links
            .iter()
            .flat_map(|(name, l)| l.addresses.iter().map(move |a| (a.prefix_len(), name, a)))
            .filter(|(_, _, a)| a.contains(&address))
            .max_by(|(x, a, _), (y, b, _)| x.cmp(y).then(b.cmp(a)));
        let default = || match address {
            IpAddr::V4(_) => self.default_device4.as_ref(),
            IpAddr::V6(_) => self.default_device6.as_ref().or(self.default_device4.as_ref()),
        };
        on_link
            .map(|(_, name, _)| name)
            .or_else(default)
            .map(String::as_str)
    }
}

//! Encrypted paths: WireGuard under the tunnel.
//!
//! ```text
//! VXLAN ──► to the peer's overlay address ──► rule for UDP to the tunnel's port there ──► table ──► WireGuard device
//! ```
//!
//! The tunnel's packets to such a peer are addressed to its overlay address, which is unique in the federation where
//! underlay addresses needn't be. `raw_out` gives them this node's overlay address as source, and WireGuard takes
//! exactly that from exactly that peer, so that all that is checked of a path in the clear holds here, too. Where the
//! device or its route is missing, the table says `unreachable`, and the guards let nothing out by another device.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use spillway_crds::member::NodeRef;

use super::compile::overlay_range;
use super::inputs::{NodeInputs, NodePlan};
use super::interval::Family;
use super::peers::{End, LAST_RESORT, METRIC, Peers, VXLAN};
use super::state::{DesiredState, Route, RouteTarget, Rule, UdpPort, WireGuardDevice, WireGuardPeer};
use crate::wireguard::PublicKey;

/// Seconds between packets that only keep a path open: below the shortest time for which a NAT usually remembers a UDP
/// flow (30 s), as WireGuard itself recommends. It also has a peer that lost its keys notice within that time.
const KEEPALIVE: u16 = 25;

/// Longest packet of an underlay that an encrypted path makes use of: what WireGuard in userspace has room for.
const LONGEST: u32 = 4_096;

/// A peer's public keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) current: PublicKey,
    /// Is about to take the other's place.
    next: Option<PublicKey>,
}

/// A node that nothing can be sent to, since the path to it must be encrypted.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) node: NodeRef,
    pub(super) underlay: IpAddr,
    pub(super) reason: String,
}

/// Whose each public key is.
pub(super) struct Claims(BTreeMap<PublicKey, BTreeSet<NodeRef>>);

impl Claims {
    pub(super) fn new<'a>(ends: impl IntoIterator<Item = &'a End<'a>>) -> Self {
        let mut claims: BTreeMap<PublicKey, BTreeSet<NodeRef>> = BTreeMap::new();
        for end in ends {
            for key in end.keys.into_iter().flatten().filter_map(|k| k.parse().ok()) {
                claims.entry(key).or_default().insert(end.node.clone());
            }
        }
        Self(claims)
    }

    /// The keys of `node`. One that two nodes claim is nobody's: WireGuard would take the one for the other.
    pub(super) fn of(&self, node: &NodeRef, keys: &[String]) -> Result<Keys, String> {
        let read = |key: &String| -> Result<PublicKey, String> {
            let key: PublicKey = key
                .parse()
                .map_err(|_| format!("its public key {key:?} is none"))?;
            match self.0.get(&key).into_iter().flatten().find(|n| *n != node) {
                Some(other) => Err(format!("node {other} claims its public key {key}, too")),
                None => Ok(key),
            }
        };
        let current = keys.first().ok_or("its public key isn't known yet")?;
        Ok(Keys {
            current: read(current)?,
            next: keys.get(1).and_then(|k| read(k).ok()),
        })
    }
}

/// Bytes that WireGuard adds: 16 of header, 16 of authentication, UDP 8, and IPv4 20 or IPv6 40.
const fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 60,
        Family::V6 => 80,
    }
}

/// MTU of the WireGuard device over an underlay with MTU `underlay`. With the tunnel's own headers it holds the 1280
/// bytes that IPv6 needs.
pub(super) fn device_mtu(underlay: u32, family: Family) -> u32 {
    let least = 1280 + VXLAN.of(family);
    underlay.min(LONGEST).saturating_sub(overhead(family)).max(least)
}

/// MTU of a path through a relay, where a direct one to `remote` has `direct`: WireGuard lies in WireGuard. WireGuard fills
/// up to multiples of 16 bytes, and what it fills must have room, too.
pub(super) fn relayed_mtu(direct: u32, remote: IpAddr) -> u32 {
    let family = Family::of(remote);
    let tunnel = VXLAN.of(family);
    let inner = (direct + tunnel).saturating_sub(overhead(family));
    (inner / 16 * 16).saturating_sub(tunnel).max(1280)
}

impl Peers {
    /// The WireGuard device, the table that leads into it and its rule.
    pub(super) fn encrypt(
        &self,
        inputs: &NodeInputs,
        plan: &NodePlan,
        local: IpAddr,
        state: &mut DesiredState,
    ) {
        let mut peers = BTreeMap::new();
        let settings = &inputs.settings;
        let table = settings.table_base;
        let family = Family::of(local);
        for peer in self.others() {
            let Some(keys) = &peer.keys else { continue };
            let to = |address| WireGuardPeer {
                endpoint: peer
                    .endpoint
                    .unwrap_or_else(|| SocketAddr::new(peer.underlay, plan.member.tunnel.wireguard_port)),
                address,
                keepalive: if address.is_some() { KEEPALIVE } else { 0 },
            };
            peers.extend(keys.next.map(|key| (key, to(None))));
            peers.insert(keys.current, to(Some(peer.remote)));
            state.routes.insert(Route {
                table,
                destination: peer.remote.into(),
                metric: METRIC,
                target: RouteTarget::Device {
                    device: settings.wireguard.clone(),
                    via: None,
                    mtu: 0,
                },
            });
        }
        if !self.must_encrypt() {
            return;
        }
        for range in overlay_range(plan)
            .into_iter()
            .filter(|r| Family::of(r.addr()) == family)
        {
            let tunnel = &plan.member.tunnel;
            // Relays take WireGuard's own packets in WireGuard.
            let relayed = self
                .relays
                .any()
                .then_some(UdpPort::Source(tunnel.wireguard_port));
            for port in relayed.into_iter().chain([UdpPort::Destination(tunnel.port)]) {
                state.rules.insert(Rule {
                    ipv6: family == Family::V6,
                    priority: settings.rule_base,
                    mark: 0,
                    mask: 0,
                    udp: Some((range, port)),
                    table,
                });
            }
        }
        state.routes.insert(Route {
            table,
            destination: family.everything(),
            metric: LAST_RESORT,
            target: RouteTarget::Unreachable,
        });
        let Some(address) = self.own_overlay().get(family).filter(|_| !peers.is_empty()) else {
            return;
        };
        // What it brings in comes from addresses that the main table has behind the tunnel.
        let device = &settings.wireguard;
        state
            .sysctls
            .insert(format!("net/ipv4/conf/{device}/rp_filter"), "2".into());
        state.wireguard = Some(WireGuardDevice {
            name: device.clone(),
            port: plan.member.tunnel.wireguard_port,
            mtu: self.wireguard_mtu,
            address: address.into(),
            peers,
        });
    }

    /// Whether some path must be encrypted, if only one that can't be yet.
    pub(super) fn must_encrypt(&self) -> bool {
        !self.waiting.is_empty() || self.others().any(|p| p.keys.is_some())
    }

    /// Where the tunnel's packets to peers go that must be encrypted.
    pub(super) fn encrypted(&self) -> impl Iterator<Item = IpAddr> {
        self.others().filter(|p| p.keys.is_some()).map(|p| p.remote)
    }

    /// Underlay addresses to which the tunnel sends nothing in the clear. One that is also that of a peer in the clear, in
    /// another partition, isn't among them.
    pub(super) fn never_in_the_clear(&self) -> impl Iterator<Item = IpAddr> {
        let plain: BTreeSet<IpAddr> = self
            .others()
            .filter(|p| p.keys.is_none())
            .map(|p| p.remote)
            .collect();
        let own = self.own_underlay();
        let all = self.others().filter(|p| p.keys.is_some()).map(|p| p.underlay);
        all.chain(self.waiting.iter().map(|w| w.underlay))
            .filter(move |a| !plain.contains(a) && Some(*a) != own)
    }
}

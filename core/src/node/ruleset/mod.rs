//! Our nftables tables. Chains of the `inet` one in the order in which a packet meets them:
//!
//! ```text
//! prerouting  raw_in -300      not tracked: the tunnel's own packets, probes, and what is only forwarded here for a
//!                              stateless gateway, in either direction
//!             arrive -160      from the tunnel: grant checked; identity from packet mark to connection mark
//!             classify -90     after everyone's DNAT: selected pod and destination → egress_ID, prefer_… or blocked, by
//!                              way of ports_… where policies name ports, and of meter_… and limit_… where pods may send
//!                              so much only;
//!                              with the guard, a pod that isn't known → unknown
//! input       tunnel_input     tunnel packets that don't come from a peer, or not from the one whose MAC they bear,
//!                              are dropped before decapsulation
//! forward     forward -150     nothing without identity enters the tunnel; TCP MSS
//! output      raw_out -300     as raw_in; the outer packet loses the mark it inherited
//! postrouting translate 90     before everyone's SNAT: to the egress IP and this node's ports (snat_ID), to this
//!                              node's overlay address, or to the egress IP alone
//!             leave 400        after everyone: guards; the identity into the packet mark, for the tunnel header, or
//!                              for a reply to an egress IP the peer that it belongs to (replies)
//! ```
//!
//! and of the `netdev` one, on the tunnel device:
//!
//! ```text
//! egress      steer 0          a reply's mark becomes the peer's MAC
//! ```
//!
//! Where some path must be encrypted, `raw_wireguard` and `into_wireguard` let nothing but such peers' tunnel packets out of
//! the WireGuard device and into it, and what goes to relays or is relayed; and `raw_in` and `leave` none of these by any other.
//!
//! Guards stand behind the NAT they check: a packet that carries an identity leaves translated as that
//! identity demands, or not at all. No rule accepts, so that the CNI's own chains have their say.
//!
//! Ports are looked up in whole packets: connection tracking's defragmentation runs before `raw_in` wherever a table of
//! the namespace has a `ct` expression, as this one always does, and what it put together is split again only after
//! `leave`, every piece with the whole's mark.

mod by_port;
mod classify;
mod encrypted;
mod gateway;
mod guards;
mod ports;
mod replies;
mod seal;
mod sets;
mod source;
mod unknown;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::flows::{IDENTITY_MASK, TAG, TAG_MASK};
use super::forwarded::Forwarded;
use super::guard::Guard;
use super::held::Held;
use super::inputs::{Addresses, Settings};
use super::interval::Interval;
use super::nft::{Chain, Hook, Ruleset};
use super::own::Own;
use super::peers::Peers;
use super::select::Selection;
use unknown::UNKNOWN;

/// What the tables are made of.
pub(super) struct Parts<'a> {
    pub(super) settings: &'a Settings,
    /// UDP port of the tunnel.
    pub(super) port: u16,
    /// UDP port of WireGuard.
    pub(super) wireguard_port: u16,
    /// MTU of the tunnel device, where there is one.
    pub(super) mtu: Option<u32>,
    /// This node's overlay addresses.
    pub(super) overlay: Addresses,
    /// The federation's overlay ranges.
    pub(super) overlay_range: &'a [IpNet],
    pub(super) peers: &'a Peers,
    /// Destinations that no policy takes.
    pub(super) local: &'a [Interval],
    pub(super) selection: &'a Selection,
    /// What is dropped because nobody knows yet whose it is; none where pods are made to wait instead.
    pub(super) guard: Option<&'a Guard>,
    /// For each identity in use whose gateway is elsewhere, its routing mark.
    pub(super) routed: &'a BTreeMap<u16, u32>,
    /// Identities of the plan whose gateway this node doesn't carry.
    pub(super) away: &'a BTreeSet<u16>,
    /// Egress IPs that this node carries and that are none of its own addresses.
    pub(super) eips: &'a BTreeSet<IpAddr>,
    pub(super) held: &'a Held,
    pub(super) own: &'a Own,
    pub(super) forwarded: &'a Forwarded,
}

/// What is ours of `ct mark`: tag and identity.
fn identity() -> String {
    format!("ct mark and {:#010x}", TAG_MASK | IDENTITY_MASK)
}

/// Whether a connection is ours, where `is` is `==` or `!=`.
fn tagged(is: &str) -> String {
    format!("ct mark and {TAG_MASK:#010x} {is} {TAG:#010x}")
}

impl Parts<'_> {
    pub(super) fn ruleset(&self) -> Ruleset {
        let mut chains = BTreeMap::new();
        let mut base = |name: &str, kind: &str, hook: &str, priority, rules| {
            let hook = Some(Hook {
                kind: kind.into(),
                hook: hook.into(),
                priority,
                device: None,
            });
            chains.insert(name.to_owned(), Chain { hook, rules });
        };
        base("raw_in", "filter", "prerouting", -300, self.raw_in());
        base("arrive", "filter", "prerouting", -160, self.arrive());
        base("classify", "filter", "prerouting", -90, self.classify());
        base("tunnel_input", "filter", "input", -10, self.tunnel_input());
        base("forward", "filter", "forward", -150, self.forward());
        base("raw_out", "filter", "output", -300, self.raw_out());
        base("translate", "nat", "postrouting", 90, self.translate());
        base("leave", "filter", "postrouting", 400, self.leave());
        let mut plain = |name: String, rules| chains.insert(name, Chain { hook: None, rules });
        plain("raw_tunnel".into(), self.raw_tunnel());
        plain("raw_reply".into(), Self::raw_reply());
        plain("to_eip".into(), Self::to_eip());
        plain("transit".into(), Self::transit());
        plain("pass".into(), vec!["meta mark set 0x00000000".into()]);
        plain("into_tunnel".into(), self.tunnel_exit());
        plain("untracked_exit".into(), self.untracked_exit());
        plain("replies".into(), Self::replies());
        plain("own_ports".into(), Self::own_ports());
        plain("blocked".into(), vec!["counter drop".into()]);
        if self.guard.is_some() {
            plain(UNKNOWN.into(), self.unknown());
        }
        for (name, rules) in [
            ("raw_wireguard", self.raw_wireguard()),
            ("into_wireguard", self.wireguard_exit()),
        ] {
            if let Some(rules) = rules {
                plain(name.into(), rules);
            }
        }
        for (name, class) in &self.selection.classes {
            plain(format!("class_{name}"), Self::class(name));
            for (name, rules) in class.verdicts().filter_map(Self::prefer) {
                plain(name, rules);
            }
        }
        for (meter, limit) in &self.selection.meters {
            plain(format!("limit_{meter}"), Self::limit(*limit));
        }
        for id in self.selection.identities() {
            plain(format!("egress_{id}"), self.egress(id));
        }
        for (id, egress) in self.sourced() {
            for (name, rules) in self.snat(id, egress) {
                plain(name, rules);
            }
            plain(format!("leaves_{id}"), Self::leaves(egress, true));
            plain(format!("into_{id}"), Self::into(id));
        }
        for (id, egress) in &self.held.identities {
            plain(format!("leaves_{id}"), Self::leaves(egress, false));
        }
        let mut sets = self.sets();
        self.by_port(&mut chains, &mut sets);
        self.claimed_by_port(&mut chains, &mut sets);
        Ruleset {
            family: "inet".into(),
            table: self.settings.table.clone(),
            sets,
            chains,
        }
    }

    /// Identities in use here that this node translates, with their egress IPs.
    fn sourced(&self) -> impl Iterator<Item = (u16, &Addresses)> {
        let used = self.selection.identities();
        let all = self.own.identities.iter().map(|(id, egress)| (*id, egress));
        all.filter(move |(id, _)| used.contains(id))
    }
}

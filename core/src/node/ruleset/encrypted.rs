//! Encrypted paths: what may go into WireGuard, what may come out of it, and that nothing goes another way.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Parts;
use super::words::{WORDS, Words};
use crate::node::interval::Family;
use crate::node::nft::{Atom, Set};

impl Parts<'_> {
    /// The words of the underlay's family, where some path must be encrypted.
    fn underlay_words(&self) -> Option<&'static Words> {
        let family = self
            .peers
            .underlay_family()
            .filter(|_| self.peers.must_encrypt())?;
        WORDS.iter().find(|w| w.family == family)
    }

    pub(super) fn encrypted_sets(&self, sets: &mut BTreeMap<String, Set>) {
        let Some(Words {
            family,
            suffix,
            address,
            ..
        }) = self.underlay_words()
        else {
            return;
        };
        let mut add = |name: &str, addresses: &mut dyn Iterator<Item = IpAddr>| {
            let elements = addresses.filter(|a| Family::of(*a) == *family);
            let elements = elements.map(|a| (vec![Atom::Ip(a)], None)).collect();
            let set = Set::of(address, false);
            sets.insert(format!("{name}{suffix}"), Set { elements, ..set });
        };
        add("encrypted", &mut self.peers.encrypted());
        add("exposed", &mut self.peers.never_in_the_clear());
        let relays = &self.peers.relays;
        let port = |port: u16| Atom::Ports(port, port);
        let doors = relays
            .doors
            .iter()
            .map(|(a, p)| (vec![Atom::Ip(*a), port(*p)], None));
        let to = relays.to.iter();
        let to = to.map(|((from, p), to)| (vec![Atom::Ip(*from), port(*p)], Some(Atom::Ip(*to))));
        let pairs = relays.to.iter();
        let pairs = pairs.map(|((from, _), to)| (vec![Atom::Ip(*from), Atom::Ip(*to)], None));
        let ports = relays
            .ports
            .iter()
            .map(|(a, p)| (vec![Atom::Ip(*a)], Some(port(*p))));
        let door = format!("{address} . inet_service");
        for (name, set, elements) in [
            ("doors", Set::of(&door, false), doors.collect()),
            ("relay_to", Set::map(&door, address, false), to.collect()),
            (
                "relayed",
                Set::of(&format!("{address} . {address}"), false),
                pairs.collect(),
            ),
            (
                "relay_port",
                Set::map(address, "inet_service", false),
                ports.collect(),
            ),
        ] {
            sets.insert(format!("{name}{suffix}"), Set { elements, ..set });
        }
    }

    /// In front of `raw_in`: a peer's overlay address is believed by WireGuard's word only.
    pub(super) fn raw_in_encrypted(&self) -> Vec<String> {
        let Some(Words { suffix, header, .. }) = self.underlay_words() else {
            return Vec::new();
        };
        vec![
            format!("iifname \"{}\" goto raw_wireguard", self.settings.wireguard),
            format!(
                "udp dport {} {header} saddr @encrypted{suffix} counter drop",
                self.port
            ),
        ]
    }

    /// What came out of WireGuard, which has checked whom it is from.
    pub(super) fn raw_wireguard(&self) -> Option<Vec<String>> {
        let Words {
            family,
            suffix,
            header,
            ..
        } = self.underlay_words()?;
        let own = self.overlay.get(*family);
        let tunnel = own.map(|own| {
            format!(
                "udp dport {} {header} saddr @encrypted{suffix} {header} daddr {own} notrack return",
                self.port
            )
        });
        let wireguard = self.wireguard_port;
        let relayed = own.into_iter().flat_map(|own| {
            [
                format!(
                    "udp dport {wireguard} {header} saddr . udp sport @doors{suffix} {header} daddr {own} notrack return"
                ),
                // This node is the relay: on to whom the port stands for.
                format!(
                    "udp sport {wireguard} {header} daddr {own} notrack {header} daddr set {header} saddr . udp dport map \
                     @relay_to{suffix} udp dport set {wireguard} counter return"
                ),
            ]
        });
        let rules = tunnel.into_iter().chain(relayed);
        Some(rules.chain(["counter drop".into()]).collect())
    }

    /// In front of `raw_out`: the tunnel's packets get the source that the peer's WireGuard takes from this one. They
    /// bear the underlay address until then, since the tunnel device has one for all its peers.
    pub(super) fn raw_out_encrypted(&self) -> Vec<String> {
        let Some((words, own)) = self
            .underlay_words()
            .and_then(|w| Some((w, self.overlay.get(w.family)?)))
        else {
            return Vec::new();
        };
        let Words { suffix, header, .. } = words;
        vec![
            format!(
                "udp dport {} {header} daddr @encrypted{suffix} {header} saddr set {own}",
                self.port
            ),
            format!(
                "udp sport {} {header} daddr . udp dport @doors{suffix} notrack",
                self.wireguard_port
            ),
        ]
    }

    /// In front of `leave`.
    pub(super) fn leave_encrypted(&self) -> Vec<String> {
        let Some(Words { suffix, header, .. }) = self.underlay_words() else {
            return Vec::new();
        };
        let port = self.port;
        vec![
            format!("oifname \"{}\" goto into_wireguard", self.settings.wireguard),
            format!("udp dport {port} {header} daddr @encrypted{suffix} counter drop"),
            format!("udp dport {port} {header} daddr @exposed{suffix} counter drop"),
        ]
    }

    /// What enters WireGuard: the tunnel's packets, WireGuard's own to relays, what this node relays, and nothing else.
    pub(super) fn wireguard_exit(&self) -> Option<Vec<String>> {
        let Words {
            family,
            suffix,
            header,
            ..
        } = self.underlay_words()?;
        let own = self.overlay.get(*family);
        let tunnel = own.map(|own| {
            format!(
                "ct state untracked udp dport {} {header} saddr {own} {header} daddr @encrypted{suffix} return",
                self.port
            )
        });
        let (device, wireguard) = (&self.settings.wireguard, self.wireguard_port);
        let relayed = own.into_iter().flat_map(|own| {
            [
                format!(
                    "ct state untracked udp sport {wireguard} {header} saddr {own} {header} daddr . udp dport \
                     @doors{suffix} return"
                ),
                format!(
                    "iifname \"{device}\" ct state untracked udp sport {wireguard} udp dport {wireguard} {header} saddr . \
                     {header} daddr @relayed{suffix} udp sport set {header} saddr map @relay_port{suffix} {header} saddr \
                     set {own} return"
                ),
            ]
        });
        let rules = tunnel.into_iter().chain(relayed);
        Some(rules.chain(["counter drop".into()]).collect())
    }
}

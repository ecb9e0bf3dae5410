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
        Some(tunnel.into_iter().chain(["counter drop".into()]).collect())
    }

    /// In front of `raw_out`: the tunnel's packets get the source that the peer's WireGuard takes from this one. They
    /// bear the underlay address until then, since the tunnel device has one for all its peers.
    pub(super) fn raw_out_encrypted(&self) -> Option<String> {
        let Words {
            family,
            suffix,
            header,
            ..
        } = self.underlay_words()?;
        let own = self.overlay.get(*family)?;
        Some(format!(
            "udp dport {} {header} daddr @encrypted{suffix} {header} saddr set {own}",
            self.port
        ))
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

    /// What enters WireGuard: the tunnel's packets and nothing else.
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
        Some(tunnel.into_iter().chain(["counter drop".into()]).collect())
    }
}

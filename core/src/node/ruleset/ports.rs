//! Sets of peers, of their ports and of this node's own.
//!
//! Ports, ICMP identifiers and the ports in what an ICMP error embeds have types of their own in nft, so that each
//! takes a set of its own, with the same elements.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Parts;
use super::replies::peer_mark;
use super::words::Words;
use crate::node::interval::Family;
use crate::node::nft::{Atom, Set};
use crate::slices::Ports;

type Elements = BTreeMap<Vec<Atom>, Option<Atom>>;

/// A set whose key has a field that nft knows by an expression only.
fn by_expression(expression: String, key: &str, value: Option<&str>, interval: bool) -> Set {
    Set {
        expression: Some(match value {
            Some(_) => format!("{expression} : meta mark"),
            None => expression,
        }),
        value: value.map(str::to_owned),
        ..Set::of(key, interval)
    }
}

impl Parts<'_> {
    pub(super) fn port_sets(&self, words: &Words, sets: &mut BTreeMap<String, Set>) {
        let Words {
            suffix,
            header,
            address,
            icmp,
            inner,
            ..
        } = words;
        let mut add = |name: String, set: Set, elements: Elements| {
            sets.insert(name, Set { elements, ..set });
        };
        let of_family = |a: IpAddr| Family::of(a) == words.family;

        let macs = self.peers.others().filter_map(|p| {
            let overlay = p.overlay.get(words.family);
            overlay.map(|a| (vec![Atom::Mac(p.mac), Atom::Ip(a)], None))
        });
        add(
            format!("peers{suffix}"),
            Set::of(&format!("ether_addr . {address}"), false),
            macs.collect(),
        );
        let remotes = self.peers.others().filter(|p| of_family(p.remote));
        let remotes = remotes.map(|p| (vec![Atom::Ip(p.remote), Atom::Number(peer_mark(p.mac))], None));
        add(
            format!("bound{suffix}"),
            by_expression(
                format!("{header} saddr . @th,192,32"),
                &format!("{address} . integer"),
                None,
                false,
            ),
            remotes.collect(),
        );

        // Key fields before the port, and the value.
        let mut own = Elements::new();
        for (eip, share) in self.own.shares.iter().filter(|(a, _)| of_family(**a)) {
            extend(&mut own, &[Atom::Ip(*eip)], &share.living, None);
        }
        let mut out = Elements::new();
        for ((mac, id, eip), ports) in &self.forwarded.grants {
            if of_family(*eip) {
                let key = [Atom::Mac(*mac), Atom::Number((*id).into()), Atom::Ip(*eip)];
                extend(&mut out, &key, ports, None);
            }
        }
        let mut reply = Elements::new();
        for ((eip, mac), ports) in &self.forwarded.replies {
            if of_family(*eip) {
                extend(
                    &mut reply,
                    &[Atom::Ip(*eip)],
                    ports,
                    Some(&Atom::Number(peer_mark(*mac))),
                );
            }
        }
        let from = format!("ether saddr . meta mark . {header} saddr");
        for (name, elements, fields, types, embedded, value) in [
            (
                "own",
                own,
                format!("{header} saddr"),
                (*address).to_owned(),
                inner.source_port,
                None,
            ),
            (
                "out",
                out,
                from,
                format!("ether_addr . mark . {address}"),
                inner.destination_port,
                None,
            ),
            (
                "reply",
                reply,
                format!("{header} daddr"),
                (*address).to_owned(),
                inner.source_port,
                Some("mark"),
            ),
        ] {
            let typed = Set {
                value: value.map(str::to_owned),
                ..Set::of(&format!("{types} . inet_service"), true)
            };
            add(format!("{name}{suffix}"), typed, elements.clone());
            for (kind, field) in [("id", format!("{icmp} id")), ("err", embedded.to_owned())] {
                let set = by_expression(
                    format!("{fields} . {field}"),
                    &format!("{types} . integer"),
                    value,
                    true,
                );
                add(format!("{name}_{kind}{suffix}"), set, elements.clone());
            }
        }

        for (n, (name, piece)) in words.pieces().enumerate() {
            let eips = self.forwarded.eips.iter().filter(|a| of_family(**a));
            let eips = eips.map(|a| (vec![Atom::Ip(*a), Atom::Number(piece_of(*a, n))], None));
            add(
                format!("itself{name}"),
                by_expression(
                    format!("{header} saddr . {piece}"),
                    &format!("{address} . integer"),
                    None,
                    false,
                ),
                eips.collect(),
            );
        }
    }
}

/// Adds one element a range.
fn extend(elements: &mut Elements, key: &[Atom], ports: &Ports, value: Option<&Atom>) {
    for range in ports.ranges() {
        let port = Atom::Ports(range.first, range.last);
        elements.insert(key.iter().cloned().chain([port]).collect(), value.cloned());
    }
}

/// The 32 bits of `address` at place `n`.
fn piece_of(address: IpAddr, n: usize) -> u32 {
    match address {
        IpAddr::V4(a) => a.into(),
        IpAddr::V6(a) => {
            let [high, low] =
                [2 * n, 2 * n + 1].map(|s| u32::from(a.segments().get(s).copied().unwrap_or(0)));
            high << 16 | low
        }
    }
}

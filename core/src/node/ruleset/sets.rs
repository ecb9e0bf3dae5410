//! The sets and maps of our nftables table. Pods, destinations, grants and egress IPs come and go as their
//! elements; the chains that read them stay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Parts;
use super::by_port::leads_to;
use super::words::{WORDS, Words};
use crate::node::flows::connection_mark;
use crate::node::interval::{Family, Interval};
use crate::node::nft::{Atom, Set};

impl Parts<'_> {
    /// Every set there is, whether or not it has elements: one that comes and goes would take its rules
    /// along, and an element's change would become a table's.
    pub(super) fn sets(&self) -> BTreeMap<String, Set> {
        let mut sets = BTreeMap::new();
        let mark = |id: u16| vec![Atom::Number(connection_mark(id))];
        for Words {
            family,
            suffix,
            address,
            ..
        } in &WORDS
        {
            let of = |ips: &mut dyn Iterator<Item = IpAddr>| -> BTreeMap<Vec<Atom>, Option<Atom>> {
                ips.filter(|a| Family::of(*a) == *family)
                    .map(|a| (vec![Atom::Ip(a)], None))
                    .collect()
            };
            let mut add = |name: &str, set: Set, elements| {
                sets.insert(format!("{name}{suffix}"), Set { elements, ..set });
            };
            for (name, addresses) in [
                ("underlay", self.peers.others().map(|p| p.remote).collect()),
                (
                    "overlay",
                    self.peers.others().flat_map(|p| p.overlay.iter()).collect(),
                ),
                ("eips", self.eips.clone()),
                ("forwarded", self.forwarded.eips.clone()),
            ] {
                let addresses: BTreeSet<IpAddr> = addresses;
                add(name, Set::of(address, false), of(&mut addresses.into_iter()));
            }
            let local = self.local.iter().filter(|i| i.family() == *family);
            add(
                "local",
                Set::of(address, true),
                local.map(|i| (vec![i.atom()], None)).collect(),
            );
            let granted = self
                .held
                .granted
                .keys()
                .filter(|(p, _)| Family::of(p.addr()) == *family);
            let granted =
                granted.map(|(p, id)| (vec![Interval::from(*p).atom(), Atom::Number((*id).into())], None));
            add(
                "granted",
                Set::of(&format!("{address} . mark"), true),
                granted.collect(),
            );
            let eip = self.held.identities.iter();
            let eip = eip.filter_map(|(id, e)| Some((mark(*id), Some(Atom::Ip(e.get(*family)?)))));
            add("eip", Set::map("mark", address, false), eip.collect());
            let pods = self
                .selection
                .pods
                .iter()
                .filter(|(a, _)| Family::of(**a) == *family);
            let pods =
                pods.map(|(a, class)| (vec![Atom::Ip(*a)], Some(Atom::Goto(format!("class_{class}")))));
            add("pods", Set::map(address, "verdict", false), pods.collect());
            for (name, class) in &self.selection.classes {
                let to = class.destinations.iter().filter(|(i, _)| i.family() == *family);
                let to = to.map(|(i, outcome)| (vec![i.atom()], Some(Atom::Goto(leads_to(outcome)))));
                sets.insert(
                    format!("to{suffix}_{name}"),
                    Set {
                        elements: to.collect(),
                        ..Set::map(address, "verdict", true)
                    },
                );
            }
        }
        sets.extend(self.unknown_sets());
        let away = self.away.iter().map(|id| (mark(*id), None));
        sets.insert(
            "away".into(),
            Set {
                elements: away.collect(),
                ..Set::of("mark", false)
            },
        );
        let routed = self.routed.values().map(|m| (vec![Atom::Number(*m)], None));
        sets.insert(
            "routed".into(),
            Set {
                elements: routed.collect(),
                ..Set::of("mark", false)
            },
        );
        let leaves = self
            .held
            .identities
            .keys()
            .copied()
            .chain(self.sourced().map(|(id, _)| id));
        let leaves = leaves.map(|id| (mark(id), Some(Atom::Jump(format!("leaves_{id}")))));
        sets.insert(
            "leaves".into(),
            Set {
                elements: leaves.collect(),
                ..Set::map("mark", "verdict", false)
            },
        );
        let sliced = self
            .sourced()
            .map(|(id, _)| (mark(id), Some(Atom::Goto(format!("snat_{id}")))));
        sets.insert(
            "sliced".into(),
            Set {
                elements: sliced.collect(),
                ..Set::map("mark", "verdict", false)
            },
        );
        let into = self
            .sourced()
            .map(|(id, _)| (mark(id), Some(Atom::Goto(format!("into_{id}")))));
        sets.insert(
            "into".into(),
            Set {
                elements: into.collect(),
                ..Set::map("mark", "verdict", false)
            },
        );
        self.encrypted_sets(&mut sets);
        for words in &WORDS {
            self.port_sets(words, &mut sets);
        }
        sets
    }
}

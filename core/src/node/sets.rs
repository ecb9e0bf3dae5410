//! The sets and maps of our nftables table. Pods, destinations, grants and egress IPs come and go as their
//! elements; the chains that read them stay.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::flows::{Verdict, connection_mark};
use super::interval::{Family, Interval};
use super::nft::{Atom, Set};
use super::ruleset::{Parts, WORDS, Words};

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
            add(
                "underlay",
                Set::of(address, false),
                of(&mut self.remotes.iter().copied()),
            );
            add(
                "eips",
                Set::of(address, false),
                of(&mut self.held.guarded.iter().copied()),
            );
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
                pods.map(|(a, class)| (vec![Atom::Ip(*a)], Some(Atom::Jump(format!("class_{class}")))));
            add("pods", Set::map(address, "verdict", false), pods.collect());
            for (name, class) in &self.selection.classes {
                let to = class.destinations.iter().filter(|(i, _)| i.family() == *family);
                let to = to.map(|(i, verdict)| (vec![i.atom()], Some(goto(*verdict))));
                sets.insert(
                    format!("to{suffix}_{name}"),
                    Set {
                        elements: to.collect(),
                        ..Set::map(address, "verdict", true)
                    },
                );
            }
        }
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
        let held = self.held.identities.keys();
        let held = held.map(|id| (mark(*id), Some(Atom::Jump(format!("held_{id}")))));
        sets.insert(
            "held".into(),
            Set {
                elements: held.collect(),
                ..Set::map("mark", "verdict", false)
            },
        );
        sets
    }
}

fn goto(verdict: Verdict) -> Atom {
    Atom::Goto(match verdict {
        Verdict::Identity(id) => format!("egress_{id}"),
        Verdict::Block => "blocked".into(),
    })
}

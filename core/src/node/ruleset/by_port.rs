//! Destinations of which each port may be another policy's. The map by address leads to a chain that looks the port up in a
//! map of its own:
//!
//! ```text
//! class_C     ip daddr vmap @to4_C                       198.51.100.0/24 : goto ports_T   8.8.8.8 : goto egress_9
//! ports_T     meta l4proto . th dport vmap @ports_T      tcp . 443 : goto egress_7        udp . 53 : return
//!             goto egress_8                              everything else that is claimed
//! ```
//!
//! One chain and one map a different table, named by what is in it, so that addresses and classes share it. A single map of
//! addresses, protocols and ports would hold their product, and the kernel takes seconds for some ten thousand such
//! elements (2.3 s for 16,000); and packets to destinations without ports would be looked up twice.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::classify::goto;
use super::unknown::CLAIMED;
use super::words::{WORDS, Words};
use super::{Parts, identity, tagged};
use crate::node::flows::{Verdict, connection_mark};
use crate::node::interval::Interval;
use crate::node::nft::{Atom, Chain, Set};
use crate::node::outcome::{ByPort, Outcome};

/// Matches ICMP errors about a connection.
const ERRORS: &str = "ct state related meta l4proto { icmp, ipv6-icmp }";

/// A chain that looks ports up, with its map.
pub(super) struct PortTable {
    /// Name of both.
    pub(super) name: String,
    set: Set,
    rules: Vec<String>,
}

impl PortTable {
    /// `chain` is where packets of a verdict go, `before` are rules in front of the lookup.
    pub(super) fn new<V: Copy>(
        by_port: &ByPort<V>,
        chain: impl Fn(V) -> String,
        before: Vec<String>,
    ) -> Self {
        let leads = |verdict: Option<V>| verdict.map_or(Atom::Return, |v| Atom::Goto(chain(v)));
        let elements: BTreeMap<_, _> = by_port
            .ports
            .iter()
            .map(|(span, verdict)| {
                let key = vec![Atom::Protocol(span.protocol), Atom::Ports(span.first, span.last)];
                (key, Some(leads(*verdict)))
            })
            .collect();
        let rest = by_port.rest.map(chain);
        let mut content = Sha256::new();
        for (key, value) in &elements {
            content.update(Set::element(key, value.as_ref()));
            content.update("\n");
        }
        content.update(rest.as_deref().unwrap_or_default());
        let name = format!("ports_{}", hex::encode(&content.finalize()[..6]));
        let lookup = format!("meta l4proto . th dport vmap @{name}");
        Self {
            set: Set {
                elements,
                ..Set::map("inet_proto . inet_service", "verdict", true)
            },
            rules: before
                .into_iter()
                .chain([lookup])
                .chain(rest.map(|r| format!("goto {r}")))
                .collect(),
            name,
        }
    }

    pub(super) fn insert(self, chains: &mut BTreeMap<String, Chain>, sets: &mut BTreeMap<String, Set>) {
        let chain = Chain {
            hook: None,
            rules: self.rules,
        };
        chains.insert(self.name.clone(), chain);
        sets.insert(self.name, self.set);
    }
}

/// Name of the chain that an outcome sends packets to.
pub(super) fn leads_to(outcome: &Outcome<Verdict>) -> String {
    match outcome {
        Outcome::Any(verdict) => goto(*verdict),
        Outcome::ByPort(by_port) => PortTable::new(by_port, goto, Vec::new()).name,
    }
}

/// A map from those of `destinations` whose ports differ to the chains that look them up, with these. All that is taken
/// goes to `chain`; `before` says which rules are in front of a lookup.
pub(super) fn by_port(
    destinations: &[(Interval, Outcome<()>)],
    words: &Words,
    chain: &str,
    before: impl Fn(&ByPort<()>) -> Vec<String>,
) -> (Set, Vec<PortTable>) {
    let mut set = Set::map(words.address, "verdict", true);
    let mut tables = Vec::new();
    for (interval, outcome) in destinations.iter().filter(|(i, _)| i.family() == words.family) {
        if let Outcome::ByPort(by_port) = outcome {
            let table = PortTable::new(by_port, |()| chain.to_owned(), before(by_port));
            set.elements
                .insert(vec![interval.atom()], Some(Atom::Goto(table.name.clone())));
            tables.push(table);
        }
    }
    (set, tables)
}

/// Whether some destination's ports differ.
pub(super) fn differs<V>(destinations: &[(Interval, Outcome<V>)]) -> bool {
    destinations
        .iter()
        .any(|(_, outcome)| matches!(outcome, Outcome::ByPort(_)))
}

impl Parts<'_> {
    /// Whether some class has policies with ports.
    fn follows(&self) -> bool {
        self.selection.classes.values().any(|c| differs(&c.destinations))
    }

    /// An ICMP error is of no port and goes the way of the connection that it is about, which may be nobody's where some
    /// ports are.
    fn errors<V>(by_port: &ByPort<V>) -> Vec<String> {
        let ours = format!("{ERRORS} {} goto follow", tagged("=="));
        let others = by_port.leaves_alone().then(|| format!("{ERRORS} return"));
        [ours].into_iter().chain(others).collect()
    }

    /// The same in the seal, which has nothing to say of errors about connections that are nobody's.
    pub(super) fn others_errors(by_port: &ByPort<()>) -> Vec<String> {
        let others = || format!("{ERRORS} {} return", tagged("!="));
        by_port.leaves_alone().then(others).into_iter().collect()
    }

    /// What port tables of classes take in the first table.
    pub(super) fn by_port(&self, chains: &mut BTreeMap<String, Chain>, sets: &mut BTreeMap<String, Set>) {
        for class in self.selection.classes.values() {
            for (_, outcome) in &class.destinations {
                if let Outcome::ByPort(by_port) = outcome {
                    PortTable::new(by_port, goto, Self::errors(by_port)).insert(chains, sets);
                }
            }
        }
        if !self.follows() {
            return;
        }
        let follow = self.selection.identities().into_iter().map(|id| {
            let key = vec![Atom::Number(connection_mark(id))];
            (key, Some(Atom::Goto(format!("egress_{id}"))))
        });
        let map = Set {
            elements: follow.collect(),
            ..Set::map("mark", "verdict", false)
        };
        sets.insert("follow".into(), map);
        let rules = vec![
            format!("{} vmap @follow", identity()),
            // Of an identity that no pod here has any more.
            "goto blocked".into(),
        ];
        chains.insert("follow".into(), Chain { hook: None, rules });
    }

    /// What port tables of the guard take in either table.
    pub(super) fn claimed_by_port(
        &self,
        chains: &mut BTreeMap<String, Chain>,
        sets: &mut BTreeMap<String, Set>,
    ) {
        let Some(guard) = self.guard.filter(|g| differs(&g.claimed)) else {
            return;
        };
        for words in &WORDS {
            let (set, tables) = by_port(&guard.claimed, words, CLAIMED, |_| Vec::new());
            sets.insert(format!("claimed_ports{}", words.suffix), set);
            for table in tables {
                table.insert(chains, sets);
            }
        }
        let rules = vec!["counter drop".into()];
        chains.insert(CLAIMED.into(), Chain { hook: None, rules });
    }
}

//! The guard's rules: what comes from a pod's address that this node doesn't know is dropped where a policy claims its
//! destination. In both tables, so that neither opens the way by its absence.
//!
//! A pod is one element, of `known` or of `pods`, and a packet of a known pod meets the same rules whatever their number.

use std::collections::BTreeMap;

use super::Parts;
use super::by_port::differs;
use super::classify::NOT_ELSEWHERE;
use super::words::{WORDS, Words};
use crate::node::interval::{Family, Interval};
use crate::node::nft::{Atom, Set};
use crate::node::outcome::Outcome;

/// Name of the chain.
pub(super) const UNKNOWN: &str = "unknown";
/// Name of the chain in which what goes to a claimed port ends.
pub(super) const CLAIMED: &str = "claimed";

impl Parts<'_> {
    /// Leads there; nothing where there is no guard. To stand behind the lookup of selected pods.
    pub(super) fn to_unknown(&self) -> Vec<String> {
        let lead = |Words { suffix, header, .. }: &Words| {
            format!("{header} saddr @podranges{suffix} {header} saddr != @known{suffix} goto {UNKNOWN}")
        };
        self.guard.iter().flat_map(|_| WORDS.iter().map(lead)).collect()
    }

    pub(super) fn unknown(&self) -> Vec<String> {
        // Also what belongs to a connection: it may be that of the address's last pod, whose port the next one hit upon.
        let mut rules = Vec::new();
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @local{suffix} return"));
        }
        rules.push(format!("{NOT_ELSEWHERE} return"));
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @claimed{suffix} counter drop"));
        }
        if self.guard.is_some_and(|g| differs(&g.claimed)) {
            for Words { suffix, header, .. } in &WORDS {
                rules.push(format!("{header} daddr vmap @claimed_ports{suffix}"));
            }
        }
        rules
    }

    pub(super) fn unknown_sets(&self) -> BTreeMap<String, Set> {
        let mut sets = BTreeMap::new();
        let Some(guard) = self.guard else {
            return sets;
        };
        let whole = guard
            .claimed
            .iter()
            .filter(|(_, o)| matches!(o, Outcome::Any(())));
        let claimed: Vec<Interval> = whole.map(|(interval, _)| *interval).collect();
        for Words {
            family,
            suffix,
            address,
            ..
        } in &WORDS
        {
            for (name, intervals) in [("podranges", &guard.ranges), ("claimed", &claimed)] {
                let elements = intervals.iter().filter(|i| i.family() == *family);
                let set = Set {
                    elements: elements.map(|i| (vec![i.atom()], None)).collect(),
                    ..Set::of(address, true)
                };
                sets.insert(format!("{name}{suffix}"), set);
            }
            let known = guard.known.iter().filter(|a| Family::of(**a) == *family);
            let set = Set {
                elements: known.map(|a| (vec![Atom::Ip(*a)], None)).collect(),
                ..Set::of(address, false)
            };
            sets.insert(format!("known{suffix}"), set);
        }
        sets
    }
}

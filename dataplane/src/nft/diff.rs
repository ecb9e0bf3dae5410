//! What to tell nft so that the table becomes as wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use spillway_core::node::nft::{Atom, Chain, Ruleset, Set};
use spillway_core::plan::Digest;

use super::observe::{Observed, ObservedChain, ObservedSet};
use super::{canonical, render};
use crate::{Changes, Operation};

/// Changes, and the text that makes them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Difference {
    /// In words. Empty when nothing is to be done.
    pub changes: Changes,
    /// One transaction for `nft -f -`.
    pub script: String,
    /// The script replaces the whole table.
    pub replaces: bool,
}

/// Compares the table that the kernel holds at this family and name with the wanted one.
///
/// `fingerprints` are the expressions that the kernel was seen to hold for a stamp when we had just written it;
/// a rule with our stamp but other expressions is somebody else's.
pub fn difference(
    at: (&str, &str),
    observed: Option<&Observed>,
    desired: Option<&Ruleset>,
    fingerprints: &BTreeMap<String, Digest>,
) -> Difference {
    match (observed, desired) {
        (None, None) => Difference::default(),
        (Some(_), None) => {
            let at = format!("{} {}", at.0, at.1);
            let mut changes = Changes::default();
            changes.push(Operation::Remove, format!("table {at}"));
            Difference {
                changes,
                script: format!("delete table {at}\n"),
                replaces: true,
            }
        }
        (None, Some(desired)) => {
            let mut changes = Changes::default();
            changes.push(
                Operation::Add,
                format!("table {} {}", desired.family, desired.table),
            );
            Difference {
                changes,
                script: render::whole(desired),
                replaces: true,
            }
        }
        (Some(observed), Some(desired)) => match incompatible(observed, desired) {
            Some(why) => {
                let mut changes = Changes::default();
                changes.push(
                    Operation::Change,
                    format!("table {} {} (replaced: {why})", desired.family, desired.table),
                );
                Difference {
                    changes,
                    script: render::whole(desired),
                    replaces: true,
                }
            }
            None => update(observed, desired, fingerprints),
        },
    }
}

/// Why the table can't be brought there piece by piece, if it can't.
fn incompatible(observed: &Observed, desired: &Ruleset) -> Option<String> {
    if let Some(foreign) = observed.foreign.first() {
        return Some(format!("it holds {foreign}"));
    }
    for (name, set) in &desired.sets {
        if let Some(held) = observed.sets.get(name) {
            let same = held.key == set.key && held.value == set.value && held.interval == set.interval;
            if !same || held.odd {
                return Some(format!("set {name} has another form"));
            }
        }
    }
    for (name, chain) in &desired.chains {
        if let Some(held) = observed.chains.get(name)
            && (held.hook != chain.hook || held.odd)
        {
            return Some(format!("chain {name} hooks in elsewhere"));
        }
    }
    None
}

fn update(observed: &Observed, desired: &Ruleset, fingerprints: &BTreeMap<String, Digest>) -> Difference {
    let at = format!("{} {}", desired.family, desired.table);
    let mut changes = Changes::default();
    // Filled in the order in which the parts need each other: what is referred to first is added first and
    // deleted last.
    let (mut begin, mut middle, mut end) = (String::new(), String::new(), String::new());

    for (name, chain) in &desired.chains {
        if !observed.chains.contains_key(name) {
            render::add_chain(&mut begin, &at, name, chain);
        }
    }
    for (name, set) in &desired.sets {
        if !observed.sets.contains_key(name) {
            changes.push(
                Operation::Add,
                format!("set {name} ({} elements)", set.elements.len()),
            );
            render::add_set(&mut begin, &at, name, set);
            render::elements(&mut end, "add", &at, name, &render::all_elements(set));
        }
    }
    for (name, chain) in &desired.chains {
        let held = observed.chains.get(name);
        if held.is_none_or(|held| !same_rules(held, chain, fingerprints)) {
            if held.is_some() {
                let _ = writeln!(begin, "flush chain {at} {name}");
            }
            let operation = if held.is_some() {
                Operation::Change
            } else {
                Operation::Add
            };
            changes.push(operation, format!("chain {name} ({} rules)", chain.rules.len()));
        }
    }
    let stale_chains: BTreeSet<_> = observed
        .chains
        .keys()
        .filter(|name| !desired.chains.contains_key(*name))
        .collect();
    let stale_sets: BTreeSet<_> = observed
        .sets
        .keys()
        .filter(|name| !desired.sets.contains_key(*name))
        .collect();
    for name in &stale_chains {
        let _ = writeln!(begin, "flush chain {at} {name}");
    }
    for (name, set) in &desired.sets {
        if let Some(held) = observed.sets.get(name) {
            let (remove, add) = elements(held, set);
            for key in &remove {
                changes.push(Operation::Remove, format!("element {name} {{ {key} }}"));
            }
            for element in &add {
                changes.push(Operation::Add, format!("element {name} {{ {element} }}"));
            }
            render::elements(&mut middle, "delete", &at, name, &remove);
            render::elements(&mut end, "add", &at, name, &add);
        }
    }
    for name in stale_sets {
        changes.push(Operation::Remove, format!("set {name}"));
        let _ = writeln!(middle, "delete set {at} {name}");
    }
    for name in stale_chains {
        changes.push(Operation::Remove, format!("chain {name}"));
        let _ = writeln!(middle, "delete chain {at} {name}");
    }
    for (name, chain) in &desired.chains {
        if observed
            .chains
            .get(name)
            .is_none_or(|held| !same_rules(held, chain, fingerprints))
        {
            render::add_rules(&mut end, &at, name, chain);
        }
    }
    Difference {
        changes,
        script: begin + &middle + &end,
        replaces: false,
    }
}

fn same_rules(held: &ObservedChain, chain: &Chain, fingerprints: &BTreeMap<String, Digest>) -> bool {
    held.rules.len() == chain.rules.len()
        && held.rules.iter().zip(&chain.rules).all(|(held, text)| {
            let stamp = render::stamp(text);
            held.stamp.as_ref() == Some(&stamp)
                && fingerprints
                    .get(&stamp)
                    .is_none_or(|known| *known == held.fingerprint)
        })
}

/// Keys to delete and elements to add.
fn elements(held: &ObservedSet, wanted: &Set) -> (Vec<String>, Vec<String>) {
    let canonical_wanted: BTreeMap<Vec<Atom>, Option<Atom>> = wanted
        .elements
        .iter()
        .map(|(k, v)| (k.iter().map(canonical).collect(), v.as_ref().map(canonical)))
        .collect();
    let remove = held
        .elements
        .iter()
        .filter(|(k, v)| canonical_wanted.get(*k) != Some(*v))
        .map(|(k, _)| render::key(k))
        .collect();
    let add = canonical_wanted
        .iter()
        .filter(|(k, v)| held.elements.get(*k) != Some(*v))
        .map(|(k, v)| render::element(k, v.as_ref()))
        .collect();
    (remove, add)
}

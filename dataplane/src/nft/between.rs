//! The way from one table of ours to the next, without asking the kernel.
//!
//! Right only while the kernel holds what was last written. Where it doesn't, nft refuses the text (something it
//! names has gone) or the comparison that every write is followed by finds the rest.

use std::collections::BTreeMap;

use spillway_core::node::nft::{Atom, Chain, Ruleset, Set};
use spillway_core::plan::Digest;

use super::observe::{Observed, ObservedChain, ObservedRule, ObservedSet};
use super::{Difference, canonical, difference, stamp};

/// What leads from `held` to `desired`, both whole tables of one name.
pub fn between(held: &Ruleset, desired: &Ruleset) -> Difference {
    let mut observed = Observed::default();
    let mut wanted = Ruleset {
        family: desired.family.clone(),
        table: desired.table.clone(),
        ..Ruleset::default()
    };
    for (name, set) in differing(&held.sets, &desired.sets) {
        let without = desired.sets.get(name).map(|other| &other.elements);
        observed.sets.insert(name.clone(), observed_set(set, without));
    }
    for (name, set) in differing(&desired.sets, &held.sets) {
        let without = held.sets.get(name).map(|other| &other.elements);
        let elements = apart(&set.elements, without);
        wanted.sets.insert(
            name.clone(),
            Set {
                key: set.key.clone(),
                expression: set.expression.clone(),
                value: set.value.clone(),
                interval: set.interval,
                elements: elements.map(|(k, v)| (k.clone(), v.clone())).collect(),
            },
        );
    }
    for (name, chain) in differing(&held.chains, &desired.chains) {
        observed.chains.insert(name.clone(), observed_chain(chain));
    }
    for (name, chain) in differing(&desired.chains, &held.chains) {
        wanted.chains.insert(name.clone(), chain.clone());
    }
    let at = (desired.family.as_str(), desired.table.as_str());
    let difference = difference(at, Some(&observed), Some(&wanted), &BTreeMap::new());
    if difference.replaces {
        // The part that differs must not stand for the whole.
        return Difference {
            script: super::whole(desired),
            ..difference
        };
    }
    difference
}

/// Entries of `these` that `others` hasn't or has otherwise.
fn differing<'a, K: Ord, T: PartialEq>(
    these: &'a BTreeMap<K, T>,
    others: &'a BTreeMap<K, T>,
) -> impl Iterator<Item = (&'a K, &'a T)> {
    these.iter().filter(|(key, one)| others.get(*key) != Some(*one))
}

type Elements = BTreeMap<Vec<Atom>, Option<Atom>>;

/// What of `these` isn't in `others`; all of it where there are none.
fn apart<'a>(
    these: &'a Elements,
    others: Option<&'a Elements>,
) -> impl Iterator<Item = (&'a Vec<Atom>, &'a Option<Atom>)> {
    these
        .iter()
        .filter(move |(key, value)| others.is_none_or(|others| others.get(*key) != Some(*value)))
}

fn observed_set(set: &Set, without: Option<&Elements>) -> ObservedSet {
    let canonical_element =
        |(k, v): (&Vec<Atom>, &Option<Atom>)| (k.iter().map(canonical).collect(), v.as_ref().map(canonical));
    ObservedSet {
        key: set.key.clone(),
        value: set.value.clone(),
        interval: set.interval,
        odd: false,
        elements: apart(&set.elements, without).map(canonical_element).collect(),
    }
}

fn observed_chain(chain: &Chain) -> ObservedChain {
    let rule = |text: &String| ObservedRule {
        stamp: Some(stamp(text)),
        fingerprint: Digest::default(),
    };
    ObservedChain {
        hook: chain.hook.clone(),
        odd: false,
        rules: chain.rules.iter().map(rule).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Ruleset {
        let mut pods = Set::map("ipv4_addr", "verdict", false);
        for last in 1..=200_u8 {
            pods.elements.insert(
                vec![Atom::Ip([10, 0, 0, last].into())],
                Some(Atom::Jump("class_a".into())),
            );
        }
        Ruleset {
            family: "inet".into(),
            table: "t".into(),
            sets: [("pods4".to_owned(), pods)].into(),
            chains: [(
                "class_a".to_owned(),
                Chain {
                    hook: None,
                    rules: vec!["counter drop".into()],
                },
            )]
            .into(),
        }
    }

    #[test]
    fn equal_tables_need_nothing_and_one_pod_is_one_element() {
        let held = table();
        assert_eq!(between(&held, &held), Difference::default());
        let mut desired = table();
        let elements = &mut desired.sets.get_mut("pods4").expect("set").elements;
        elements.remove(&vec![Atom::Ip([10, 0, 0, 7].into())]);
        elements.insert(
            vec![Atom::Ip([10, 0, 1, 7].into())],
            Some(Atom::Jump("class_a".into())),
        );
        assert_eq!(
            between(&held, &desired).script,
            "delete element inet t pods4 { 10.0.0.7 }\nadd element inet t pods4 { 10.0.1.7 : jump class_a }\n"
        );
    }

    #[test]
    fn another_form_replaces_the_whole_table() {
        let mut desired = table();
        desired.sets.insert("more".into(), Set::of("mark", false));
        desired.sets.get_mut("pods4").expect("set").interval = true;
        let difference = between(&table(), &desired);
        assert!(difference.replaces);
        assert_eq!(difference.script, super::super::whole(&desired));
        assert!(
            difference.script.contains("class_a"),
            "the part that is equal too"
        );
    }
}

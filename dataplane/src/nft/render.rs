//! The table as nft's own text.

use std::fmt::Write as _;

use spillway_core::node::nft::{Atom, Chain, Ruleset, Set};
use spillway_core::plan::Digest;

/// Elements a command, so that a message about one of them stays readable.
const ELEMENTS_A_COMMAND: usize = 500;

/// What a rule carries as its comment: tells our rules from others', and one rule from its next version.
pub fn stamp(rule: &str) -> String {
    format!("sw:{}", Digest::of(rule.as_bytes()).short())
}

fn atom(atom: &Atom) -> String {
    match atom {
        Atom::Ip(ip) => ip.to_string(),
        Atom::Net(net) => net.to_string(),
        Atom::Range(first, last) => format!("{first}-{last}"),
        Atom::Number(number) => number.to_string(),
        Atom::Ports(..) | Atom::Mac(_) => atom.to_string(),
        Atom::Protocol(number) => number.to_string(),
        Atom::Jump(chain) => format!("jump {chain}"),
        Atom::Goto(chain) => format!("goto {chain}"),
        Atom::Drop => "drop".into(),
        Atom::Return => "return".into(),
    }
}

/// An element's key.
pub(super) fn key(key: &[Atom]) -> String {
    key.iter().map(atom).collect::<Vec<_>>().join(" . ")
}

/// An element with its value.
pub(super) fn element(k: &[Atom], value: Option<&Atom>) -> String {
    match value {
        Some(value) => format!("{} : {}", key(k), atom(value)),
        None => key(k),
    }
}

/// `add set` or `add map`.
pub(super) fn add_set(out: &mut String, at: &str, name: &str, set: &Set) {
    let keyword = if set.value.is_some() { "map" } else { "set" };
    let _ = writeln!(out, "add {keyword} {at} {name} {{ {} }}", set.head());
}

/// `add element` or `delete element`, in commands of bounded length.
pub(super) fn elements(out: &mut String, verb: &str, at: &str, name: &str, elements: &[String]) {
    for some in elements.chunks(ELEMENTS_A_COMMAND) {
        let _ = writeln!(out, "{verb} element {at} {name} {{ {} }}", some.join(", "));
    }
}

/// `add chain`.
pub(super) fn add_chain(out: &mut String, at: &str, name: &str, chain: &Chain) {
    let _ = match chain.head() {
        None => writeln!(out, "add chain {at} {name}"),
        Some(head) => writeln!(out, "add chain {at} {name} {{ {head} }}"),
    };
}

/// `add rule` for each rule of a chain.
pub(super) fn add_rules(out: &mut String, at: &str, name: &str, chain: &Chain) {
    for rule in &chain.rules {
        let _ = writeln!(out, "add rule {at} {name} {rule} comment \"{}\"", stamp(rule));
    }
}

/// All elements of a set as text.
pub(super) fn all_elements(set: &Set) -> Vec<String> {
    set.elements.iter().map(|(k, v)| element(k, v.as_ref())).collect()
}

/// Text that replaces whatever table of this name there is by `ruleset`, in one transaction.
///
/// Chains come before sets: nft 1.0.6 refuses a verdict whose chain was added after the map.
pub fn whole(ruleset: &Ruleset) -> String {
    let at = format!("{} {}", ruleset.family, ruleset.table);
    let mut out = format!("add table {at}\ndelete table {at}\nadd table {at}\n");
    for (name, chain) in &ruleset.chains {
        add_chain(&mut out, &at, name, chain);
    }
    for (name, set) in &ruleset.sets {
        add_set(&mut out, &at, name, set);
    }
    for (name, set) in &ruleset.sets {
        elements(&mut out, "add", &at, name, &all_elements(set));
    }
    for (name, chain) in &ruleset.chains {
        add_rules(&mut out, &at, name, chain);
    }
    out
}

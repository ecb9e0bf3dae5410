//! A second table that drops what the first should have taken, for the moments in which somebody has deleted the first:
//! without it the node's own routes and masquerade would carry selected pods' packets until it is repaired.
//!
//! ```text
//! forward     seal 250         after everyone: a selected pod's packet to a selected destination passes into the tunnel, or
//!                              with an identity whose gateway this node carries
//! ```
//!
//! The guard stands here as well. It knows pods and destinations and nothing of gateways, so most changes of a plan leave it alone. It is written before the
//! first table: a pod that is newly selected is sealed before it is led elsewhere, and one that no longer is meanwhile still
//! goes by the first.

use std::collections::BTreeMap;

use super::by_port::{by_port, differs};
use super::unknown::UNKNOWN;
use super::words::{WORDS, Words};
use super::{Parts, identity, tagged};
use crate::node::interval::{Interval, union};
use crate::node::nft::{Chain, Hook, Ruleset, Set};
use crate::node::outcome::Outcome;

/// Name of the chain of what policies take.
const SEALED: &str = "sealed";

/// Sets that both tables have.
const SHARED: [&str; 5] = ["pods4", "pods6", "local4", "local6", "away"];

impl Parts<'_> {
    /// The table, given the first one's sets.
    pub(in crate::node) fn seal(&self, first: &Ruleset) -> Ruleset {
        let mut sets: BTreeMap<String, Set> = SHARED
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), first.sets.get(*name)?.clone())))
            .collect();
        let mut chains = BTreeMap::new();
        let device = &self.settings.device;
        let mut rules = vec![
            format!("oifname \"{device}\" return"),
            format!("iifname \"{device}\" return"),
            "ct direction reply return".to_owned(),
        ];
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} saddr vmap @pods{suffix}"));
        }
        rules.extend(self.to_unknown());
        let hook = Hook {
            kind: "filter".into(),
            hook: "forward".into(),
            priority: 250,
            device: None,
        };
        let base = Chain {
            hook: Some(hook),
            rules,
        };
        chains.insert("seal".to_owned(), base);
        if self.guard.is_some() {
            sets.extend(self.unknown_sets());
            let rules = self.unknown();
            chains.insert(UNKNOWN.to_owned(), Chain { hook: None, rules });
            self.claimed_by_port(&mut chains, &mut sets);
        }
        for (name, class) in &self.selection.classes {
            // Which gateway it is doesn't matter here, only what is taken.
            let sealed = class.destinations.iter();
            let sealed = sealed.filter_map(|(i, outcome)| Some((*i, outcome.map(|_| ())?)));
            let sealed: Vec<(Interval, Outcome<()>)> = sealed.collect();
            let ports = differs(&sealed);
            let mut rules = Vec::new();
            for words in &WORDS {
                let Words {
                    family,
                    suffix,
                    header,
                    address,
                    ..
                } = words;
                let whole = sealed.iter().filter(|(_, o)| matches!(o, Outcome::Any(())));
                let whole = whole.map(|(interval, _)| *interval);
                let taken = union(whole.filter(|interval| interval.family() == *family));
                let set = Set {
                    elements: taken.iter().map(|i| (vec![i.atom()], None)).collect(),
                    ..Set::of(address, true)
                };
                sets.insert(format!("to{suffix}_{name}"), set);
                rules.push(format!("{header} daddr @local{suffix} return"));
                rules.push(format!("{header} daddr @to{suffix}_{name} goto {SEALED}"));
                if ports {
                    let (set, tables) = by_port(&sealed, words, SEALED, Self::others_errors);
                    sets.insert(format!("ports{suffix}_{name}"), set);
                    rules.push(format!("{header} daddr vmap @ports{suffix}_{name}"));
                    for table in tables {
                        table.insert(&mut chains, &mut sets);
                    }
                }
            }
            chains.insert(format!("class_{name}"), Chain { hook: None, rules });
        }
        let sealed = vec![
            format!("{} counter drop", tagged("!=")),
            format!("{} @away counter drop", identity()),
        ];
        chains.insert(
            SEALED.to_owned(),
            Chain {
                hook: None,
                rules: sealed,
            },
        );
        Ruleset {
            family: first.family.clone(),
            table: self.settings.seal_table(),
            sets,
            chains,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::node::nft::Atom;
    use crate::node::{compile, fixtures};
    use spillway_crds::hub::OnUnavailable;

    fn elements(table: &super::Ruleset, set: &str) -> Vec<String> {
        let keys = |key: &Vec<Atom>| {
            key.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" . ")
        };
        let set = table.sets.get(set).unwrap_or_else(|| panic!("no set {set}"));
        set.elements.keys().map(keys).collect()
    }

    #[test]
    fn it_has_the_same_pods_and_each_classs_destinations_as_a_whole() {
        let state = compile(&fixtures::source());
        let (first, seal) = (state.ruleset.expect("a table"), state.seal.expect("a seal"));
        assert_eq!(seal.table, "spillway_seal");
        for set in ["pods4", "pods6", "local4", "local6", "away"] {
            assert_eq!(first.sets.get(set), seal.sets.get(set), "{set}");
        }
        let classes: Vec<_> = seal
            .chains
            .keys()
            .filter_map(|c| c.strip_prefix("class_"))
            .collect();
        let [class] = classes[..] else {
            panic!("{classes:?}")
        };
        // 198.51.100.0/24 but .9, and 2001:db8:99::/64.
        let to = elements(&seal, &format!("to4_{class}"));
        assert_eq!(to, ["198.51.100.0-198.51.100.8", "198.51.100.10-198.51.100.255"]);
        assert_eq!(elements(&seal, &format!("to6_{class}")), ["2001:db8:99::/64"]);
        assert!(
            seal.sets
                .iter()
                .filter(|(name, _)| name.starts_with("to"))
                .all(|(_, set)| set.elements.values().all(Option::is_none))
        );
    }

    #[test]
    fn a_pods_change_is_an_elements_and_a_moved_gateway_is_none() {
        let inputs = fixtures::source();
        let before = compile(&inputs).seal.expect("a seal");
        let mut fewer = inputs.clone();
        fewer.pods.pop();
        fewer.pods.remove(0);
        let after = compile(&fewer).seal.expect("a seal");
        assert_eq!(before.chains, after.chains);
        assert_ne!(before.sets.get("pods4"), after.sets.get("pods4"));
        let mut moved = inputs;
        let plan = moved.plan.as_mut().expect("a plan");
        plan.policies[0].on_unavailable = OnUnavailable::Block;
        plan.gateways.clear();
        let blocked = compile(&moved).seal.expect("a seal");
        assert_eq!(before.chains, blocked.chains);
        assert_eq!(before.sets.get("pods4"), blocked.sets.get("pods4"));
        moved.plan.as_mut().expect("a plan").policies[0].on_unavailable = OnUnavailable::NodeIP;
        let lenient = compile(&moved).seal.expect("a seal");
        let to: Vec<_> = lenient
            .sets
            .iter()
            .filter(|(name, _)| name.starts_with("to4_"))
            .collect();
        assert!(
            to.iter().all(|(_, set)| set.elements.is_empty()),
            "what may leave as the node isn't sealed: {to:?}"
        );
    }

    #[test]
    fn without_a_plan_there_is_none() {
        assert_eq!(compile(&crate::node::inputs::NodeInputs::default()).seal, None);
    }
}

//! The guard: what a node drops because it doesn't know yet whose it is.
//!
//! Where no CNI plugin makes a pod wait, the pod sends before anybody has told this node of its address. Such a packet
//! passes unless some policy of the plan claims its destination: then it might be that policy's, and waits until the
//! address is known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use spillway_crds::member::{API_SERVER, NODE_ADDRESSES, SERVICE_RANGES};

use super::flatten::{Claim, TooFine, both, flatten};
use super::inputs::{NodeInputs, NodePlan, Pod};
use super::interval::{Interval, union};
use super::outcome::Outcome;
use super::select::{Selection, destinations};

/// What the guard goes by.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    /// Where pods have their addresses, whichever node they are on: nobody says for certain which part is this node's.
    pub(super) ranges: Vec<Interval>,
    /// Destinations that any policy claims, whoever the pods are and whatever becomes of their packets. Sorted and
    /// disjoint.
    pub(super) claimed: Vec<(Interval, Outcome<()>)>,
    /// Addresses of this node's pods that were judged and that no policy selects.
    pub(super) known: BTreeSet<IpAddr>,
}

impl Guard {
    /// None where the guard isn't wanted.
    pub(super) fn new(inputs: &NodeInputs, plan: &NodePlan, selection: &mut Selection) -> Option<Self> {
        let known = std::mem::take(&mut selection.known);
        inputs.guard.then(|| Self {
            ranges: pod_ranges(inputs),
            claimed: claimed(plan),
            known,
        })
    }
}

/// Sources that hold nobody's pods. Any other may: each CNI keeps its ranges in a place of its own.
const NOT_OF_PODS: [&str; 3] = [NODE_ADDRESSES, SERVICE_RANGES, API_SERVER];

/// Ranges that pods of this cluster have their addresses in, as far as anybody says.
pub(super) fn pod_ranges(inputs: &NodeInputs) -> Vec<Interval> {
    let sources = inputs.network.sources.iter();
    let sources = sources.filter(|s| !NOT_OF_PODS.contains(&s.source.as_str()));
    union(
        sources
            .flat_map(|s| &s.cidrs)
            .filter_map(|c| c.parse::<IpNet>().ok()),
    )
}

/// What any policy claims. An exception is a hole in its own policy only: what one leaves alone another may claim. Where
/// ports make too many cases, all ports of their destinations count.
fn claimed(plan: &NodePlan) -> Vec<(Interval, Outcome<()>)> {
    let claim = |policy| Claim {
        verdict: Some(()),
        ..destinations(policy).claim()
    };
    let mut claims: Vec<Claim<()>> = plan.policies.iter().map(claim).collect();
    both(|family| flatten(&claims, family)).unwrap_or_else(|TooFine| {
        for claim in &mut claims {
            claim.ports.clear();
        }
        both(|family| flatten(&claims, family)).unwrap_or_default()
    })
}

/// Who has which address for certain: those that the CNI plugin told this agent of, and those that statuses show. A pod
/// that is being deleted may have left its own to another one already: its status comes late, and where the guard stands
/// the plugin may not tell. That one pod has an address for certain says nothing for another of which only an old sandbox
/// is left.
pub(super) fn certain(inputs: &NodeInputs) -> BTreeMap<IpAddr, Vec<&Pod>> {
    let fresh = inputs.sandboxes.iter().filter(|s| s.fresh).map(|s| &s.pod);
    let alive = |p: &&Pod| !p.removed && !p.deleting && !p.finished && !p.host_network;
    let shown = inputs.pods.iter().filter(alive);
    let mut certain: BTreeMap<IpAddr, Vec<&Pod>> = BTreeMap::new();
    for pod in fresh.chain(shown) {
        for address in &pod.addresses {
            certain.entry(*address).or_default().push(pod);
        }
    }
    certain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spillway_crds::LabelSelector;

    use super::*;
    use crate::node::nft::Ruleset;
    use crate::node::sandbox::Sandbox;
    use crate::node::{compile, fixtures, problems};

    fn ip(s: &str) -> IpAddr {
        s.parse().expect("address")
    }

    fn guarded() -> NodeInputs {
        NodeInputs {
            guard: true,
            ..fixtures::source()
        }
    }

    fn sandbox(pod: Pod, fresh: bool) -> Sandbox {
        Sandbox {
            container: "c".into(),
            interface: "eth0".into(),
            pod,
            fresh,
        }
    }

    fn known(inputs: &NodeInputs) -> Vec<String> {
        let table = compile(inputs).ruleset.expect("a table");
        elements(&table, "known")
    }

    fn elements(table: &Ruleset, name: &str) -> Vec<String> {
        let of = |suffix| table.sets[&format!("{name}{suffix}")].elements.keys();
        of(4).chain(of(6)).map(|key| key[0].to_string()).collect()
    }

    #[test]
    fn an_unselected_pod_is_known_while_it_has_its_address_for_certain() {
        let mut inputs = guarded();
        assert_eq!(known(&inputs), ["10.244.0.7"], "selected ones have their classes");
        for gone in [
            |p: &mut Pod| p.deleting = true,
            |p: &mut Pod| p.removed = true,
            |p: &mut Pod| p.finished = true,
            |p: &mut Pod| p.host_network = true,
        ] {
            gone(&mut inputs.pods[2]);
            assert!(known(&inputs).is_empty());
            inputs.pods[2] = fixtures::pod("web-0", "web", &["10.244.0.7"]);
        }
        inputs.pods[2].deleting = true;
        inputs.sandboxes = vec![sandbox(inputs.pods[2].clone(), true)];
        assert!(known(&inputs).is_empty(), "its end may come at any time");
    }

    #[test]
    fn only_a_sandbox_that_this_agent_saw_made_makes_a_pod_known() {
        let mut inputs = guarded();
        inputs.pods.pop();
        let pod = fixtures::pod("web-9", "web", &["10.244.0.9"]);
        inputs.sandboxes = vec![sandbox(pod.clone(), true)];
        assert_eq!(known(&inputs), ["10.244.0.9"], "the watch hasn't shown it yet");
        inputs.sandboxes[0].fresh = false;
        assert!(known(&inputs).is_empty(), "it may have ended long ago");
        // It came back with another address while no agent listened.
        inputs.pods.push(Pod {
            addresses: [ip("10.244.0.10")].into(),
            ..pod
        });
        assert_eq!(known(&inputs), ["10.244.0.10"]);
    }

    #[test]
    fn without_the_guard_the_kernel_holds_nothing_of_it_and_with_it_both_tables_do() {
        let mut inputs = guarded();
        inputs.pods.clear();
        let state = compile(&inputs);
        for table in [state.ruleset, state.seal] {
            let table = table.expect("a table");
            assert!(table.chains.contains_key("unknown"), "{}", table.table);
            assert_eq!(elements(&table, "podranges"), ["10.244.0.0/16", "fd00:244::/48"]);
            let claimed = [
                "198.51.100.0-198.51.100.8",
                "198.51.100.10-198.51.100.255",
                "2001:db8:99::/64",
            ];
            assert_eq!(elements(&table, "claimed"), claimed);
        }
        inputs.guard = false;
        let state = compile(&inputs);
        for table in [state.ruleset, state.seal] {
            let text = table.expect("a table").render();
            assert!(!text.contains("unknown") && !text.contains("known"), "{text}");
        }
    }

    #[test]
    fn pods_that_the_guard_cant_see_are_told_of() {
        let mut inputs = guarded();
        assert!(problems(&inputs).is_empty());
        inputs.pods[2].addresses = [ip("10.9.0.7")].into();
        let found = problems(&inputs).join("; ");
        assert!(
            found.contains("payments/web-0") && found.contains("localRanges"),
            "{found}"
        );
        inputs.network.sources.clear();
        let found = problems(&inputs).join("; ");
        assert!(found.contains("knows no pod ranges"), "{found}");
        inputs.guard = false;
        assert!(problems(&inputs).is_empty());
    }

    #[test]
    fn what_one_policy_excepts_another_may_claim_and_a_policy_for_everything_claims_it() {
        let mut inputs = guarded();
        let plan = inputs.plan.as_mut().expect("a plan");
        let mut other = fixtures::bank();
        other.source.name = "other".into();
        other.to.cidrs = vec!["198.51.100.9/32".into()];
        other.to.except.clear();
        plan.policies.push(other);
        let claimed_now =
            |inputs: &NodeInputs| elements(&compile(inputs).ruleset.expect("a table"), "claimed");
        assert_eq!(claimed_now(&inputs), ["198.51.100.0/24", "2001:db8:99::/64"]);
        let policy = &mut inputs.plan.as_mut().expect("a plan").policies[1];
        policy.to.cidrs.clear();
        assert_eq!(claimed_now(&inputs), ["0.0.0.0/0", "::/0"]);
    }

    prop_compose! {
        /// Pods that come in all states, some with addresses of others, some with sandboxes.
        fn crowded()(
            pods in prop::collection::vec(
                (any::<[bool; 5]>(), 0u8..6, 0i64..3, prop::option::of(any::<bool>()), any::<bool>()), 0..8),
            guard in any::<bool>(),
        ) -> NodeInputs {
            let mut inputs = NodeInputs { guard, pods: Vec::new(), ..fixtures::source() };
            for (n, ([selected, deleting, removed, finished, shown], address, created, sandboxed, has)) in
                pods.into_iter().enumerate()
            {
                let app = if selected { "billing" } else { "web" };
                let address = format!("10.244.0.{address}");
                let pod = Pod {
                    uid: format!("uid-{n}"),
                    created,
                    deleting,
                    removed,
                    finished,
                    ..fixtures::pod(&format!("pod-{n}"), app, &[&address])
                };
                if let Some(fresh) = sandboxed {
                    inputs.sandboxes.push(sandbox(Pod { finished: false, removed: false, ..pod.clone() }, fresh));
                }
                if shown {
                    inputs.pods.push(if has { pod } else { Pod { addresses: BTreeSet::new(), ..pod } });
                }
            }
            inputs
        }
    }

    /// What becomes of a new connection from `source` to a destination that policy `bank` claims, by the sets.
    fn passes(inputs: &NodeInputs, table: &Ruleset, source: IpAddr) -> bool {
        let key = vec![super::super::nft::Atom::Ip(source)];
        let selected = table.sets["pods4"].elements.contains_key(&key);
        !selected && (!inputs.guard || table.sets["known4"].elements.contains_key(&key))
    }

    proptest! {
        /// The oracle knows of each address whether somebody may have it whom the policy selects, or whom nobody has
        /// told this node of.
        #[test]
        fn with_the_guard_nothing_passes_that_could_be_a_selected_pods(inputs in crowded()) {
            let state = compile(&inputs);
            let first = state.ruleset.expect("a table");
            let seal = state.seal.expect("a seal");
            for last in 0..8u8 {
                let source = IpAddr::from([10, 244, 0, last]);
                let pass = passes(&inputs, &first, source);
                prop_assert_eq!(pass, passes(&inputs, &seal, source), "both tables say the same");
                if !inputs.guard || !pass {
                    continue;
                }
                let alive = |p: &&Pod| !p.removed && !p.finished && !p.deleting;
                let shown = inputs.pods.iter().filter(alive);
                let fresh = inputs.sandboxes.iter().filter(|s| s.fresh && !s.pod.deleting).map(|s| &s.pod);
                let mut certain = shown.chain(fresh).filter(|p| p.addresses.contains(&source));
                prop_assert!(
                    certain.any(|p| p.pods_app() == "web"),
                    "{source} passes though nobody has it for certain whom no policy selects"
                );
            }
        }
    }

    impl Pod {
        fn pods_app(&self) -> &str {
            &self.labels["app"]
        }
    }

    #[test]
    fn selectors_dont_matter_for_what_is_claimed() {
        let mut inputs = guarded();
        let before = claimed(inputs.plan.as_ref().expect("a plan"));
        let policy = &mut inputs.plan.as_mut().expect("a plan").policies[0];
        policy.pods = LabelSelector::default();
        policy.namespaces = Some(fixtures::app("x"));
        policy.source.namespace = None;
        assert_eq!(claimed(inputs.plan.as_ref().expect("a plan")), before);
    }
}

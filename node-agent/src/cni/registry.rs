//! What the CNI gave out, in the order in which it did.

use std::collections::BTreeSet;

use spillway_core::node::inputs::{NodeInputs, Pod};
use spillway_core::node::sandbox::Sandbox;

/// Ended pods that are remembered until the watch shows their end.
const GONE_LIMIT: usize = 1_000;

/// Sandboxes of this node.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Oldest first.
    sandboxes: Vec<Sandbox>,
    /// Counts changes.
    number: u64,
    /// Uids of pods whose last sandbox went: their addresses are free, whatever their status says.
    gone: BTreeSet<String>,
    /// Uids of pods without addresses whose ADD is still to come.
    expected: BTreeSet<String>,
    /// A pod that got its addresses without any ADD since the last one that came.
    unheard: Option<String>,
}

impl Registry {
    /// Goes on from what was stored.
    pub(super) fn restore(&mut self, sandboxes: &[Sandbox]) {
        self.sandboxes = sandboxes.to_vec();
    }

    /// A sandbox was made. Older ones of the same pod, and those with the same addresses, are gone: their DEL was
    /// lost. Gives its number.
    pub(super) fn add(&mut self, sandbox: Sandbox) -> u64 {
        let pod = &sandbox.pod;
        self.sandboxes.retain(|old| {
            let outdated = if old.container == sandbox.container {
                old.interface == sandbox.interface
            } else {
                !pod.uid.is_empty() && old.pod.uid == pod.uid
            };
            !outdated && old.pod.addresses.is_disjoint(&pod.addresses)
        });
        self.gone.remove(&pod.uid);
        self.unheard = None;
        self.sandboxes.push(sandbox);
        self.number += 1;
        self.number
    }

    /// Sandboxes are gone. Gives the change's number if there was one.
    pub(super) fn remove(&mut self, gone: impl Fn(&Sandbox) -> bool) -> Option<u64> {
        let before = self.sandboxes.len();
        let mut ended = BTreeSet::new();
        self.sandboxes.retain(|s| {
            let gone = gone(s);
            if gone && !s.pod.uid.is_empty() {
                ended.insert(s.pod.uid.clone());
            }
            !gone
        });
        if self.sandboxes.len() == before {
            return None;
        }
        ended.retain(|uid| !self.sandboxes.iter().any(|s| s.pod.uid == *uid));
        self.gone.extend(ended);
        while self.gone.len() > GONE_LIMIT {
            self.gone.pop_first();
        }
        self.number += 1;
        Some(self.number)
    }

    /// Looks whether pods get their addresses without an ADD, that is, whether the runtime uses the chain at all. `expected` is
    /// false while some may well pass the plugin by; then nothing is concluded.
    pub(super) fn listen(&mut self, pods: &[Pod], expected: bool) {
        let heard = |pod: &Pod| {
            let name = (&pod.namespace, &pod.name);
            self.sandboxes
                .iter()
                .any(|s| (&s.pod.namespace, &s.pod.name) == name)
        };
        let mut waiting = BTreeSet::new();
        let own = pods
            .iter()
            .filter(|p| !p.host_network && !p.finished && !p.removed);
        for pod in own.filter(|p| expected && !heard(p)) {
            if pod.addresses.is_empty() {
                waiting.insert(pod.uid.clone());
            } else if self.expected.contains(&pod.uid) && !self.gone.contains(&pod.uid) {
                self.unheard = Some(format!("{}/{}", pod.namespace, pod.name));
            }
        }
        self.expected = waiting;
    }

    /// The pod by which [`Self::listen`] found that out.
    pub(super) fn unheard(&self) -> Option<&str> {
        self.unheard.as_deref()
    }

    /// Completes the inputs by what is known here; gives the number up to which.
    pub(super) fn complete(&mut self, inputs: &mut NodeInputs) -> u64 {
        inputs.sandboxes.clone_from(&self.sandboxes);
        let gone = &self.gone;
        for pod in inputs.pods.iter_mut().filter(|p| gone.contains(&p.uid)) {
            pod.addresses.clear();
        }
        inputs.pods.retain(|p| !(p.removed && gone.contains(&p.uid)));
        let known: BTreeSet<&str> = inputs.pods.iter().map(|p| p.uid.as_str()).collect();
        self.gone.retain(|uid| known.contains(uid.as_str()));
        self.number
    }
}

#[cfg(test)]
mod tests {
    use spillway_core::node::inputs::Pod;

    use super::*;

    fn sandbox(container: &str, uid: &str, address: &str) -> Sandbox {
        Sandbox {
            container: container.into(),
            interface: "eth0".into(),
            pod: Pod {
                uid: uid.into(),
                addresses: [address.parse().expect("address")].into(),
                ..Pod::default()
            },
            fresh: true,
        }
    }

    fn containers(registry: &mut Registry) -> Vec<String> {
        let mut inputs = NodeInputs::default();
        registry.complete(&mut inputs);
        inputs.sandboxes.into_iter().map(|s| s.container).collect()
    }

    #[test]
    fn a_new_sandbox_ends_older_ones_of_its_pod_and_of_its_address() {
        let mut registry = Registry::default();
        registry.add(sandbox("1", "a", "10.0.0.1"));
        registry.add(sandbox("2", "b", "10.0.0.2"));
        registry.add(sandbox("3", "a", "10.0.0.3"));
        assert_eq!(containers(&mut registry), ["2", "3"]);
        registry.add(sandbox("4", "c", "10.0.0.2"));
        assert_eq!(containers(&mut registry), ["3", "4"]);
        let mut second = sandbox("4", "c", "10.9.0.2");
        second.interface = "net1".into();
        registry.add(second);
        assert_eq!(containers(&mut registry).len(), 3, "two interfaces");
    }

    #[test]
    fn a_pod_that_gets_its_address_without_an_add_shows_that_nobody_uses_the_chain() {
        let pod = |name: &str, address: &[&str]| Pod {
            namespace: "n".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            addresses: address.iter().map(|a| a.parse().expect("address")).collect(),
            ..Pod::default()
        };
        let made = |name: &str, address: &str| Sandbox {
            container: name.into(),
            pod: pod(name, &[address]),
            ..Sandbox::default()
        };
        let mut registry = Registry::default();
        registry.listen(&[pod("a", &[]), pod("old", &["10.0.0.9"])], true);
        registry.add(made("a", "10.0.0.1"));
        registry.listen(&[pod("a", &["10.0.0.1"]), pod("b", &[])], true);
        assert_eq!(
            registry.unheard(),
            None,
            "its ADD came; of the old one nobody knows"
        );
        registry.listen(&[pod("b", &["10.0.0.2"])], false);
        assert_eq!(registry.unheard(), None, "it may well have passed the plugin by");
        registry.listen(&[pod("c", &[])], true);
        registry.listen(&[pod("c", &["10.0.0.3"])], true);
        assert_eq!(registry.unheard(), Some("n/c"));
        registry.listen(&[pod("c", &["10.0.0.3"])], true);
        assert_eq!(registry.unheard(), Some("n/c"), "until somebody is heard of");
        registry.add(made("d", "10.0.0.4"));
        assert_eq!(registry.unheard(), None);
        // Made and ended before its status came.
        registry.listen(&[pod("e", &[])], true);
        registry.add(made("e", "10.0.0.5"));
        registry.remove(|s| s.container == "e");
        registry.listen(&[pod("e", &["10.0.0.5"])], true);
        assert_eq!(registry.unheard(), None);
    }

    #[test]
    fn an_ended_pods_addresses_are_free_whatever_its_status_says() {
        let mut registry = Registry::default();
        let first = registry.add(sandbox("1", "a", "10.0.0.1"));
        assert_eq!(registry.remove(|s| s.container == "9"), None);
        let second = registry.remove(|s| s.container == "1");
        assert!(second.is_some_and(|n| n > first));
        let status = sandbox("", "a", "10.0.0.1").pod;
        let forgotten = Pod {
            removed: true,
            ..status.clone()
        };
        let mut inputs = NodeInputs {
            pods: vec![status, forgotten],
            ..NodeInputs::default()
        };
        registry.complete(&mut inputs);
        assert_eq!(inputs.pods.len(), 1);
        assert!(inputs.pods[0].addresses.is_empty());
        registry.add(sandbox("2", "a", "10.0.0.7"));
        let mut inputs = NodeInputs {
            pods: vec![sandbox("", "a", "10.0.0.1").pod],
            ..NodeInputs::default()
        };
        registry.complete(&mut inputs);
        assert_eq!(inputs.pods[0].addresses.len(), 1, "it has a sandbox again");
    }
}

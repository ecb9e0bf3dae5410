//! What the CNI gave out, in the order in which it did.

use std::collections::BTreeSet;

use spillway_core::node::inputs::NodeInputs;
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

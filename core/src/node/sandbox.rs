//! Which pod has which address, as the CNI said when it gave them out.
//!
//! A pod's status says it later, and says it of the sandbox before when a sandbox is made anew. So what the CNI
//! plugin reported wins: over the status of the same pod, and over every other pod that claims the address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::inputs::Pod;

/// One network sandbox of a pod of this node, from the plugin's ADD to its DEL.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sandbox {
    /// The runtime's id of it.
    pub container: String,
    /// Interface in it, such as `eth0`.
    pub interface: String,
    /// The pod as it was at that time, with the addresses that the sandbox got on the interface.
    pub pod: Pod,
    /// This agent has seen its ADD itself, and so would have seen its DEL. Not kept over a restart: who was away may have
    /// missed the end.
    #[serde(skip)]
    pub fresh: bool,
}

/// `pods` with the addresses that `sandboxes` have, the sandbox that was made last being the last one, and with
/// those pods that only a sandbox tells of.
pub fn settled(pods: &[Pod], sandboxes: &[Sandbox]) -> Vec<Pod> {
    let mut pods = pods.to_vec();
    for (n, sandbox) in sandboxes.iter().enumerate() {
        let later = &sandboxes[n + 1..];
        let addresses: BTreeSet<IpAddr> = sandbox
            .pod
            .addresses
            .iter()
            .filter(|a| !later.iter().any(|s| s.pod.addresses.contains(a)))
            .copied()
            .collect();
        // Where its end may have been missed, another pod's status may well be newer.
        for pod in pods.iter_mut().filter(|_| sandbox.fresh) {
            pod.addresses.retain(|a| !addresses.contains(a));
        }
        let known = pods.iter_mut().find(|p| sandbox.pod.is(p));
        let first = !sandboxes[..n]
            .iter()
            .any(|s| known.as_ref().is_some_and(|p| s.pod.is(p)));
        match known {
            // Where its end may have been missed, the status may well be newer: then it has both.
            Some(pod) if first && (sandbox.fresh || pod.addresses.is_empty()) => pod.addresses = addresses,
            Some(pod) => pod.addresses.extend(addresses),
            None => pods.push(Pod {
                addresses,
                // Nobody has shown it, and its end may have been missed.
                removed: !sandbox.fresh,
                ..sandbox.pod.clone()
            }),
        }
    }
    pods
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, addresses: &[&str]) -> Pod {
        Pod {
            namespace: "payments".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
            ..Pod::default()
        }
    }

    fn sandbox(container: &str, pod: Pod) -> Sandbox {
        Sandbox {
            container: container.into(),
            interface: "eth0".into(),
            pod,
            fresh: true,
        }
    }

    fn addresses(pods: &[Pod], name: &str) -> Vec<String> {
        let pod = pods.iter().find(|p| p.name == name).expect("the pod");
        pod.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_that_has_no_status_yet_has_its_sandboxes_addresses() {
        let seen = [pod("a", &[])];
        let made = [
            sandbox("1", pod("a", &["10.0.0.1", "fd00::1"])),
            sandbox("2", pod("b", &["10.0.0.2"])),
        ];
        let pods = settled(&seen, &made);
        assert_eq!(addresses(&pods, "a"), ["10.0.0.1", "fd00::1"]);
        assert_eq!(
            addresses(&pods, "b"),
            ["10.0.0.2"],
            "one that the watch hasn't shown yet"
        );
    }

    #[test]
    fn a_reused_address_is_the_new_sandboxes_whatever_the_status_says() {
        let seen = [pod("old", &["10.0.0.1"]), pod("new", &[])];
        let pods = settled(&seen, &[sandbox("2", pod("new", &["10.0.0.1"]))]);
        assert!(addresses(&pods, "old").is_empty());
        assert_eq!(addresses(&pods, "new"), ["10.0.0.1"]);
        // The DEL of the first was lost.
        let both = [
            sandbox("1", pod("old", &["10.0.0.1"])),
            sandbox("2", pod("new", &["10.0.0.1"])),
        ];
        let pods = settled(&seen, &both);
        assert!(addresses(&pods, "old").is_empty());
        assert_eq!(addresses(&pods, "new"), ["10.0.0.1"]);
    }

    #[test]
    fn a_status_of_the_sandbox_before_is_outdated_and_two_interfaces_add_up() {
        let seen = [pod("a", &["10.0.0.1"])];
        let pods = settled(&seen, &[sandbox("2", pod("a", &["10.0.0.9"]))]);
        assert_eq!(addresses(&pods, "a"), ["10.0.0.9"]);
        let two = [
            sandbox("2", pod("a", &["10.0.0.9"])),
            sandbox("2", pod("a", &["10.9.0.9"])),
        ];
        assert_eq!(addresses(&settled(&seen, &two), "a"), ["10.0.0.9", "10.9.0.9"]);
    }

    #[test]
    fn a_sandbox_whose_end_may_have_been_missed_takes_nothing_from_anybody() {
        let stale = |container, pod| Sandbox {
            fresh: false,
            ..sandbox(container, pod)
        };
        let seen = [pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.2"]), pod("c", &[])];
        let made = [
            stale("1", pod("a", &["10.0.0.2"])),
            stale("2", pod("c", &["10.0.0.3"])),
            stale("3", pod("gone", &["10.0.0.4"])),
        ];
        let pods = settled(&seen, &made);
        assert_eq!(addresses(&pods, "a"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(addresses(&pods, "b"), ["10.0.0.2"], "who is younger has it");
        assert_eq!(addresses(&pods, "c"), ["10.0.0.3"]);
        let gone = pods.iter().find(|p| p.name == "gone").expect("it may run on");
        assert!(gone.removed, "but gives way to everybody");
    }

    #[test]
    fn a_pod_without_uid_is_told_by_its_name() {
        let mut anonymous = pod("a", &["10.0.0.3"]);
        anonymous.uid.clear();
        let pods = settled(&[pod("a", &[])], &[sandbox("1", anonymous)]);
        assert_eq!(
            (pods.len(), addresses(&pods, "a")),
            (1, vec!["10.0.0.3".to_owned()])
        );
    }
}

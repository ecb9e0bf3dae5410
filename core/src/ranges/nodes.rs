//! The cluster's Node objects.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use super::found::Found;

/// Annotations with a node's pod ranges, or with an address that nodes have for each other.
const ANNOTATIONS: [(&str, Holds); 6] = [
    ("kube-router.io/pod-cidr", Holds::Pods),
    ("kube-router.io/pod-cidrs", Holds::Pods),
    ("flannel.alpha.coreos.com/public-ip", Holds::Address),
    ("flannel.alpha.coreos.com/public-ip-overwrite", Holds::Address),
    ("flannel.alpha.coreos.com/public-ipv6", Holds::Address),
    ("flannel.alpha.coreos.com/public-ipv6-overwrite", Holds::Address),
];

/// What an annotation holds. A node's kubelet may annotate its own Node, so no more is believed than a node can have:
/// whatever stands here is out of reach of every policy of the cluster.
#[derive(Clone, Copy)]
enum Holds {
    /// Pod ranges of one node: no wider than /20 and /56.
    Pods,
    /// One address.
    Address,
}

impl Holds {
    const fn widest(self, net: &IpNet) -> u8 {
        match (self, net) {
            (Self::Pods, IpNet::V4(_)) => 20,
            (Self::Pods, IpNet::V6(_)) => 56,
            (Self::Address, IpNet::V4(_)) => 32,
            (Self::Address, IpNet::V6(_)) => 128,
        }
    }
}

/// Most ranges of one annotation.
const MAX_PER_ANNOTATION: usize = 8;

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or("?")
}

/// `spec.podCIDRs`. Calico and Weave don't keep to them, but kube-controller-manager fills them in all the same.
pub fn node_pod_ranges<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Found {
    let mut found = Found::default();
    for node in nodes {
        let spec = node.spec.iter();
        for cidr in spec.flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr)) {
            found.range(cidr, format_args!("Node {}, spec.podCIDRs", name(node)));
        }
    }
    found
}

/// Internal and external addresses.
pub fn node_addresses<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Found {
    let mut found = Found::default();
    for node in nodes {
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        for address in addresses.filter(|a| matches!(a.type_.as_str(), "InternalIP" | "ExternalIP")) {
            found.range(
                &address.address,
                format_args!("Node {}, status.addresses", name(node)),
            );
        }
    }
    found
}

/// What CNIs write on nodes, or want written there.
pub fn node_annotations<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Found {
    let mut found = Found::default();
    for node in nodes {
        let annotations = node.metadata.annotations.as_ref();
        for (key, holds) in ANNOTATIONS {
            let Some(list) = annotations.and_then(|a| a.get(key)) else {
                continue;
            };
            let place = format!("Node {}, annotation {key}", name(node));
            let mut here = Found::default();
            here.list(list, &place);
            for fault in here.faults {
                found.fault(fault);
            }
            for net in here.ranges.into_iter().take(MAX_PER_ANNOTATION) {
                let widest = holds.widest(&net);
                if net.prefix_len() < widest {
                    found.fault(format!("{place}: {net} is wider than /{widest} and is not used"));
                } else {
                    found.ranges.insert(net);
                }
            }
        }
    }
    found
}

//! Pods whose addresses no source knows: detection missed a range.

use spillway_crds::member::StrayPod;

use crate::node::inputs::NodeInputs;
use crate::node::local_union;

/// Most pods that a node names: one is enough to act on.
const MAX_STRAYS: usize = 4;

/// Pods of this node with an address outside of the cluster's known ranges, sorted. Policies would take packets to
/// them for egress. Nothing where there is no plan, since then nothing is taken.
pub fn strays(inputs: &NodeInputs) -> Vec<StrayPod> {
    let Some(plan) = &inputs.plan else {
        return Vec::new();
    };
    let local = local_union(inputs, plan);
    let known = |address| {
        // Sorted and disjoint: the last that begins at or before the address is the only one that may hold it.
        let after = local.partition_point(|i| i.first() <= address);
        after > 0 && local[after - 1].contains(address)
    };
    let mut strays: Vec<StrayPod> = inputs
        .pods
        .iter()
        .filter(|p| !p.host_network && !p.finished && !p.removed)
        .flat_map(|p| p.addresses.iter().map(move |a| (p, *a)))
        .filter(|(_, address)| !known(*address))
        .map(|(pod, address)| StrayPod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            address: address.to_string(),
        })
        .collect();
    strays.sort();
    strays.truncate(MAX_STRAYS);
    strays
}

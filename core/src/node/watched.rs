//! Whom a node probes: the nodes that its pods may leave through, those that it shares a gateway with, and relays.

use std::collections::{BTreeMap, BTreeSet};

use spillway_crds::member::NodeRef;

use super::inputs::{Addresses, NodeInputs};
use super::peers::Peers;
use crate::wireguard::PublicKey;

/// The other nodes of all gateways that policies of this member use or that this node belongs to, and relays to peers,
/// with their overlay addresses. A node that this one can't send to is left out: it is no next hop, whatever it would answer. Empty
/// without a plan and until this node has an overlay address of its own.
pub fn watched(inputs: &NodeInputs) -> BTreeMap<NodeRef, Addresses> {
    let Some(plan) = &inputs.plan else {
        return BTreeMap::new();
    };
    let peers = Peers::new(inputs, plan);
    let through = plan.policies.iter().flat_map(|p| &p.through);
    let used: BTreeSet<&str> = through.map(|t| t.gateway.as_str()).collect();
    plan.gateways
        .iter()
        .filter(|g| used.contains(g.gateway.as_str()) || g.nodes.iter().any(|n| peers.is_self(&n.node)))
        .flat_map(|g| g.nodes.iter().map(|n| &n.node))
        .chain(&peers.relays.used)
        .filter_map(|n| Some((n.clone(), peers.get(n)?.overlay)))
        .collect()
}

/// Nodes of other partitions to which the path is encrypted and that this node has to call, since nobody can call it. Without
/// anything to send, WireGuard calls neither for ever nor soon after the other end has lost its keys.
pub fn called(inputs: &NodeInputs) -> BTreeMap<NodeRef, Addresses> {
    let Some(plan) = inputs
        .plan
        .as_ref()
        .filter(|p| p.member.uncallable.contains(&inputs.node))
    else {
        return BTreeMap::new();
    };
    let peers = Peers::new(inputs, plan);
    let elsewhere = plan.peers.iter().filter(|p| p.partition != plan.member.partition);
    let nodes = elsewhere.flat_map(|p| p.nodes.iter().map(|n| NodeRef::new(&p.member, &n.name)));
    let found = |node: &NodeRef| peers.get(node).filter(|p| p.keys.is_some()).map(|p| p.overlay);
    nodes
        .filter_map(|node| Some((node.clone(), found(&node)?)))
        .collect()
}

/// All other nodes that tunnel packets may come from and go to, with their overlay addresses.
pub fn reachable(inputs: &NodeInputs) -> BTreeMap<NodeRef, Addresses> {
    let Some(plan) = &inputs.plan else {
        return BTreeMap::new();
    };
    let peers = Peers::new(inputs, plan);
    let others = peers.underlays().map(|(node, _)| node.clone());
    others
        .filter_map(|node| {
            let overlay = peers.get(&node)?.overlay;
            Some((node, overlay))
        })
        .collect()
}

/// Nodes to which the path must be encrypted, with the key that it is encrypted to or the reason why it can't be yet.
pub fn encrypted(inputs: &NodeInputs) -> BTreeMap<NodeRef, Result<PublicKey, String>> {
    let Some(plan) = &inputs.plan else {
        return BTreeMap::new();
    };
    let peers = Peers::new(inputs, plan);
    let known = peers.keys().map(|(node, key)| (node.clone(), Ok(key)));
    let waiting = peers
        .waiting
        .iter()
        .map(|w| (w.node.clone(), Err(w.reason.clone())));
    known.chain(waiting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixtures;

    fn names(inputs: &NodeInputs) -> Vec<String> {
        watched(inputs).into_keys().map(|n| n.to_string()).collect()
    }

    #[test]
    fn the_nodes_of_gateways_in_use_and_ones_own_colleagues() {
        let mut inputs = fixtures::source();
        assert_eq!(names(&inputs), ["b/b-1"]);
        assert_eq!(
            watched(&inputs).into_values().collect::<Vec<_>>(),
            [Addresses::of(&fixtures::node_of(2).overlay)]
        );
        inputs.plan.as_mut().expect("a plan").policies.clear();
        assert!(names(&inputs).is_empty(), "a gateway that nobody here uses");

        let mut gateway = fixtures::gateway();
        assert!(names(&gateway).is_empty(), "nobody but itself");
        let plan = gateway.plan.as_mut().expect("a plan");
        let mut colleague = plan.gateways[0].nodes[0].clone();
        colleague.node = fixtures::node_ref("a", "a-1");
        plan.gateways[0].nodes.push(colleague);
        assert_eq!(names(&gateway), ["a/a-1"]);
        gateway.nodes.clear();
        assert!(names(&gateway).is_empty(), "no address to send from");
    }
}

//! Which ways lead from this node to a gateway now.

use spillway_crds::hub::Translation;
use spillway_crds::member::{GatewayNodeState, PlannedGatewaySpec};

use super::gateways::{Liveness, carriers};
use super::peers::{Peer, Peers};

/// How this node's pods reach a gateway.
#[derive(Clone, Debug)]
pub(super) enum Exit<'a> {
    /// Not at all: nobody carries the gateway, or nobody that this node can send to.
    None,
    /// This node carries it.
    Here,
    /// Through the tunnel, by any of these.
    Tunnel(Vec<&'a Peer>),
}

/// The ways to `gateway`.
pub(super) fn exit<'a>(gateway: &PlannedGatewaySpec, peers: &'a Peers, liveness: &Liveness) -> Exit<'a> {
    let nodes = useful(gateway, carriers(gateway, liveness));
    if nodes.iter().any(|n| peers.is_self(n)) {
        return Exit::Here;
    }
    let hops: Vec<&Peer> = nodes.into_iter().filter_map(|n| peers.get(n)).collect();
    if hops.is_empty() {
        Exit::None
    } else {
        Exit::Tunnel(hops)
    }
}

/// Where packets for `gateway` are sent from this node. Of a gateway of which no node answers, that is whoever is left in
/// the plan: only policies that would drop their packets otherwise still use it.
pub(super) fn hops<'a>(gateway: &PlannedGatewaySpec, peers: &'a Peers, liveness: &Liveness) -> Vec<&'a Peer> {
    match exit(gateway, peers, liveness) {
        Exit::Here => Vec::new(),
        Exit::Tunnel(hops) => hops,
        Exit::None => silent(gateway, peers),
    }
}

/// Nodes of `gateway` that its clusters call ready, whatever probes say. A node answers nothing while its agent is
/// replaced, and its kernel forwards all the while.
fn silent<'a>(gateway: &PlannedGatewaySpec, peers: &'a Peers) -> Vec<&'a Peer> {
    let ready = gateway
        .nodes
        .iter()
        .filter(|n| n.state == GatewayNodeState::Ready);
    useful(gateway, ready.filter_map(|n| peers.get(&n.node)).collect())
}

/// Of a gateway that translates on its own node the first alone: its connections' state is there.
fn useful<T>(gateway: &PlannedGatewaySpec, mut nodes: Vec<T>) -> Vec<T> {
    if gateway.translation == Translation::GatewayNode {
        nodes.truncate(1);
    }
    nodes
}

//! Why an egress IP moved, in words for whoever is on duty.

use std::fmt;
use std::net::IpAddr;

use spillway_crds::member::{GatewayNodeState, NodeRef, PlannedGatewaySpec};

use crate::node::gateways::{Liveness, carriers, holder, pinned};

/// A gateway as it was seen at some moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// What the plan says of it; absent where it had none.
    pub gateway: Option<&'a PlannedGatewaySpec>,
    /// What the probes said.
    pub liveness: &'a Liveness,
}

impl View<'_> {
    fn holder(&self, address: IpAddr) -> Option<NodeRef> {
        let gateway = self.gateway?;
        holder(gateway, &carriers(gateway, self.liveness), address).cloned()
    }

    fn state(&self, node: &NodeRef) -> Option<GatewayNodeState> {
        let nodes = &self.gateway?.nodes;
        nodes.iter().find(|n| n.node == *node).map(|n| n.state)
    }
}

/// Why a node took an egress IP.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Why {
    /// Nothing happened: addresses are spread over a gateway's nodes.
    Rank,
    /// The gateway is new in the plan.
    Plan,
    /// The node that had it doesn't answer.
    Dead(NodeRef),
    /// It doesn't belong to the gateway any more.
    Gone(NodeRef),
    /// It is being drained.
    Draining(NodeRef),
    /// It asked to be left, or is held down.
    Retiring(NodeRef),
    /// This node had failed, or was restarted, and has its place again.
    Back,
    /// Somebody wants it here.
    Pinned,
}

impl Why {
    /// One word for it, as metrics have it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Rank => "rank",
            Self::Plan => "plan",
            Self::Dead(_) => "dead",
            Self::Gone(_) => "gone",
            Self::Draining(_) => "draining",
            Self::Retiring(_) => "retiring",
            Self::Back => "back",
            Self::Pinned => "pinned",
        }
    }

    /// Something is wrong, or was: worth a warning.
    pub const fn is_failure(&self) -> bool {
        matches!(self, Self::Dead(_))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rank => f.write_str("this node is the first in rank for it"),
            Self::Plan => f.write_str("the plan gave it to this node"),
            Self::Dead(node) => write!(f, "node {node} doesn't answer"),
            Self::Gone(node) => write!(f, "node {node} no longer belongs to the gateway"),
            Self::Draining(node) => write!(f, "node {node} is being drained"),
            Self::Retiring(node) => write!(f, "node {node} asked to be left or is held down"),
            Self::Back => f.write_str("this node is back and the first in rank for it"),
            Self::Pinned => f.write_str("it is pinned to this node"),
        }
    }
}

/// Why `me` answers for `address` since `after`, and didn't as of `before`.
pub fn why_taken(before: View<'_>, after: View<'_>, me: &NodeRef, address: IpAddr) -> Why {
    let Some(previous) = before.holder(address).filter(|node| node != me) else {
        return match before.gateway {
            None => Why::Plan,
            Some(_) => Why::Rank,
        };
    };
    if after.liveness.dead.contains(&previous) {
        return Why::Dead(previous);
    }
    match after.state(&previous) {
        None => return Why::Gone(previous),
        Some(GatewayNodeState::Draining) => return Why::Draining(previous),
        Some(_) => {}
    }
    if after.liveness.retiring.contains(&previous) {
        return Why::Retiring(previous);
    }
    let wanted = |view: View<'_>| view.gateway.and_then(|g| pinned(g, address)) == Some(me);
    if wanted(after) && !wanted(before) {
        return Why::Pinned;
    }
    if !before.liveness.alive.contains(me) {
        return Why::Back;
    }
    Why::Rank
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use spillway_crds::hub::Translation;
    use spillway_crds::member::GatewayNode;

    use super::*;

    fn node(name: &str) -> NodeRef {
        NodeRef::new("b", name)
    }

    fn gateway(nodes: &[(&str, GatewayNodeState)]) -> PlannedGatewaySpec {
        PlannedGatewaySpec {
            translation: Translation::GatewayNode,
            nodes: nodes
                .iter()
                .map(|(name, state)| GatewayNode {
                    node: node(name),
                    state: *state,
                })
                .collect(),
            ..PlannedGatewaySpec::default()
        }
    }

    fn view<'a>(gateway: &'a PlannedGatewaySpec, liveness: &'a Liveness) -> View<'a> {
        View {
            gateway: Some(gateway),
            liveness,
        }
    }

    #[test]
    fn the_reason_names_what_changed() {
        use GatewayNodeState::{Draining, Ready};
        let address = IpAddr::from([203, 0, 113, 10]);
        let both = gateway(&[("1", Ready), ("2", Ready)]);
        let calm = Liveness::default();
        let set = |name: &str| BTreeSet::from([node(name)]);
        let dead = Liveness {
            dead: set("1"),
            ..Liveness::default()
        };
        let retiring = Liveness {
            retiring: set("1"),
            ..Liveness::default()
        };
        let why = |before, after, me: &str| why_taken(before, after, &node(me), address).to_string();
        let calm_view = view(&both, &calm);
        assert_eq!(why(calm_view, view(&both, &dead), "2"), "node b/1 doesn't answer");
        assert!(why(calm_view, view(&both, &retiring), "2").contains("asked to be left"));
        let drained = gateway(&[("2", Ready), ("1", Draining)]);
        assert!(why(calm_view, view(&drained, &calm), "2").contains("drained"));
        let gone = gateway(&[("2", Ready)]);
        assert!(why(calm_view, view(&gone, &calm), "2").contains("no longer belongs"));
        assert!(why(view(&both, &dead), calm_view, "1").contains("back"));
        let none = View {
            gateway: None,
            liveness: &calm,
        };
        assert!(why(none, calm_view, "1").contains("the plan gave"));
    }
}

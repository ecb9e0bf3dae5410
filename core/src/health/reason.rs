//! Why an egress IP moved, in words for whoever is on duty.

use std::net::IpAddr;

use spillway_crds::member::{GatewayNodeState, NodeRef, PlannedGatewaySpec};

use crate::node::gateways::{Liveness, carriers, holder};

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

/// Why `me` answers for `address` since `after`, and didn't as of `before`.
pub fn why_taken(before: View<'_>, after: View<'_>, me: &NodeRef, address: IpAddr) -> String {
    let Some(previous) = before.holder(address).filter(|node| node != me) else {
        return match before.gateway {
            None => "the plan gave it to this node".into(),
            Some(_) => "this node is the first in rank for it".into(),
        };
    };
    let name = format!("node {previous}");
    if after.liveness.dead.contains(&previous) {
        return format!("{name} doesn't answer");
    }
    match after.state(&previous) {
        None => return format!("{name} no longer belongs to the gateway"),
        Some(GatewayNodeState::Draining) => return format!("{name} is being drained"),
        Some(_) => {}
    }
    if after.liveness.retiring.contains(&previous) {
        return format!("{name} asked to be left or is held down");
    }
    if !before.liveness.alive.contains(me) {
        return "this node is back and the first in rank for it".into();
    }
    "this node is the first in rank for it".into()
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
        let why = |before, after, me: &str| why_taken(before, after, &node(me), address);
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

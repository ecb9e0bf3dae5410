//! What a node has to do with gateways, out of its inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use spillway_crds::member::NodeRef;

use crate::node::inputs::{Addresses, NodeInputs};
use crate::node::{called, reachable, watched};

/// What this node has to do with gateways.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Role {
    /// This node.
    pub me: NodeRef,
    /// Whom it probes.
    pub watched: BTreeSet<NodeRef>,
    /// Those of them that share a gateway with it.
    pub colleagues: BTreeSet<NodeRef>,
    /// It is one of a gateway's nodes.
    pub gateway: bool,
}

/// A role with the addresses and devices that it needs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Assignment {
    /// The role.
    pub role: Role,
    /// Where to send probes: one overlay address each, IPv4 where both nodes have it.
    pub probed: BTreeMap<NodeRef, IpAddr>,
    /// Where to send something now and then, for nothing but that this node is heard: others than those.
    pub called: BTreeMap<NodeRef, IpAddr>,
    /// All overlay addresses that a datagram may come from.
    pub known: BTreeMap<IpAddr, NodeRef>,
    /// The tunnel device.
    pub device: String,
    /// The device that the tunnel's packets come by.
    pub underlay: Option<String>,
    /// Devices on which this node may answer for egress IPs.
    pub uplinks: BTreeSet<String>,
}

impl Assignment {
    /// That of `inputs`. Without a plan, nothing.
    pub fn of(inputs: &NodeInputs) -> Self {
        let (Some(plan), Some(me)) = (&inputs.plan, inputs.me()) else {
            return Self::default();
        };
        let own = inputs.nodes.get(&inputs.node).cloned().unwrap_or_default();
        let overlay = Addresses::of(&own.overlay);
        let has = |address: &IpAddr| overlay.iter().any(|o| o.is_ipv4() == address.is_ipv4());
        let probed: BTreeMap<NodeRef, IpAddr> = watched(inputs)
            .into_iter()
            .filter_map(|(node, addresses)| Some((node, addresses.iter().find(has)?)))
            .collect();
        let called = called(inputs)
            .into_iter()
            .filter(|(node, _)| !probed.contains_key(node))
            .filter_map(|(node, addresses)| Some((node, addresses.iter().find(has)?)))
            .collect();
        let known = reachable(inputs)
            .into_iter()
            .flat_map(|(node, addresses)| addresses.iter().map(move |a| (a, node.clone())))
            .collect();
        let mine: Vec<_> = plan
            .gateways
            .iter()
            .filter(|g| g.nodes.iter().any(|n| n.node == me))
            .collect();
        let colleagues = mine
            .iter()
            .flat_map(|g| &g.nodes)
            .map(|n| &n.node)
            .filter(|n| probed.contains_key(n))
            .cloned()
            .collect();
        let uplinks = mine
            .iter()
            .flat_map(|g| &g.identities)
            .flat_map(|i| Addresses::of(&i.egress_ip).iter())
            .filter_map(|address| inputs.facts.uplink_for(address))
            .map(str::to_owned)
            .collect();
        let underlay = Addresses::of(&own.underlay)
            .iter()
            .find_map(|address| inputs.facts.device_of(address))
            .map(str::to_owned);
        Self {
            role: Role {
                me,
                watched: probed.keys().cloned().collect(),
                colleagues,
                gateway: !mine.is_empty(),
            },
            probed,
            called,
            known,
            device: inputs.settings.device.clone(),
            underlay,
            uplinks,
        }
    }

    /// No gateway concerns this node: it neither asks nor answers.
    pub fn idle(&self) -> bool {
        self.probed.is_empty() && !self.role.gateway
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixtures;

    #[test]
    fn a_source_probes_a_gateway_answers_and_colleagues_do_both() {
        let source = Assignment::of(&fixtures::source());
        let b1 = fixtures::node_ref("b", "b-1");
        assert_eq!(source.probed.get(&b1), Some(&IpAddr::from([100, 64, 8, 1])));
        assert!(!source.role.gateway && source.role.colleagues.is_empty() && !source.idle());

        let mut inputs = fixtures::gateway();
        let gateway = Assignment::of(&inputs);
        assert!(gateway.role.gateway && gateway.probed.is_empty() && !gateway.idle());
        assert_eq!(gateway.known.len(), 2, "both addresses of a-1");
        assert_eq!(gateway.underlay.as_deref(), Some("eth0"));
        assert_eq!(gateway.uplinks, BTreeSet::from(["eth1".to_owned()]));

        let plan = inputs.plan.as_mut().expect("a plan");
        let mut colleague = plan.gateways[0].nodes[0].clone();
        colleague.node = fixtures::node_ref("a", "a-1");
        plan.gateways[0].nodes.push(colleague.clone());
        let both = Assignment::of(&inputs);
        assert_eq!(both.role.colleagues, BTreeSet::from([colleague.node]));

        inputs.plan.as_mut().expect("a plan").gateways.clear();
        assert!(Assignment::of(&inputs).idle());
        assert!(Assignment::of(&NodeInputs::default()).idle());
    }
}

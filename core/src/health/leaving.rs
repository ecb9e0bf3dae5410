//! A node that was taken out of a gateway goes on forwarding for a while: others learn of it a little later, and what
//! is on its way must arrive. So pods' nodes go on taking replies from it, too.

use std::collections::{BTreeMap, BTreeSet};

use spillway_crds::member::{NodeRef, PlannedGatewaySpec, PlannedPeerSpec};

use super::Moment;
use crate::node::gateways::includes;
use crate::node::inputs::NodeInputs;

/// How long it does.
pub(super) const LINGER: Moment = Moment::from_secs(60);

/// Since when this node has left which gateways, and since when which peers are gone.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Leaving {
    since: BTreeMap<String, Moment>,
    departed: BTreeMap<NodeRef, Moment>,
}

impl Leaving {
    /// Fills in [`NodeInputs::leaving`] and [`NodeInputs::departed`] of `new`, given the inputs before. Answers when to
    /// look again.
    pub fn step(&mut self, now: Moment, before: &NodeInputs, new: &mut NodeInputs) -> Option<Moment> {
        let mut lingering: BTreeMap<&str, &PlannedGatewaySpec> = before
            .leaving
            .iter()
            .chain(
                before
                    .plan
                    .iter()
                    .flat_map(|p| &p.gateways)
                    .filter(|g| belongs(before, g)),
            )
            .map(|g| (g.gateway.as_str(), g))
            .collect();
        for gateway in new.plan.iter().flat_map(|p| &p.gateways) {
            if belongs(new, gateway) {
                lingering.remove(gateway.gateway.as_str());
            }
        }
        self.since.retain(|name, _| lingering.contains_key(name.as_str()));
        for name in lingering.keys() {
            self.since.entry((*name).to_owned()).or_insert(now);
        }
        let since = &self.since;
        let left = |name: &str| since.get(name).is_some_and(|at| now < *at + LINGER);
        new.leaving = lingering
            .into_iter()
            .filter(|(name, _)| left(name))
            .map(|(_, gateway)| gateway.clone())
            .collect();
        let until = |g: &PlannedGatewaySpec| since.get(&g.gateway).map(|at| *at + LINGER);
        let first = new.leaving.iter().filter_map(until).min();
        let departed = self.depart(now, before, new);
        first.into_iter().chain(departed).min()
    }

    /// Keeps peers that the plan no longer has: gateways' nodes, and while this node itself is leaving a gateway, whomever
    /// it forwards for.
    fn depart(&mut self, now: Moment, before: &NodeInputs, new: &mut NodeInputs) -> Option<Moment> {
        let Some(plan) = &new.plan else {
            self.departed.clear();
            new.departed.clear();
            return None;
        };
        let present: BTreeSet<NodeRef> = plan.peers.iter().flat_map(one_each).map(|(n, _)| n).collect();
        let lately = before.plan.iter();
        let forwards = !new.leaving.is_empty();
        let carried = |node: &NodeRef| {
            lately
                .clone()
                .flat_map(|p| &p.gateways)
                .any(|g| includes(g, node))
        };
        let gone: BTreeMap<NodeRef, PlannedPeerSpec> = lately
            .clone()
            .flat_map(|p| &p.peers)
            .flat_map(one_each)
            .filter(|(node, _)| forwards || carried(node))
            .chain(before.departed.iter().flat_map(one_each))
            .filter(|(node, _)| !present.contains(node) && node.member != plan.member.member)
            .collect();
        self.departed.retain(|node, _| gone.contains_key(node));
        for node in gone.keys() {
            self.departed.entry(node.clone()).or_insert(now);
        }
        let lingers = |node: &NodeRef| self.departed.get(node).is_some_and(|at| now < *at + LINGER);
        let gone = gone.into_iter().filter(|(node, _)| lingers(node));
        new.departed = gone.map(|(_, peer)| peer).collect();
        let until = self.departed.values().map(|at| *at + LINGER);
        until.filter(|at| *at > now).min()
    }
}

/// A peer's nodes, each in a spec of its own.
fn one_each(peer: &PlannedPeerSpec) -> impl Iterator<Item = (NodeRef, PlannedPeerSpec)> {
    peer.nodes.iter().map(|node| {
        let alone = PlannedPeerSpec {
            nodes: vec![node.clone()],
            ..peer.clone()
        };
        (NodeRef::new(&peer.member, &node.name), alone)
    })
}

fn belongs(inputs: &NodeInputs, gateway: &PlannedGatewaySpec) -> bool {
    inputs.me().is_some_and(|me| includes(gateway, &me))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixtures;

    #[test]
    fn a_gateway_lingers_until_its_time_is_over_or_it_is_back() {
        let before = fixtures::gateway();
        let mut without = before.clone();
        without.plan.as_mut().expect("a plan").gateways[0].nodes.clear();
        let at = Moment::from_secs;
        let mut leaving = Leaving::default();

        let mut same = before.clone();
        assert_eq!(leaving.step(at(1), &before, &mut same), None);
        assert!(same.leaving.is_empty());

        let mut new = without.clone();
        assert_eq!(leaving.step(at(2), &before, &mut new), Some(at(62)));
        assert_eq!(new.leaving, before.plan.as_ref().expect("a plan").gateways);
        let mut later = without.clone();
        assert_eq!(leaving.step(at(50), &new, &mut later), Some(at(62)));
        assert_eq!(later.leaving, new.leaving);

        let mut back = before.clone();
        assert_eq!(leaving.clone().step(at(55), &later, &mut back), None);
        assert!(back.leaving.is_empty());

        let mut over = without.clone();
        assert_eq!(leaving.step(at(62), &later, &mut over), None);
        assert!(over.leaving.is_empty());
    }

    #[test]
    fn replies_of_a_gateways_node_that_left_are_taken_for_a_while() {
        let before = fixtures::source();
        let peers = before.plan.as_ref().expect("a plan").peers.clone();
        let mut without = before.clone();
        let plan = without.plan.as_mut().expect("a plan");
        plan.peers.clear();
        plan.gateways[0].nodes.clear();
        let at = Moment::from_secs;
        let mut leaving = Leaving::default();

        let mut new = without.clone();
        assert_eq!(leaving.step(at(2), &before, &mut new), Some(at(62)));
        assert_eq!(new.departed, peers);
        let mut later = without.clone();
        assert_eq!(leaving.step(at(50), &new, &mut later), Some(at(62)));
        assert_eq!(later.departed, peers);
        let compiled = |inputs: &NodeInputs| crate::node::compile(inputs).forwarding;
        assert_eq!(
            compiled(&later),
            compiled(&before),
            "the tunnel still leads there"
        );

        let mut back = before.clone();
        assert_eq!(leaving.clone().step(at(55), &later, &mut back), None);
        assert!(back.departed.is_empty());
        let mut over = without.clone();
        assert_eq!(leaving.step(at(62), &later, &mut over), None);
        assert!(over.departed.is_empty() && compiled(&over).is_empty());

        // A peer that never carried anything is nobody to wait for.
        let mut stranger = before.clone();
        stranger.plan.as_mut().expect("a plan").gateways.clear();
        let mut alone = without.clone();
        Leaving::default().step(at(1), &stranger, &mut alone);
        assert!(alone.departed.is_empty());
    }
}

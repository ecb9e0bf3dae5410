//! An egress IP is let go only when another node has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use spillway_crds::member::{NodeRef, PlannedGatewaySpec};

use super::Moment;
use crate::node::gateways::{carriers, holder};
use crate::node::inputs::NodeInputs;

/// How long an address is kept at most for a successor that doesn't say that it has it.
pub const PATIENCE: Moment = Moment::from_secs(5);

/// Addresses that this node answers for though others are to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Handover {
    /// Since when they are.
    since: BTreeMap<IpAddr, Moment>,
}

/// What to do with what is held.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Kept {
    /// For [`crate::node::gateways::Liveness::kept`].
    pub addresses: BTreeSet<IpAddr>,
    /// Whom to ask whether it has them.
    pub successors: BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    /// When to look again though nothing happens.
    pub until: Option<Moment>,
}

impl Handover {
    /// `held`: what the kernel answers for now, with the gateways. `inputs`: what is about to be compiled, with fresh
    /// liveness. `confirmed`: addresses that others were heard to answer for.
    pub fn step(
        &mut self,
        now: Moment,
        held: &BTreeMap<IpAddr, String>,
        inputs: &NodeInputs,
        confirmed: &BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    ) -> Kept {
        let mut kept = Kept::default();
        self.since.retain(|address, _| held.contains_key(address));
        let Some(me) = inputs.me() else {
            return kept;
        };
        // What it keeps, it must be able to forward.
        if inputs.liveness.dead.contains(&me) {
            return kept;
        }
        for (address, name) in held {
            let successor = successor(inputs, name, &me, *address);
            if successor.as_ref() == Some(&me) {
                self.since.remove(address);
                continue;
            }
            let until = *self.since.entry(*address).or_insert(now) + PATIENCE;
            let has = |node: &NodeRef| confirmed.get(node).is_some_and(|a| a.contains(address));
            if now >= until || successor.as_ref().is_some_and(has) {
                continue;
            }
            kept.addresses.insert(*address);
            kept.until = Some(kept.until.map_or(until, |u| u.min(until)));
            if let Some(node) = successor {
                kept.successors.entry(node).or_default().insert(*address);
            }
        }
        kept
    }
}

/// Who is to hold `address`, by the plan or, where this node was just taken out of the gateway, by what it last had.
fn successor(inputs: &NodeInputs, name: &str, me: &NodeRef, address: IpAddr) -> Option<NodeRef> {
    let plan = inputs.plan.as_ref()?;
    let of = |gateway: &PlannedGatewaySpec| {
        let carriers = carriers(gateway, &inputs.liveness);
        holder(gateway, &carriers, address).cloned()
    };
    if let Some(gateway) = plan.gateways.iter().find(|g| g.gateway == name) {
        return of(gateway);
    }
    let mut left = inputs.leaving.iter().find(|g| g.gateway == name)?.clone();
    left.nodes.retain(|n| n.node != *me);
    of(&left)
}

#[cfg(test)]
mod tests {
    use spillway_crds::member::GatewayNodeState;

    use super::*;
    use crate::node::fixtures;

    const EIP: &str = "203.0.113.10";

    /// b-1, and b-2 with it in the gateway.
    fn two() -> NodeInputs {
        let mut inputs = fixtures::gateway();
        let plan = inputs.plan.as_mut().expect("a plan");
        let mut other = plan.gateways[0].nodes[0].clone();
        other.node = fixtures::node_ref("b", "b-2");
        plan.gateways[0].nodes.push(other);
        inputs
    }

    fn held() -> BTreeMap<IpAddr, String> {
        BTreeMap::from([(EIP.parse().expect("an address"), "frankfurt".to_owned())])
    }

    fn drained() -> NodeInputs {
        let mut inputs = two();
        inputs.plan.as_mut().expect("a plan").gateways[0].nodes[0].state = GatewayNodeState::Draining;
        inputs
    }

    #[test]
    fn an_address_is_kept_until_its_successor_has_it() {
        let (now, none) = (Moment::from_secs(1), BTreeMap::new());
        let mut handover = Handover::default();
        assert_eq!(handover.step(now, &held(), &two(), &none), Kept::default());

        let kept = handover.step(now, &held(), &drained(), &none);
        let all: BTreeSet<IpAddr> = held().into_keys().collect();
        let successor = fixtures::node_ref("b", "b-2");
        assert_eq!(kept.addresses, all);
        assert_eq!(
            kept.successors,
            BTreeMap::from([(successor.clone(), all.clone())])
        );
        assert_eq!(kept.until, Some(now + PATIENCE));

        let confirmed = BTreeMap::from([(successor, all)]);
        assert_eq!(
            handover.clone().step(now, &held(), &drained(), &confirmed),
            Kept::default()
        );
        assert_eq!(
            handover.step(now + PATIENCE, &held(), &drained(), &none),
            Kept::default(),
            "a successor that says nothing gets it all the same"
        );
    }

    #[test]
    fn what_is_dead_keeps_nothing() {
        let mut inputs = drained();
        inputs.liveness.dead.insert(fixtures::node_ref("b", "b-1"));
        let kept = Handover::default().step(Moment::ZERO, &held(), &inputs, &BTreeMap::new());
        assert_eq!(kept, Kept::default());
    }

    #[test]
    fn a_gateway_that_was_left_is_handed_over_too() {
        let mut inputs = two();
        let plan = inputs.plan.as_mut().expect("a plan");
        inputs.leaving = std::mem::take(&mut plan.gateways);
        let kept = Handover::default().step(Moment::ZERO, &held(), &inputs, &BTreeMap::new());
        assert_eq!(kept.addresses.len(), 1);
        assert!(kept.successors.contains_key(&fixtures::node_ref("b", "b-2")));
    }
}

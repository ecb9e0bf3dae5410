//! A node that was taken out of a gateway goes on forwarding for a while: others learn of it a little later, and what
//! is on its way must arrive.

use std::collections::BTreeMap;

use spillway_crds::member::PlannedGatewaySpec;

use super::Moment;
use crate::node::gateways::includes;
use crate::node::inputs::NodeInputs;

/// How long it does.
pub(super) const LINGER: Moment = Moment::from_secs(60);

/// Since when this node has left which gateways.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Leaving {
    since: BTreeMap<String, Moment>,
}

impl Leaving {
    /// Fills in [`NodeInputs::leaving`] of `new`, given the inputs before. Answers when to look again.
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
        new.leaving.iter().filter_map(until).min()
    }
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
}

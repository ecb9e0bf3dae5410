//! Which egress IPs to announce once more though they haven't moved.
//!
//! While an address changes hands two nodes answer for it, and neighbours may have heard the old one last; or an
//! announcement was lost. That harms nobody while both forward. When one of them is gone, neighbours that believe in it
//! would find out by their own timers only: on Linux up to 45 s until they doubt, and 8 s from then on (RFC 4861, 7.3
//! and 10). The same goes for a node whose packets got nowhere while it took the address: it can't know what was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use spillway_crds::member::NodeRef;

use crate::node::inputs::NodeInputs;

/// Those of the addresses that are `held` (with their gateways) that a node may have answered for which was there as of
/// `before` and isn't as of `now`; all of them where this node is heard again.
pub fn again(before: &NodeInputs, now: &NodeInputs, held: &BTreeMap<IpAddr, String>) -> BTreeSet<IpAddr> {
    if before.liveness.heard_anew != now.liveness.heard_anew {
        return held.keys().copied().collect();
    }
    let gateways: BTreeSet<&str> = held.values().map(String::as_str).collect();
    let left = gateways
        .into_iter()
        .filter(|gateway| !there(before, gateway).is_subset(&there(now, gateway)));
    let left: BTreeSet<&str> = left.collect();
    held.iter()
        .filter(|(_, gateway)| left.contains(gateway.as_str()))
        .map(|(address, _)| *address)
        .collect()
}

/// The gateway's nodes that aren't dead.
fn there<'a>(inputs: &'a NodeInputs, gateway: &str) -> BTreeSet<&'a NodeRef> {
    let gateways = inputs.plan.iter().flat_map(|plan| &plan.gateways);
    gateways
        .chain(&inputs.leaving)
        .filter(|g| g.gateway == gateway)
        .flat_map(|g| &g.nodes)
        .map(|n| &n.node)
        .filter(|node| !inputs.liveness.dead.contains(node))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fixtures;

    #[test]
    fn what_a_node_that_is_gone_may_have_answered_for_is_announced_again() {
        let eip = IpAddr::from([203, 0, 113, 10]);
        let held = BTreeMap::from([(eip, "frankfurt".to_owned())]);
        let mut both = fixtures::gateway();
        let mut second = both.plan.as_ref().expect("a plan").gateways[0].nodes[0].clone();
        second.node = fixtures::node_ref("b", "b-2");
        both.plan.as_mut().expect("a plan").gateways[0].nodes.push(second);
        let mut dead = both.clone();
        dead.liveness.dead.insert(fixtures::node_ref("b", "b-2"));
        let alone = fixtures::gateway();

        for gone in [&dead, &alone] {
            assert_eq!(again(&both, gone, &held), [eip].into());
            assert!(again(gone, &both, &held).is_empty(), "it is back");
            assert!(again(gone, gone, &held).is_empty());
        }
        let mut heard = both.clone();
        heard.liveness.heard_anew += 1;
        assert_eq!(
            again(&both, &heard, &held),
            [eip].into(),
            "what it said before was lost"
        );
        let other = BTreeMap::from([(eip, "vienna".to_owned())]);
        assert!(again(&both, &dead, &other).is_empty());
    }
}

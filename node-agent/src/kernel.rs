//! What the plan needs of this node's kernel.

use spillway_dataplane::Facts;

/// What the node's kernel can do, by the names that `EgressNode.status.features` has for it. Never nothing: the hub
/// takes an empty list for a node that hasn't looked yet.
pub(crate) fn features(facts: &Facts) -> Vec<String> {
    let egress_hook = facts.capabilities.egress_hook.then(|| "egress-hook".to_owned());
    std::iter::once("nftables".to_owned())
        .chain(egress_hook)
        .collect()
}

/// What of the kernel is missing for the plan to be programmed.
pub(crate) fn missing(facts: &Facts) -> Vec<String> {
    let required = ["nftables", "vxlan_gbp", "conntrack"];
    facts
        .capabilities
        .missing
        .iter()
        .filter(|(name, _)| required.contains(&name.as_str()))
        .map(|(name, why)| format!("the kernel lacks {name}: {why}"))
        .collect()
}

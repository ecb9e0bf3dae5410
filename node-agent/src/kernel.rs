//! What the plan needs of this node's kernel.

use spillway_dataplane::Facts;

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

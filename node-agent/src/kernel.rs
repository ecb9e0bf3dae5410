//! What the plan needs of this node's kernel.

use clap::ValueEnum;
use spillway_crds::member::LackingFeature;
use spillway_dataplane::{Choice, Facts};

/// Longest reason in a status, in characters.
const MAX_REASON: usize = 512;

const EGRESS_HOOK: &str = "egress-hook";

/// Whether something that not every kernel can is made use of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Use {
    /// Where the kernel can.
    #[default]
    Auto,
    /// Nowhere.
    Off,
}

/// Who encrypts where a path must be encrypted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum WireGuard {
    /// The kernel where it makes a WireGuard device, else the agent.
    #[default]
    Auto,
    /// The kernel. Where it can't, nothing passes on encrypted paths.
    Kernel,
    /// The agent.
    Userspace,
}

impl From<WireGuard> for Choice {
    fn from(choice: WireGuard) -> Self {
        match choice {
            WireGuard::Auto => Self::Auto,
            WireGuard::Kernel => Self::Kernel,
            WireGuard::Userspace => Self::Userspace,
        }
    }
}

/// What the node's kernel can do, by the names that `EgressNode.status.features` has for it, and what it can't. The first
/// is never empty: the hub takes an empty list for a node that hasn't looked yet.
pub(crate) fn features(facts: &Facts, egress_hook: Use) -> (Vec<String>, Vec<LackingFeature>) {
    let nftables = "nftables".to_owned();
    let without = "so as a node of a gateway this one translates by itself (translation: GatewayNode)";
    let why = match (egress_hook, facts.capabilities.missing.get("egress_hook")) {
        (Use::Off, _) => format!("the agent's --egress-hook says off, {without}"),
        (Use::Auto, None) => return (vec![nftables, EGRESS_HOOK.to_owned()], Vec::new()),
        (Use::Auto, Some(error)) => {
            format!("the kernel has no netdev egress hook (Linux 5.16), {without}: {error}")
        }
    };
    let lacking = LackingFeature {
        feature: EGRESS_HOOK.into(),
        reason: why.chars().take(MAX_REASON).collect(),
    };
    (vec![nftables], vec![lacking])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_or_its_operator_does_without_is_said() {
        let mut facts = Facts::default();
        let (features_of_new, lacking) = features(&facts, Use::Auto);
        assert_eq!(features_of_new, ["nftables", "egress-hook"]);
        assert!(lacking.is_empty());
        let (forced, lacking) = features(&facts, Use::Off);
        assert_eq!(forced, ["nftables"]);
        assert!(lacking[0].reason.contains("--egress-hook"), "{lacking:?}");
        let why = "Operation not supported ".repeat(40);
        facts.capabilities.missing.insert("egress_hook".into(), why);
        let (old, lacking) = features(&facts, Use::Auto);
        assert_eq!(old, ["nftables"]);
        assert!(lacking[0].reason.contains("5.16"), "{lacking:?}");
        assert!(lacking[0].reason.len() <= MAX_REASON);
        assert!(missing(&facts).is_empty(), "no plan is held back for it");
    }
}

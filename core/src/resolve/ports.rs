//! What to say of ports: a gateway's condition, and what a policy waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use spillway_crds::condition::{ConditionType, Verdict};
use spillway_crds::hub::Translation;
use spillway_crds::member::NodeRef;

use super::gateway::Gateway;
use super::policy::Policy;
use super::slices::Allotted;
use super::status::{MAX_NAMES, View};

/// What a user can do about too few ports.
const REMEDY: &str = "let some policies use another egress IP (spec.through[].egressIP; add addresses to the gateway's pool where there is none), or select fewer members";

/// `PortsAvailable` of a gateway.
pub(super) fn of_gateway(gateway: &Gateway<'_>, allotted: Option<&Allotted>) -> Verdict {
    let kind = ConditionType::PortsAvailable;
    if gateway.translation == Translation::GatewayNode {
        return match &gateway.unfit {
            None => Verdict::yes(kind, "TranslatedAtGateway", ""),
            Some(node) => Verdict::no(
                kind,
                "KernelTooOld",
                format!(
                    "node {node} has no netdev egress hook (Linux 5.16) or may not use it (its EgressNode's status.lacking says which), so the gateway translates on its own nodes, as with spec.translation: GatewayNode; upgrade that node's kernel, take it out of spec.nodes, or set spec.translation: GatewayNode",
                ),
            ),
        };
    }
    let shortage = allotted.map(|a| &a.shortage).into_iter().flatten();
    let (mut without, mut waiting, mut cramped) = (Vec::new(), Vec::new(), Vec::new());
    for (address, lack) in shortage {
        for (node, hope) in &lack.without {
            if *hope { &mut waiting } else { &mut without }.push((*address, node));
        }
        cramped.extend(lack.cramped.iter().map(|n| (*address, n)));
    }
    if !without.is_empty() {
        let message = format!("no port is left for {}; {REMEDY}", list(&without));
        return Verdict::no(kind, "PortsExhausted", message);
    }
    if !waiting.is_empty() {
        let message = format!(
            "no port is free for {} until connections of others end; {REMEDY}",
            list(&waiting)
        );
        return Verdict::no(kind, "PortsScarce", message);
    }
    if !cramped.is_empty() {
        let message = format!(
            "nearly all ports are in use and no more are free for {}; {REMEDY}",
            list(&cramped)
        );
        return Verdict::no(kind, "PortsScarce", message);
    }
    Verdict::yes(kind, "PortsAvailable", "")
}

/// `203.0.113.1 (a/n1, a/n2); …`, with the rest counted.
fn list(nodes: &[(IpAddr, &NodeRef)]) -> String {
    let mut by_address: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for (address, node) in nodes.iter().take(MAX_NAMES) {
        by_address.entry(*address).or_default().push(node.to_string());
    }
    let said: Vec<_> = by_address
        .into_iter()
        .map(|(address, names)| format!("{address} on {}", names.join(", ")))
        .collect();
    match nodes.len().saturating_sub(MAX_NAMES) {
        0 => said.join(" and "),
        more => format!("{} and {more} more", said.join(" and ")),
    }
}

/// Ports that nodes of a policy's members don't have yet.
#[derive(Default)]
pub(super) struct Lacking<'a> {
    /// Members some of whose nodes have none for new connections.
    members: BTreeSet<&'a str>,
    awaited: Vec<(IpAddr, NodeRef)>,
    /// Those of them that get none.
    without: Vec<(IpAddr, NodeRef)>,
}

impl<'a> Lacking<'a> {
    /// Looks at gateways that are expected to work: of others nothing is.
    pub(super) fn of(view: &View<'a, '_>, policy: &Policy<'a>) -> Self {
        let mut out = Self::default();
        for (egress, users) in policy.through.iter().zip(&policy.users) {
            let Some(gateway) = view.gateways.get(&egress.gateway) else {
                continue;
            };
            if gateway.translation != Translation::SourceNode || !gateway.serves() {
                continue;
            }
            let shortage = view.allotted.get(&egress.gateway).map(|a| &a.shortage);
            for address in egress.addresses.iter() {
                let without = shortage.and_then(|s| s.get(&address)).map(|s| &s.without);
                for member in users {
                    for node in view.nodes.get(member).into_iter().flat_map(BTreeMap::keys) {
                        let node = NodeRef::new(*member, *node);
                        let slice = view.slices.of(&egress.gateway, address, &node);
                        if slice.is_some_and(|s| !s.ports.is_empty()) {
                            continue;
                        }
                        out.members.insert(member);
                        if without.is_some_and(|w| w.contains_key(&node)) {
                            out.without.push((address, node));
                        } else {
                            out.awaited.push((address, node));
                        }
                    }
                }
            }
        }
        out
    }

    /// Why the policy isn't programmed, where ports are the reason.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        let kind = ConditionType::Programmed;
        let named = |nodes: &[(IpAddr, NodeRef)]| {
            let nodes: Vec<_> = nodes.iter().map(|(a, n)| (*a, n)).collect();
            list(&nodes)
        };
        if !self.without.is_empty() {
            let message = format!("no port is left for {}; {REMEDY}", named(&self.without));
            return Some(Verdict::no(kind, "PortsExhausted", message));
        }
        if !self.awaited.is_empty() {
            let message = format!("ports are being granted: {}", named(&self.awaited));
            return Some(Verdict::no(kind, "Pending", message));
        }
        None
    }

    /// How many of `programmed` members have ports too.
    pub(super) fn programmed(&self, programmed: u32) -> u32 {
        programmed.saturating_sub(u32::try_from(self.members.len()).unwrap_or(u32::MAX))
    }
}

//! Who answers for a gateway's egress IPs, as its nodes say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use spillway_crds::hub::AddressHolder;

use super::MemberInput;
use super::gateway::Gateway;

/// Addresses that one status has room for.
const MAX_HOLDERS: usize = 1024;
/// Characters of a reason.
const MAX_REASON: usize = 160;

/// The holder of each address that a node claims, sorted by address. Where two claim one, a node that is ready in a
/// cluster that is heard of counts for more than one that isn't, then the later claim.
pub(super) fn holders(gateway: &Gateway<'_>, members: &BTreeMap<&str, &MemberInput>) -> Vec<AddressHolder> {
    let mut best: BTreeMap<IpAddr, ((bool, Option<Timestamp>), AddressHolder)> = BTreeMap::new();
    for (member, nodes) in &gateway.hosts {
        let heard = members.get(member).is_some_and(|m| m.disconnected.is_none());
        for node in nodes {
            for held in &node.held {
                let Ok(address) = held.address.parse::<IpAddr>() else {
                    continue;
                };
                if !gateway.own.contains(address) {
                    continue;
                }
                let claim = (heard && (node.ready || node.draining), held.since.parse().ok());
                if best.get(&address).is_some_and(|(other, _)| *other >= claim) {
                    continue;
                }
                let holder = AddressHolder {
                    address: address.to_string(),
                    member: (*member).into(),
                    node: node.name.clone(),
                    since: held.since.clone(),
                    reason: held.reason.chars().take(MAX_REASON).collect(),
                };
                best.insert(address, (claim, holder));
            }
        }
    }
    best.into_values().map(|(_, h)| h).take(MAX_HOLDERS).collect()
}

/// The nodes in one cell of a table.
pub(super) fn summary(holders: &[AddressHolder]) -> Option<String> {
    let first = holders.first()?;
    let nodes: BTreeSet<_> = holders.iter().map(|h| (&h.member, &h.node)).collect();
    let name = format!("{}/{}", first.member, first.node);
    Some(match nodes.len() {
        1 => name,
        more => format!("{name} +{}", more - 1),
    })
}

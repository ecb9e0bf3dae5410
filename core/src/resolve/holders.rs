//! Who answers for a gateway's egress IPs, as its nodes say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use spillway_crds::hub::AddressHolder;

use super::MemberInput;
use super::gateway::{Gateway, own_addresses};
use crate::address::Addresses;

/// Addresses that one status has room for.
const MAX_HOLDERS: usize = 1024;
/// Characters of a reason.
const MAX_REASON: usize = 160;

/// The holder of each address that a node claims, sorted by address. Where two claim one, a node that is ready in a
/// cluster that is heard of counts for more than one that isn't, then the later claim.
pub(super) fn holders(gateway: &Gateway<'_>, members: &BTreeMap<&str, &MemberInput>) -> Vec<AddressHolder> {
    if gateway.node_ip() {
        return lenders(gateway);
    }
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

/// The node with whose own addresses a gateway without a pool leaves: it says that it holds them. Of several, of which
/// some may mean another such gateway, the best.
fn lenders(gateway: &Gateway<'_>) -> Vec<AddressHolder> {
    let of = |member: &str, name: &str| {
        let node = gateway.hosts.get(member)?.iter().find(|n| n.name == name)?;
        let own = own_addresses(node);
        let holds = node.held.iter().filter_map(|held| {
            let address = held.address.parse::<IpAddr>().ok()?;
            own.iter().any(|a| a == address).then(|| AddressHolder {
                address: address.to_string(),
                member: member.into(),
                node: node.name.clone(),
                since: held.since.clone(),
                reason: held.reason.chars().take(MAX_REASON).collect(),
            })
        });
        Some(holds.collect::<Vec<_>>()).filter(|h| !h.is_empty())
    };
    let mut nodes = gateway.order.iter();
    nodes
        .find_map(|n| of(&n.node.member, &n.node.node))
        .unwrap_or_default()
}

/// The addresses that a gateway without a pool leaves with now: as its nodes say, or where none does yet as the plan does.
pub(super) fn lent(gateway: &Gateway<'_>) -> Addresses {
    let said: Addresses = lenders(gateway)
        .iter()
        .filter_map(|h| h.address.parse::<IpAddr>().ok())
        .collect();
    if !said.is_empty() {
        return said;
    }
    let first = gateway.order.first().filter(|_| gateway.serves());
    let node = first.and_then(|n| {
        let nodes = gateway.hosts.get(n.node.member.as_str())?;
        nodes.iter().find(|m| m.name == n.node.node)
    });
    node.map(|n| own_addresses(n)).unwrap_or_default()
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

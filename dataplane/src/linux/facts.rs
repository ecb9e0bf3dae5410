//! Reads what the node's network looks like.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteType};
use nix::libc::EEXIST;

use super::link::{self, Link};
use super::netlink::Requests;
use super::routes;
use crate::{Capabilities, Device, Facts, Result};

/// The main table.
const MAIN: u32 = 254;

/// Everything but the capabilities.
pub(super) fn observe(
    requests: &mut Requests<RouteNetlinkMessage>,
    underlay: &[IpAddr],
    capabilities: &Capabilities,
) -> Result<Facts> {
    let links = link::observe(requests)?;
    let mut facts = Facts {
        capabilities: capabilities.clone(),
        ..Facts::default()
    };
    let mut names = BTreeMap::new();
    for link in links.values() {
        names.insert(link.index, link.name.clone());
        if !link.ours() {
            facts.on_link.extend(on_link(link));
        }
    }
    facts
        .on_link
        .sort_by(|(a, x), (b, y)| (b.prefix_len(), a, x).cmp(&(a.prefix_len(), b, y)));
    let uplink = underlay.iter().find_map(|ip| {
        links
            .values()
            .find(|l| l.addresses.iter().any(|net| net.addr() == *ip))
    });
    facts.uplink = uplink.map(|l| l.name.clone());
    facts.uplink_mtu = uplink.map(|l| l.mtu);

    let mut best: [Option<(u32, u32)>; 2] = [None, None];
    for ((table, destination, metric), route) in routes::observe(requests)? {
        if table != MAIN || destination.prefix_len() != 0 || route.message.header.kind != RouteType::Unicast {
            continue;
        }
        let Some(device) = route.device.or_else(|| first_hop(&route.message.attributes)) else {
            continue;
        };
        let best = &mut best[usize::from(matches!(destination, IpNet::V6(_)))];
        if best.is_none_or(|(m, _)| metric < m) {
            *best = Some((metric, device));
        }
    }
    let name = |best: Option<(u32, u32)>| best.and_then(|(_, index)| names.get(&index).cloned());
    facts.default_v4 = name(best[0]);
    facts.default_v6 = name(best[1]);
    facts.devices = links
        .into_iter()
        .filter(|(_, link)| !link.loopback && !link.ours())
        .map(|(name, link)| (name, device(link)))
        .collect();
    Ok(facts)
}

fn on_link(link: &Link) -> impl Iterator<Item = (IpNet, String)> + '_ {
    link.addresses
        .iter()
        .filter(|net| link.up && net.prefix_len() < net.max_prefix_len())
        .filter(|net| !net.addr().is_loopback())
        .filter(|net| !matches!(net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local()))
        .map(|net| (net.trunc(), link.name.clone()))
}

fn first_hop(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}

fn device(link: Link) -> Device {
    Device {
        name: link.name,
        index: link.index,
        mtu: link.mtu,
        up: link.up,
        mac: link.mac,
        addresses: link.addresses.into_iter().collect(),
    }
}

/// What of the facts is worth compiling again for.
pub(super) fn relevant(facts: &Facts) -> (spillway_core::node::state::Facts, Capabilities) {
    // Our own device is left out by its alias already.
    (facts.for_compiler(""), facts.capabilities.clone())
}

/// Finds out whether a VXLAN device with GBP can be made, by making one unless we already have one.
pub(super) fn vxlan(requests: &mut Requests<RouteNetlinkMessage>) -> Result<()> {
    let links = link::observe(requests)?;
    if links.values().any(|l| l.alias.as_deref() == Some(link::ALIAS)) {
        return Ok(());
    }
    let name = "spillway-probe";
    make_and_remove(
        requests,
        "probe for VXLAN with group policy",
        name,
        link::probe(name),
    )
}

/// Finds out whether `creation` makes a device of this name, and removes it.
pub(crate) fn make_and_remove(
    requests: &mut Requests<RouteNetlinkMessage>,
    what: &str,
    name: &str,
    creation: RouteNetlinkMessage,
) -> Result<()> {
    match requests.ack(what, NLM_F_CREATE | NLM_F_EXCL, creation) {
        Err(error) if error.errno() != Some(EEXIST) => return Err(error),
        _ => {}
    }
    if let Some(link) = link::observe(requests)?.get(name) {
        requests.ack("remove the probe device", 0, link::deletion(link.index))?;
    }
    Ok(())
}

/// Whether the namespace has IPv6.
pub(super) fn ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|v| v.trim() == "0")
}

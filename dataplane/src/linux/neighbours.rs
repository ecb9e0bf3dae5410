//! Forwarding entries and neighbours of the tunnel device, and proxy neighbours.
//!
//! Forwarding entries and neighbours are ours because the device is. A proxy sits on somebody else's device and is
//! ours by its protocol number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use spillway_core::node::state::{ForwardingEntry, Neighbour, ProxyNeighbour};

use super::netlink::Requests;
use super::step::{Action, Step};
use crate::{Operation, PROTOCOL, Result};

/// `52:54:…` for people.
pub(super) fn mac_text(mac: &[u8]) -> String {
    mac.iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn dump(
    requests: &mut Requests<RouteNetlinkMessage>,
    what: &str,
    family: AddressFamily,
    flags: NeighbourFlags,
) -> Result<Vec<NeighbourMessage>> {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.flags = flags;
    Ok(requests
        .dump(what, &RouteNetlinkMessage::GetNeighbour(message))?
        .into_iter()
        .filter_map(|m| match m {
            RouteNetlinkMessage::NewNeighbour(m) if m.header.family == family => Some(m),
            _ => None,
        })
        .collect())
}

/// The destination of an entry. Dumps of the bridge family give it as bare bytes.
pub(super) fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
            <[u8; 4]>::try_from(bytes.as_slice())
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
                .ok()
        }
        _ => None,
    })
}

fn link_layer(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

fn permanent(message: &NeighbourMessage) -> bool {
    u16::from(message.header.state) & u16::from(NeighbourState::Permanent) != 0
}

/// Forwarding entries of the device: remotes by MAC, and whether each is permanent.
pub(super) fn forwarding(
    requests: &mut Requests<RouteNetlinkMessage>,
    index: u32,
) -> Result<BTreeMap<ForwardingEntry, bool>> {
    let entries = dump(
        requests,
        "list forwarding entries",
        AddressFamily::Bridge,
        NeighbourFlags::empty(),
    )?;
    Ok(entries
        .iter()
        .filter(|m| m.header.ifindex == index)
        .filter_map(|m| {
            Some((
                ForwardingEntry {
                    mac: link_layer(m)?,
                    remote: destination(m)?,
                },
                permanent(m),
            ))
        })
        .collect())
}

fn forwarding_message(index: u32, entry: &ForwardingEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec()));
    message
        .attributes
        .push(NeighbourAttribute::Destination(entry.remote.into()));
    message
}

/// Compares forwarding entries.
pub(super) fn forwarding_steps(
    held: &BTreeMap<ForwardingEntry, bool>,
    wanted: &BTreeSet<ForwardingEntry>,
    index: u32,
) -> Vec<Step> {
    let name = |e: &ForwardingEntry| format!("forwarding {} dst {}", mac_text(&e.mac), e.remote);
    let mut steps = Vec::new();
    for entry in wanted {
        let message = || RouteNetlinkMessage::NewNeighbour(forwarding_message(index, entry));
        if held.get(entry) == Some(&true) {
            continue;
        }
        if held.keys().any(|h| h.mac == entry.mac) {
            steps.push(Step::replace(name(entry), message()));
        } else {
            steps.push(Step::add(name(entry), message()));
        }
    }
    for entry in held.keys() {
        // A MAC with one wanted remote has lost its others by the replacement above.
        if !wanted.contains(entry) && !wanted.iter().any(|w| w.mac == entry.mac) {
            let message = RouteNetlinkMessage::DelNeighbour(forwarding_message(index, entry));
            steps.push(Step::remove(name(entry), message));
        }
    }
    steps
}

/// A neighbour of the tunnel device as the kernel holds it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    mac: Option<[u8; 6]>,
    permanent: bool,
}

/// Neighbours as the kernel holds them where it holds `neighbours`.
pub(super) fn written<'a>(neighbours: impl IntoIterator<Item = &'a Neighbour>) -> BTreeMap<IpAddr, Held> {
    let held = |neighbour: &Neighbour| {
        let held = Held {
            mac: Some(neighbour.mac),
            permanent: true,
        };
        (neighbour.address, held)
    };
    neighbours.into_iter().map(held).collect()
}

/// Neighbours of the device.
pub(super) fn neighbours(
    requests: &mut Requests<RouteNetlinkMessage>,
    index: u32,
) -> Result<BTreeMap<IpAddr, Held>> {
    let mut out = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in dump(requests, "list neighbours", family, NeighbourFlags::empty())? {
            if message.header.ifindex == index
                && let Some(address) = destination(&message)
            {
                out.insert(
                    address,
                    Held {
                        mac: link_layer(&message),
                        permanent: permanent(&message),
                    },
                );
            }
        }
    }
    Ok(out)
}

fn neighbour_message(index: u32, address: IpAddr, mac: Option<[u8; 6]>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
        .attributes
        .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
    message
}

/// Compares neighbours. Entries that the kernel made by itself while resolving aren't permanent, and left to it.
pub(super) fn neighbour_steps(
    held: &BTreeMap<IpAddr, Held>,
    wanted: &BTreeSet<Neighbour>,
    index: u32,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for entry in wanted {
        let object = format!("neighbour {} lladdr {}", entry.address, mac_text(&entry.mac));
        let message =
            || RouteNetlinkMessage::NewNeighbour(neighbour_message(index, entry.address, Some(entry.mac)));
        match held.get(&entry.address) {
            Some(held) if held.permanent && held.mac == Some(entry.mac) => {}
            Some(_) => steps.push(Step::replace(object, message())),
            // The kernel may start to resolve it at any time, so adding has to be able to replace.
            None => steps.push(Step {
                operation: Operation::Add,
                ..Step::replace(object, message())
            }),
        }
    }
    for (address, held) in held {
        if held.permanent && !wanted.iter().any(|w| w.address == *address) {
            let message = RouteNetlinkMessage::DelNeighbour(neighbour_message(index, *address, None));
            steps.push(Step::remove(format!("neighbour {address}"), message));
        }
    }
    steps
}

/// Proxies of ours, by address and interface index.
pub(super) fn proxies(requests: &mut Requests<RouteNetlinkMessage>) -> Result<BTreeSet<(IpAddr, u32)>> {
    let mut out = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in dump(requests, "list proxy neighbours", family, NeighbourFlags::Proxy)? {
            let ours = message.attributes.iter().any(
                |a| matches!(a, NeighbourAttribute::Protocol(p) if *p == RouteProtocol::Other(PROTOCOL)),
            );
            if ours
                && message.header.flags.contains(NeighbourFlags::Proxy)
                && let Some(address) = destination(&message)
            {
                out.insert((address, message.header.ifindex));
            }
        }
    }
    Ok(out)
}

fn proxy_message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Proxy;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
        .attributes
        .push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    message
}

/// Compares proxies. `index` knows interfaces by name.
pub(super) fn proxy_steps(
    held: &BTreeSet<(IpAddr, u32)>,
    wanted: &BTreeSet<ProxyNeighbour>,
    index: impl Fn(&str) -> Option<u32>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut kept = BTreeSet::new();
    for proxy in wanted {
        let object = format!("proxy {} dev {}", proxy.address, proxy.device);
        let Some(index) = index(&proxy.device) else {
            let action = Action::Impossible(format!("{object}: there is no such device"));
            steps.push(Step {
                operation: Operation::Add,
                object,
                action,
            });
            continue;
        };
        kept.insert((proxy.address, index));
        if !held.contains(&(proxy.address, index)) {
            let message = RouteNetlinkMessage::NewNeighbour(proxy_message(index, proxy.address));
            // Somebody's proxy of the same address becomes ours.
            steps.push(Step {
                operation: Operation::Add,
                ..Step::replace(object, message)
            });
        }
    }
    for (address, index) in held.difference(&kept) {
        let message = RouteNetlinkMessage::DelNeighbour(proxy_message(*index, *address));
        steps.push(Step::remove(format!("proxy {address} dev #{index}"), message));
    }
    steps
}

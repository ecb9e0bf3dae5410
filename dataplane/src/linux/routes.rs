//! Routes with our protocol number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use spillway_core::node::state::{Route, RouteTarget};

use super::netlink::Requests;
use super::step::{Action, Step};
use crate::{Operation, PROTOCOL, Result};

/// What the kernel stores for metric 0 of an IPv6 route.
const IPV6_DEFAULT_METRIC: u32 = 1024;

/// The bit of `RTAX_MTU` in `RTAX_LOCK`.
const LOCK_MTU: u32 = 1 << 2;

/// What makes two routes collide: table, destination, metric.
pub(super) type Key = (u32, IpNet, u32);

/// A route as the kernel holds it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) ours: bool,
    pub(super) device: Option<u32>,
    target: Target,
    pub(super) message: RouteMessage,
}

/// A target with its device as index, as the kernel knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Target {
    Device {
        index: u32,
        via: Option<IpAddr>,
        mtu: u32,
    },
    Spread {
        index: u32,
        via: BTreeSet<IpAddr>,
        mtu: u32,
    },
    Unreachable,
    /// A form that we never write.
    Other,
}

/// All routes of both families, also those that aren't ours: an equal key would collide. Cached and local
/// ones are left out.
pub(super) fn observe(requests: &mut Requests<RouteNetlinkMessage>) -> Result<Vec<(Key, Held)>> {
    let mut out = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        for message in requests.dump("list routes", &RouteNetlinkMessage::GetRoute(message))? {
            if let RouteNetlinkMessage::NewRoute(message) = message
                && message.header.address_family == family
                && !message.header.flags.contains(RouteFlags::Cloned)
                && let Some(route) = read(message)
            {
                out.push(route);
            }
        }
    }
    Ok(out)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

pub(super) fn read(message: RouteMessage) -> Option<(Key, Held)> {
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0_u8; 4]),
        _ => IpAddr::from([0_u8; 16]),
    };
    let mut table = u32::from(message.header.table);
    let (mut destination, mut metric, mut device, mut via, mut mtu) = (unspecified, 0, None, None, 0);
    let mut spread = None;
    let mut locked = false;
    let mut plain = message.header.source_prefix_length == 0 && message.header.tos == 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Destination(a) => destination = ip(a)?,
            RouteAttribute::Priority(p) => metric = *p,
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(a) => via = ip(a),
            RouteAttribute::Metrics(metrics) => {
                for m in metrics {
                    match m {
                        RouteMetric::Mtu(m) => mtu = *m,
                        RouteMetric::Lock(LOCK_MTU) => locked = true,
                        _ => plain = false,
                    }
                }
            }
            RouteAttribute::MultiPath(hops) => {
                spread = next_hops(hops);
                plain &= spread.is_some();
            }
            RouteAttribute::PrefSource(_)
            | RouteAttribute::Source(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::Encap(_) => plain = false,
            _ => {}
        }
    }
    if message.header.address_family == AddressFamily::Inet6 && !locked {
        mtu = 0;
    }
    let key = (
        table,
        IpNet::new(destination, message.header.destination_prefix_length).ok()?,
        metric,
    );
    let target = match (message.header.kind, device, spread) {
        (RouteType::Unreachable, _, _) if plain => Target::Unreachable,
        (RouteType::Unicast, Some(index), None) if plain => Target::Device { index, via, mtu },
        (RouteType::Unicast, None, Some((index, via))) if plain => Target::Spread { index, via, mtu },
        _ => Target::Other,
    };
    let ours = message.header.protocol == RouteProtocol::Other(PROTOCOL);
    if let Target::Spread { index, .. } = target {
        device = Some(index);
    }
    Some((
        key,
        Held {
            ours,
            device,
            target,
            message,
        },
    ))
}

/// The one interface of next hops of equal weight, and their addresses; `None` for what we never write, or where one
/// of them carries nothing.
fn next_hops(hops: &[RouteNextHop]) -> Option<(u32, BTreeSet<IpAddr>)> {
    let index = hops.first()?.interface_index;
    let unusable = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    let via = hops.iter().map(|hop| {
        let plain = hop.interface_index == index && hop.hops == 0 && !hop.flags.intersects(unusable);
        let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        });
        gateway.filter(|_| plain)
    });
    Some((index, via.collect::<Option<_>>()?))
}

/// Linux before 4.11 lists an IPv6 route of several next hops as several routes.
fn together(routes: &[&Held]) -> Option<Target> {
    let mut all = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    for route in routes {
        match &route.target {
            Target::Device {
                index,
                via: Some(via),
                mtu,
            } => {
                kinds.insert((*index, *mtu));
                all.insert(*via);
            }
            _ => return None,
        }
    }
    let (index, mtu) = kinds.pop_first().filter(|_| kinds.is_empty())?;
    Some(Target::Spread { index, via: all, mtu })
}

fn key(route: &Route) -> Key {
    let metric = match route.destination {
        IpNet::V6(_) if route.metric == 0 => IPV6_DEFAULT_METRIC,
        _ => route.metric,
    };
    (route.table, route.destination.trunc(), metric)
}

fn message((table, destination, metric): Key, target: &Target) -> RouteMessage {
    let mut message = RouteMessage::default();
    let family = match destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header = RouteHeader {
        address_family: family,
        destination_prefix_length: destination.prefix_len(),
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RouteAttribute::Table(table));
    if destination.prefix_len() > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(destination.addr().into()));
    }
    message.attributes.push(RouteAttribute::Priority(metric));
    match target {
        Target::Device { index, via, mtu } => {
            message.attributes.push(RouteAttribute::Oif(*index));
            if let Some(via) = via {
                message.header.flags.insert(RouteFlags::Onlink);
                message.attributes.push(RouteAttribute::Gateway((*via).into()));
            } else if family == AddressFamily::Inet {
                message.header.scope = RouteScope::Link;
            }
            message.attributes.extend(metrics(&destination, *mtu));
        }
        Target::Spread { index, via, mtu } => {
            message.attributes.extend(metrics(&destination, *mtu));
            let hops = via.iter().map(|via| {
                let mut hop = RouteNextHop::default();
                hop.flags = RouteNextHopFlags::Onlink;
                hop.interface_index = *index;
                hop.attributes.push(RouteAttribute::Gateway((*via).into()));
                hop
            });
            message.attributes.push(RouteAttribute::MultiPath(hops.collect()));
        }
        Target::Unreachable | Target::Other => message.header.kind = RouteType::Unreachable,
    }
    message
}

/// An IPv6 route's MTU counts for forwarded packets only where it is locked (`ip6_dst_mtu_maybe_forward()` in
/// include/net/ip6_route.h). Else they would be found too big after they were translated, and the error would go to the
/// address that they were translated to.
fn metrics(destination: &IpNet, mtu: u32) -> Option<RouteAttribute> {
    let lock = matches!(destination, IpNet::V6(_)).then_some(RouteMetric::Lock(LOCK_MTU));
    let metrics = lock.into_iter().chain([RouteMetric::Mtu(mtu)]);
    (mtu > 0).then(|| RouteAttribute::Metrics(metrics.collect()))
}

fn describe(route: &Route) -> String {
    let Route {
        table,
        destination,
        metric,
        target,
    } = route;
    match target {
        RouteTarget::Device { device, via, .. } => {
            let via = via.map(|v| format!(" via {v}")).unwrap_or_default();
            format!("route {destination}{via} dev {device} table {table} metric {metric}")
        }
        RouteTarget::Spread { device, via, .. } => {
            let via: Vec<String> = via.iter().map(IpAddr::to_string).collect();
            format!(
                "route {destination} via {} dev {device} table {table} metric {metric}",
                via.join(",")
            )
        }
        RouteTarget::Unreachable => format!("route unreachable {destination} table {table} metric {metric}"),
    }
}

/// A target as the kernel knows it; `None` where there is no such device.
fn target(wanted: &RouteTarget, index: impl Fn(&str) -> Option<u32>) -> Option<Target> {
    Some(match wanted {
        RouteTarget::Unreachable => Target::Unreachable,
        RouteTarget::Device { device, via, mtu } => Target::Device {
            index: index(device)?,
            via: *via,
            mtu: *mtu,
        },
        RouteTarget::Spread { device, via, mtu } => {
            let index = index(device)?;
            match via.first() {
                Some(only) if via.len() == 1 => Target::Device {
                    index,
                    via: Some(*only),
                    mtu: *mtu,
                },
                _ => Target::Spread {
                    index,
                    via: via.clone(),
                    mtu: *mtu,
                },
            }
        }
    })
}

/// Whether deleting what leads to `one` would take something of `whole` away.
fn part_of(one: &Target, whole: &Target) -> bool {
    match (one, whole) {
        (Target::Device { via: Some(one), .. }, Target::Spread { via, .. }) => via.contains(one),
        _ => one == whole,
    }
}

/// Routes as the kernel holds them where it holds `routes`, for those whose devices are there.
pub(super) fn written<'a>(
    routes: impl IntoIterator<Item = &'a Route>,
    index: impl Fn(&str) -> Option<u32>,
) -> Vec<(Key, Held)> {
    let held = |route: &Route| {
        let target = target(&route.target, &index)?;
        let key = key(route);
        let held = Held {
            ours: true,
            device: None,
            message: message(key, &target),
            target,
        };
        Some((key, held))
    };
    routes.into_iter().filter_map(held).collect()
}

/// Compares routes. `index` knows interfaces by name.
pub(super) fn steps(
    held: &[(Key, Held)],
    wanted: &BTreeSet<Route>,
    index: impl Fn(&str) -> Option<u32>,
) -> Vec<Step> {
    let mut by_key: BTreeMap<Key, Vec<&Held>> = BTreeMap::new();
    for (key, route) in held {
        by_key.entry(*key).or_default().push(route);
    }
    let mut steps = Vec::new();
    let mut wanted_keys = BTreeSet::new();
    for route in wanted {
        let object = describe(route);
        let key = key(route);
        wanted_keys.insert(key);
        let Some(target) = target(&route.target, &index) else {
            let action = Action::Impossible(format!("{object}: there is no such device"));
            steps.push(Step {
                operation: Operation::Add,
                object,
                action,
            });
            continue;
        };
        let request = RouteNetlinkMessage::NewRoute(message(key, &target));
        match by_key.get(&key).map(Vec::as_slice) {
            None => steps.push(Step::add(object, request)),
            Some([one]) if one.ours && one.target == target => {}
            Some(several)
                if several.len() > 1
                    && several.iter().all(|h| h.ours)
                    && together(several).as_ref() == Some(&target) => {}
            // Taking the same route over from somebody who wrote it by hand harms nobody; another target would.
            Some(several) if several.iter().all(|h| h.ours || h.target == target) => {
                steps.push(Step::replace(object, request));
                // IPv6 keeps several routes under one key, as next hops.
                for extra in several.iter().skip(1).filter(|h| !part_of(&h.target, &target)) {
                    let gone = RouteNetlinkMessage::DelRoute(extra.message.clone());
                    steps.push(Step::remove(format!("route {} (duplicate)", key.1), gone));
                }
            }
            Some(_) => {
                let action = Action::Impossible(format!(
                    "{object}: somebody else has a route for it in the same table with the same metric"
                ));
                steps.push(Step {
                    operation: Operation::Add,
                    object,
                    action,
                });
            }
        }
    }
    for (key, route) in held {
        if route.ours && !wanted_keys.contains(key) {
            let object = format!("route {} table {} metric {}", key.1, key.0, key.2);
            steps.push(Step::remove(
                object,
                RouteNetlinkMessage::DelRoute(route.message.clone()),
            ));
        }
    }
    steps
}

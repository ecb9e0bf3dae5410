//! Egress IPs that this node carries, in either translation: their routes into the tunnel device, by which the kernel
//! itself answers for them on the uplink, and the settings that this takes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::forwarded::Forwarded;
use super::held::Held;
use super::inputs::NodeInputs;
use super::peers::{MAIN, METRIC, Mac};
use super::state::{DesiredState, Neighbour, ProxyNeighbour, Route, RouteTarget};

/// Where the neighbour table has a reply to an egress IP sent to, until the steering table knows its peer. Nobody has
/// this address: it would be that of overlay address 0.0.0.0.
pub(super) const PLACEHOLDER: Mac = [0x02, 0x53, 0, 0, 0, 0];

/// All egress IPs that this node carries and that are none of its own addresses.
pub(super) fn eips(held: &Held, forwarded: &Forwarded) -> BTreeSet<IpAddr> {
    held.guarded.union(&forwarded.eips).copied().collect()
}

/// Those that this node answers for, with their gateways.
pub(super) fn answered(held: &Held, forwarded: &Forwarded) -> BTreeMap<IpAddr, String> {
    let all = held.answered.iter().chain(&forwarded.answered);
    all.map(|(address, gateway)| (*address, gateway.clone()))
        .collect()
}

/// Adds everything but the tables; `mtu` is that of the narrowest path, 0 for the tunnel device's own. A node that takes an address over gains a proxy entry and nothing else.
pub(super) fn program(
    inputs: &NodeInputs,
    held: &Held,
    forwarded: &Forwarded,
    mtu: u32,
    state: &mut DesiredState,
) {
    let device = &inputs.settings.device;
    state.held = answered(held, forwarded);
    let eips = eips(held, forwarded);
    for address in eips
        .into_iter()
        .filter(|a| a.is_ipv4() || !inputs.facts.without_ipv6)
    {
        state.routes.insert(Route {
            table: MAIN,
            destination: address.into(),
            metric: METRIC,
            target: RouteTarget::Device {
                device: device.clone(),
                via: None,
                mtu,
            },
        });
        if forwarded.eips.contains(&address) {
            state.neighbours.insert(Neighbour {
                address,
                mac: PLACEHOLDER,
            });
        }
        let Some(uplink) = inputs.facts.uplink_for(address) else {
            continue;
        };
        if state.held.contains_key(&address) {
            state.proxies.insert(ProxyNeighbour {
                address,
                device: uplink.to_owned(),
            });
        }
        let mut set = |key: String, value: &str| state.sysctls.insert(key, value.to_owned());
        match address {
            IpAddr::V4(_) => {
                set(format!("net/ipv4/neigh/{uplink}/proxy_delay"), "0");
            }
            IpAddr::V6(_) => {
                set(format!("net/ipv6/neigh/{uplink}/proxy_delay"), "0");
                set(format!("net/ipv6/conf/{uplink}/proxy_ndp"), "1");
                // A solicitation sent to the address itself is looked at for this one only
                // (ip6_forward() in net/ipv6/ip6_output.c).
                set("net/ipv6/conf/all/proxy_ndp".into(), "1");
            }
        }
    }
}

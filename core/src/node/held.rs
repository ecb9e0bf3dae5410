//! What this node does as a gateway: the identities whose gateway it carries, who may use them, and the
//! egress IPs it answers for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use spillway_crds::member::PlannedGatewaySpec;

use super::inputs::{Addresses, NodeInputs, NodePlan};
use super::interval::Family;
use super::peers::{MAIN, METRIC, Peers};
use super::select::holder;
use super::state::{DesiredState, ProxyNeighbour, Route, RouteTarget};

/// What this node holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    /// Egress IPs by identity.
    pub(super) identities: BTreeMap<u16, Addresses>,
    /// Egress IPs by who may use which identity.
    pub(super) granted: BTreeMap<(IpNet, u16), BTreeSet<IpAddr>>,
    /// Egress IPs that are no address of this node's own: nothing may be addressed to them once connection
    /// tracking has seen it.
    pub(super) guarded: BTreeSet<IpAddr>,
}

impl Held {
    /// What the plan has this node hold: a gateway is its first node's.
    pub(super) fn new(inputs: &NodeInputs, plan: &NodePlan, peers: &Peers) -> Self {
        let mut held = Self::default();
        let mine = |g: &&PlannedGatewaySpec| holder(g).is_some_and(|n| peers.is_self(n));
        for identity in plan.gateways.iter().filter(mine).flat_map(|g| &g.identities) {
            let egress = Addresses::of(&identity.egress_ip);
            held.identities.insert(identity.id, egress);
            held.guarded
                .extend(egress.iter().filter(|a| !inputs.facts.is_own(*a)));
            for prefix in identity.granted.iter().flat_map(|p| [&p.ipv4, &p.ipv6]).flatten() {
                let Ok(prefix) = prefix.parse::<IpNet>() else {
                    continue;
                };
                let family = Family::of(prefix.addr());
                held.granted
                    .entry((prefix.trunc(), identity.id))
                    .or_default()
                    .extend(egress.get(family));
            }
        }
        held
    }

    /// Routes of egress IPs into the tunnel device, so that the kernel itself answers for them on the
    /// uplink, and the settings that this takes.
    pub(super) fn program(&self, inputs: &NodeInputs, state: &mut DesiredState) {
        for address in self.guarded.iter().copied() {
            if address.is_ipv6() && inputs.facts.without_ipv6 {
                continue;
            }
            state.routes.insert(Route {
                table: MAIN,
                destination: address.into(),
                metric: METRIC,
                target: RouteTarget::Device {
                    device: inputs.settings.device.clone(),
                    via: None,
                    mtu: 0,
                },
            });
            let Some(uplink) = inputs.facts.uplink_for(address) else {
                continue;
            };
            state.proxies.insert(ProxyNeighbour {
                address,
                device: uplink.to_owned(),
            });
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
}

//! From the plan and the node's pods to the kernel's desired state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use spillway_crds::address::PrefixPair;

use super::carried;
use super::exits::{Exit, exit, hops};
use super::flows::Flows;
use super::forwarded::Forwarded;
use super::gateways::is_source_node;
use super::guard::Guard;
use super::held::Held;
use super::index;
use super::inputs::{NodeInputs, NodePlan};
use super::interval::{Family, Interval, union};
use super::own::Own;
use super::peers::{LAST_RESORT, METRIC, Peers};
use super::ruleset::Parts;
use super::select::{Selection, Ways, select};
use super::state::{DesiredState, Route, RouteTarget, Rule};

/// Ranges that never leave any node through a gateway: loopback, link-local, multicast and above.
pub(super) const NEVER: [&str; 7] = [
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "0.0.0.0/8",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

/// What a compilation gives.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Compiled {
    /// What the kernel must hold.
    pub state: DesiredState,
    /// Numbers of the gateways that pods of this node use and other nodes carry. To be kept by the caller
    /// and given back in [`NodeInputs::gateway_indexes`].
    pub gateway_indexes: BTreeMap<String, u8>,
    /// Addresses of this node's running pods that no policy selects.
    pub bystanders: BTreeSet<IpAddr>,
}

/// Compiles what this node's kernel must hold. Without a plan that is nothing.
pub fn compile(inputs: &NodeInputs) -> DesiredState {
    compile_numbered(inputs).state
}

/// Like [`compile`], with the numbers that gateways got.
pub fn compile_numbered(inputs: &NodeInputs) -> Compiled {
    let mut state = DesiredState::default();
    let Some(plan) = &inputs.plan else {
        return Compiled::default();
    };
    let peers = Peers::new(inputs, plan);
    let held = Held::new(inputs, plan, &peers);
    let forwarded = Forwarded::new(inputs, plan, &peers);
    let own = Own::new(plan, &peers);
    let mut selection = select(&Ways {
        inputs,
        plan,
        peers: &peers,
        own: &own,
        forwarded: &forwarded,
    });
    let bystanders = std::mem::take(&mut selection.bystanders);
    let guard = Guard::new(inputs, plan, &mut selection);
    let indexes = assigned(inputs, plan, &peers, &selection);
    let routed = routing_marks(inputs, plan, &selection, &indexes);

    peers.program(inputs, plan, &mut state);
    if state.tunnel.is_some() {
        let device = &inputs.settings.device;
        // Replies come out of the tunnel from addresses that the main table has elsewhere.
        state
            .sysctls
            .insert(format!("net/ipv4/conf/{device}/rp_filter"), "2".into());
        if !inputs.facts.without_ipv6 {
            // Addresses are unique by allocation; waiting for detection would delay the first packet.
            state
                .sysctls
                .insert(format!("net/ipv6/conf/{device}/accept_dad"), "0".into());
        }
        carried::program(
            inputs,
            &held,
            &forwarded,
            peers.least_mtu().unwrap_or(0),
            &mut state,
        );
    }
    for (gateway, index) in &indexes {
        program_gateway(inputs, plan, &peers, gateway, *index, &mut state);
    }

    let local = local_union(inputs, plan);
    let overlay_range = overlay_range(plan);
    let eips = carried::eips(&held, &forwarded);
    let parts = Parts {
        settings: &inputs.settings,
        port: plan.member.tunnel.port,
        wireguard_port: plan.member.tunnel.wireguard_port,
        mtu: state.tunnel.as_ref().map(|t| peers.least_mtu().unwrap_or(t.mtu)),
        overlay: peers.own_overlay(),
        overlay_range: &overlay_range,
        peers: &peers,
        local: &local,
        selection: &selection,
        guard: guard.as_ref(),
        routed: &routed,
        away: &away(inputs, plan, &peers),
        eips: &eips,
        held: &held,
        own: &own,
        forwarded: &forwarded,
    };
    let ruleset = parts.ruleset();
    state.seal = Some(parts.seal(&ruleset));
    state.ruleset = Some(ruleset);
    if state.tunnel.is_some() {
        state.steering = parts.steering();
    }
    state.flows = flows(&peers, &held, &own, eips, plan, selection, local, overlay_range);
    Compiled {
        state,
        gateway_indexes: indexes,
        bystanders,
    }
}

/// Identities of gateways that this node doesn't carry: what has one of them leaves through the tunnel or not at all.
fn away(inputs: &NodeInputs, plan: &NodePlan, peers: &Peers) -> BTreeSet<u16> {
    plan.gateways
        .iter()
        .filter(|g| !matches!(exit(g, peers, &inputs.liveness), Exit::Here))
        .flat_map(|g| &g.identities)
        .map(|i| i.id)
        .collect()
}

fn assigned(
    inputs: &NodeInputs,
    plan: &NodePlan,
    peers: &Peers,
    selection: &Selection,
) -> BTreeMap<String, u8> {
    let used = selection.identities();
    let wanted: BTreeSet<&str> = plan
        .gateways
        .iter()
        .filter(|g| !hops(g, peers, &inputs.liveness).is_empty())
        .filter(|g| g.identities.iter().any(|i| used.contains(&i.id)))
        .map(|g| g.gateway.as_str())
        .collect();
    index::assign(&inputs.gateway_indexes, &wanted, inputs.settings.gateways())
}

/// Routing marks by identity. An identity in use whose gateway got no number has none: its packets then
/// meet the guard against identities that leave by another way than the tunnel.
fn routing_marks(
    inputs: &NodeInputs,
    plan: &NodePlan,
    selection: &Selection,
    indexes: &BTreeMap<String, u8>,
) -> BTreeMap<u16, u32> {
    let used = selection.identities();
    plan.gateways
        .iter()
        .filter_map(|g| Some((g, inputs.settings.mark(*indexes.get(&g.gateway)?))))
        .flat_map(|(g, mark)| g.identities.iter().map(move |i| (i.id, mark)))
        .filter(|(id, _)| used.contains(id))
        .collect()
}

/// One rule and one table for a gateway that another node carries.
fn program_gateway(
    inputs: &NodeInputs,
    plan: &NodePlan,
    peers: &Peers,
    gateway: &str,
    index: u8,
    state: &mut DesiredState,
) {
    let settings = &inputs.settings;
    let table = settings.table_base + u32::from(index);
    let gateway = plan.gateways.iter().find(|g| g.gateway == gateway);
    let hops = gateway.map_or_else(Vec::new, |g| hops(g, peers, &inputs.liveness));
    let spreads = gateway.is_some_and(is_source_node);
    for family in Family::BOTH {
        if family == Family::V6 && inputs.facts.without_ipv6 {
            continue;
        }
        if spreads {
            // By default the kernel spreads by addresses alone, and so one pod's flows to one server not at all.
            let version = if family == Family::V4 { "ipv4" } else { "ipv6" };
            state
                .sysctls
                .insert(format!("net/{version}/fib_multipath_hash_policy"), "1".into());
        }
        state.rules.insert(Rule {
            ipv6: family == Family::V6,
            priority: settings.rule_base + u32::from(index),
            mark: settings.mark(index),
            mask: settings.mark_mask,
            udp: None,
            table,
        });
        state.routes.insert(Route {
            table,
            destination: family.everything(),
            metric: LAST_RESORT,
            target: RouteTarget::Unreachable,
        });
        let mut via: BTreeSet<IpAddr> = hops.iter().filter_map(|p| p.overlay.get(family)).collect();
        let device = settings.device.clone();
        let mtu = hops
            .iter()
            .map(|p| p.mtu)
            .filter(|mtu| *mtu > 0)
            .min()
            .unwrap_or(0);
        let target = match via.len() {
            0 => continue,
            1 => RouteTarget::Device {
                device,
                via: via.pop_first(),
                mtu,
            },
            _ => RouteTarget::Spread { device, via, mtu },
        };
        state.routes.insert(Route {
            table,
            destination: family.everything(),
            metric: METRIC,
            target,
        });
    }
}

fn prefixes(pair: &PrefixPair) -> impl Iterator<Item = IpNet> {
    [&pair.ipv4, &pair.ipv6]
        .into_iter()
        .flatten()
        .filter_map(|p| p.parse().ok())
        .map(|p: IpNet| p.trunc())
}

/// The federation's overlay ranges.
pub(super) fn overlay_range(plan: &NodePlan) -> Vec<IpNet> {
    prefixes(&plan.member.overlay_range).collect()
}

/// What no policy takes: this cluster's ranges, its nodes, the overlay, and what isn't unicast at all. Sorted and
/// disjoint.
pub(crate) fn local_union(inputs: &NodeInputs, plan: &NodePlan) -> Vec<Interval> {
    let cluster = inputs.network.sources.iter().flat_map(|s| &s.cidrs);
    let nodes = inputs
        .nodes
        .values()
        .flat_map(|n| super::inputs::Addresses::of(&n.underlay).iter());
    let all = NEVER
        .iter()
        .filter_map(|s| s.parse::<IpNet>().ok())
        .chain(cluster.filter_map(|s| s.parse::<IpNet>().ok()).map(|n| n.trunc()))
        .chain(nodes.map(IpNet::from))
        .chain(prefixes(&plan.member.overlay_range));
    union(all)
}

#[allow(
    clippy::too_many_arguments,
    reason = "each is a part of the whole that is compared"
)]
fn flows(
    peers: &Peers,
    held: &Held,
    own: &Own,
    eips: BTreeSet<IpAddr>,
    plan: &NodePlan,
    selection: Selection,
    local: Vec<Interval>,
    overlay: Vec<IpNet>,
) -> Flows {
    let overlays: BTreeMap<_, _> = peers.own_overlay().iter().map(|a| (a, None)).collect();
    let leaves_with = plan
        .gateways
        .iter()
        .flat_map(|g| &g.identities)
        .map(|i| {
            let ways = if let Some(egress) = held.identities.get(&i.id) {
                egress.iter().map(|a| (a, None)).collect()
            } else if let Some(egress) = own.identities.get(&i.id) {
                let ports = |a| Some(own.share(a).living.ranges());
                egress.iter().map(|a| (a, ports(a))).collect()
            } else {
                overlays.clone()
            };
            (i.id, ways)
        })
        .collect();
    let classes = selection
        .classes
        .into_iter()
        .map(|(name, class)| (name, class.destinations))
        .collect();
    let mut granted: BTreeMap<u16, BTreeMap<IpNet, BTreeSet<IpAddr>>> = BTreeMap::new();
    for ((prefix, id), leaves) in &held.granted {
        granted.entry(*id).or_default().insert(*prefix, leaves.clone());
    }
    let shared = own.shares.keys().copied();
    Flows {
        pods: selection.pods,
        classes,
        local,
        leaves_with,
        granted,
        ours: overlays.into_keys().chain(eips).chain(shared).collect(),
        overlay,
        abandoned: BTreeSet::new(),
        departed: BTreeSet::new(),
        only: None,
    }
}

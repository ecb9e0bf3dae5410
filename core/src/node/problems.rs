//! What in the inputs can't be realised, for the person who must act. Nothing here opens a way out: what
//! can't be realised is blocked.

use std::collections::BTreeSet;

use ipnet::IpNet;
use spillway_crds::member::{NodeRef, PlannedGatewaySpec, PlannedPolicySpec};

use super::encrypted::Waiting;
use super::exits::{Exit, exit};
use super::flatten::MOST;
use super::forwarded::Forwarded;
use super::gateways::{carriers, is_source_node};
use super::guard::pod_ranges;
use super::held::{Taken, lent};
use super::inputs::{Addresses, NodeInputs, NodePlan, Pod};
use super::interval::Family;
use super::own::{Own, doubled};
use super::peers::Peers;
use super::select::{Ways, select};
use crate::ports;

/// Problems with `inputs`, one sentence each; empty where all of the plan can be realised.
pub fn problems(inputs: &NodeInputs) -> Vec<String> {
    let mut out: Vec<String> = inputs.settings.problem().into_iter().collect();
    let Some(plan) = &inputs.plan else {
        return out;
    };
    match inputs.nodes.get(&inputs.node) {
        None => out.push(format!("there is no EgressNode {} yet", inputs.node)),
        Some(own) if Addresses::of(&own.overlay).iter().next().is_none() => {
            out.push(format!("EgressNode {} has no overlay address yet", inputs.node));
        }
        Some(own) if Addresses::of(&own.underlay).iter().next().is_none() => {
            out.push(format!("EgressNode {} has no underlay address", inputs.node));
        }
        Some(_) => {}
    }
    let peers = Peers::new(inputs, plan);
    for (node, address, owner) in &peers.doubles {
        out.push(format!(
            "node {node} is left out: its overlay address {address} is that of node {owner} already"
        ));
    }
    if inputs.guard {
        out.extend(guard_problem(inputs));
    }
    for Waiting { node, reason, .. } in &peers.waiting {
        out.push(format!(
            "the path to node {node} must be encrypted and can't be yet, so nothing is sent there: {reason}"
        ));
    }
    out.extend(too_fine(inputs, plan, &peers));
    let taken = Taken::new(inputs, plan, &peers);
    for gateway in &plan.gateways {
        gateway_problems(inputs, plan, gateway, &peers, &taken, &mut out);
    }
    for policy in &plan.policies {
        let named = || {
            let namespace = policy.source.namespace.as_deref().unwrap_or("");
            format!("policy {namespace}/{}", policy.source.name)
        };
        for bad in policy.to.ports.iter().filter_map(|p| ports::parse(p).err()) {
            out.push(format!(
                "{}: an entry of spec.to.ports is left out: {bad}",
                named()
            ));
        }
        let unreadable = policy.to.cidrs.iter().chain(&policy.to.except);
        for cidr in unreadable.filter(|c| c.parse::<IpNet>().is_err()) {
            out.push(format!(
                "{}: {cidr:?} in spec.to is no CIDR and is left out",
                named()
            ));
        }
    }
    out
}

/// Pods whose policies with ports come to too many cases.
fn too_fine(inputs: &NodeInputs, plan: &NodePlan, peers: &Peers) -> Option<String> {
    let to = || plan.policies.iter().map(|p| &p.to);
    let ports: usize = to().map(|to| to.ports.len()).sum();
    let prefixes: usize = to().map(|to| to.cidrs.len() + to.except.len()).sum();
    // Not even with all of them at every address.
    if ports.saturating_mul(4 * prefixes + 2) <= MOST {
        return None;
    }
    let selection = select(&Ways {
        inputs,
        plan,
        peers,
        own: &Own::new(plan, peers),
        forwarded: &Forwarded::new(inputs, plan, peers),
    });
    let fine = selection.classes.iter().filter(|(_, class)| class.too_fine);
    let fine: BTreeSet<&String> = fine.map(|(name, _)| name).collect();
    let mut pods = selection.pods.iter().filter(|(_, class)| fine.contains(class));
    let (address, _) = pods.next()?;
    Some(format!(
        "the policies of {} pods, such as that with the address {address}, name so many ports at destinations within each          other that nobody could list them, so all of these destinations are blocked; divide them among fewer policies",
        1 + pods.count()
    ))
}

/// Pods that the guard doesn't see.
fn guard_problem(inputs: &NodeInputs) -> Option<String> {
    let ranges = pod_ranges(inputs);
    let outside = |pod: &&Pod| {
        let runs = !pod.host_network && !pod.finished && !pod.removed;
        runs && pod
            .addresses
            .iter()
            .any(|a| !ranges.iter().any(|r| r.contains(*a)))
    };
    let remedy = "give the CNI's ranges in the chart's localRanges";
    if ranges.is_empty() {
        return Some(format!(
            "the guard knows no pod ranges and so drops nothing: {remedy}"
        ));
    }
    let pod = inputs.pods.iter().find(outside)?;
    Some(format!(
        "the address of pod {}/{} is in none of the pod ranges that the guard goes by: {remedy}",
        pod.namespace, pod.name
    ))
}

fn gateway_problems(
    inputs: &NodeInputs,
    plan: &NodePlan,
    gateway: &PlannedGatewaySpec,
    peers: &Peers,
    taken: &Taken,
    out: &mut Vec<String>,
) {
    let name = &gateway.gateway;
    let source_node = is_source_node(gateway);
    let through = |p: &PlannedPolicySpec| p.through.iter().any(|t| t.gateway == *name);
    let used = plan.policies.iter().any(through);
    let here = gateway.nodes.iter().any(|n| peers.is_self(&n.node));
    let carries = matches!(exit(gateway, peers, &inputs.liveness), Exit::Here);
    let egress = || {
        gateway
            .identities
            .iter()
            .flat_map(|i| Addresses::of(&i.egress_ip).iter())
            .collect::<BTreeSet<_>>()
    };
    if carries || (source_node && here) {
        for address in egress() {
            if let Some(what) = taken.by(address) {
                out.push(format!(
                    "gateway {name}: egress IP {address} (spec.addresses) is {what}; what would leave with it is blocked"
                ));
            } else if source_node && inputs.facts.is_own(address) {
                out.push(format!(
                    "gateway {name}: egress IP {address} (spec.addresses) is an address of this node itself, so replies \
                     would end here; take it off the interface or give the gateway translation: GatewayNode"
                ));
            } else if inputs.facts.uplink_for(address).is_none() {
                out.push(format!(
                    "gateway {name}: no interface has the network of egress IP {address} and there is no default route"
                ));
            }
        }
    }
    if carries && gateway.node_ip && !Family::BOTH.iter().any(|f| lent(inputs).get(*f).is_some()) {
        out.push(format!(
            "gateway {name}: it leaves with this node's own address (addresses.nodeIP), and no interface has one that this \
             cluster knows as the node's; what would leave with it is blocked"
        ));
    }
    let usable = |node: &NodeRef| peers.is_self(node) || peers.get(node).is_some();
    let there = carriers(gateway, &inputs.liveness).into_iter().any(usable);
    if source_node && used && there {
        let own = Own::new(plan, peers);
        for address in egress().into_iter().filter(|a| own.share(*a).living.is_empty()) {
            out.push(format!(
                "gateway {name}: this node has no ports of egress IP {address} yet; what would leave with it is blocked"
            ));
        }
    }
    for slices in &gateway.slices {
        let twice = doubled(slices);
        if !twice.is_empty() {
            out.push(format!(
                "gateway {name}: ports {twice:?} of egress IP {} are in two nodes' slices; the second goes without",
                slices.address
            ));
        }
    }
    let ready = carriers(gateway, &inputs.liveness);
    let reachable = |n: &&NodeRef| peers.is_self(n) || peers.get(n).is_some();
    if !carries && !ready.is_empty() && !ready.iter().any(reachable) {
        out.push(format!(
            "gateway {name}: its node {} has no address that this node can send to",
            ready[0]
        ));
    }
}

//! What in the inputs can't be realised, for the person who must act. Nothing here opens a way out: what
//! can't be realised is blocked.

use ipnet::IpNet;

use super::held::Taken;
use super::inputs::{Addresses, NodeInputs};
use super::peers::Peers;
use super::select::holder;

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
            "node {}/{} is left out: its overlay address {address} is that of node {}/{} already",
            node.member, node.node, owner.member, owner.node
        ));
    }
    let taken = Taken::new(inputs, plan, &peers);
    for gateway in &plan.gateways {
        let Some(node) = holder(gateway) else {
            continue;
        };
        if peers.is_self(node) {
            let egress = gateway
                .identities
                .iter()
                .flat_map(|i| Addresses::of(&i.egress_ip).iter());
            for address in egress {
                let name = &gateway.gateway;
                if let Some(what) = taken.by(address) {
                    out.push(format!(
                        "gateway {name}: egress IP {address} (spec.addresses) is {what}; what would leave with it is \
                         blocked"
                    ));
                } else if inputs.facts.uplink_for(address).is_none() {
                    out.push(format!(
                        "gateway {name}: no interface has the network of egress IP {address} and there is no default \
                         route"
                    ));
                }
            }
        } else if peers.get(node).is_none() {
            out.push(format!(
                "gateway {}: its node {}/{} has no address that this node can send to",
                gateway.gateway, node.member, node.node
            ));
        }
    }
    for policy in &plan.policies {
        let unreadable = policy.to.cidrs.iter().chain(&policy.to.except);
        for cidr in unreadable.filter(|c| c.parse::<IpNet>().is_err()) {
            out.push(format!(
                "policy {}/{}: {cidr:?} in spec.to is no CIDR and is left out",
                policy.source.namespace.as_deref().unwrap_or(""),
                policy.source.name
            ));
        }
    }
    out
}

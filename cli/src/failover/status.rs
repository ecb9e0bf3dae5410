//! `spillway failover status`, on the hub for the federation and on a member for its own nodes.

use std::fmt::Write as _;

use kube::api::Api;
use serde::Serialize;
use spillway_crds::hub::{EgressGateway, Member, MemberNode};
use spillway_crds::member::EgressNode;
use spillway_crds::{HUB_GROUP, MEMBER_GROUP};

use crate::args::{FailoverStatus, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::output;

/// What there is to say.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
struct Report {
    /// Egress IPs in use, by gateway and address.
    addresses: Vec<Address>,
    /// Nodes of the gateways; on a member, its nodes that hold something.
    nodes: Vec<GatewayNode>,
}

/// One egress IP.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "fields are what the JSON says")]
struct Address {
    address: String,
    /// Absent on a member, whose nodes don't say.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
    /// `member/node`, or the node alone on a member; absent where nobody answers for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// One node of a gateway.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
struct GatewayNode {
    gateway: String,
    node: String,
    /// `Ready`, `NotReady` or `Draining`, as its cluster last said.
    state: &'static str,
    /// Egress IPs that it answers for.
    held: usize,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

/// Prints who holds what.
pub async fn status(target: &Target, status: &FailoverStatus) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let groups = cluster.groups().await?;
    let serves = |group: &str| groups.iter().any(|g| g == group);
    let client = cluster.client.clone();
    let mut report = if serves(HUB_GROUP) {
        let gateways = cluster.list(Api::<EgressGateway>::all(client.clone()), "gateways");
        let members = cluster.list(Api::<Member>::all(client), "members");
        of_hub(&gateways.await?, &members.await?)
    } else if serves(MEMBER_GROUP) {
        let nodes = cluster.list(Api::<EgressNode>::all(client), "EgressNodes");
        of_member(&nodes.await?)
    } else {
        return Err(Failure::new(
            Exit::NotFound,
            format!("there is no Spillway in {}", cluster.name),
        )
        .fix("name the hub's cluster, or a member's, with --kubeconfig or --context"));
    };
    if let Some(wanted) = &status.gateway {
        report.addresses.retain(|a| a.gateway.as_ref() == Some(wanted));
        report.nodes.retain(|n| n.gateway == *wanted);
        if report == Report::default() {
            return Err(Failure::new(
                Exit::NotFound,
                format!("no gateway {wanted} is in use in {}", cluster.name),
            )
            .fix("list gateways with `spillway status`, in the hub's cluster"));
        }
    }
    match status.output {
        Some(format) => output::print(&output::text(&report, format)?),
        None => output::print(&text(&report)),
    }
}

fn of_hub(gateways: &[EgressGateway], members: &[Member]) -> Report {
    let mut report = Report::default();
    for gateway in gateways {
        let name = gateway.metadata.name.clone().unwrap_or_default();
        let status = gateway.status.clone().unwrap_or_default();
        let used = status
            .identities
            .iter()
            .flat_map(|i| [&i.egress_ip.ipv4, &i.egress_ip.ipv6])
            .flatten();
        let mut used: Vec<&String> = used.chain(status.holders.iter().map(|h| &h.address)).collect();
        used.sort();
        used.dedup();
        for address in used {
            let holder = status.holders.iter().find(|h| h.address == *address);
            report.addresses.push(Address {
                address: address.clone(),
                gateway: Some(name.clone()),
                holder: holder.map(|h| format!("{}/{}", h.member, h.node)),
                since: holder.map(|h| h.since.clone()),
                reason: holder.map(|h| h.reason.clone()),
            });
        }
        for part in &gateway.spec.nodes {
            let member = members
                .iter()
                .find(|m| m.metadata.name.as_deref() == Some(part.member.as_str()));
            let nodes = member.and_then(|m| m.status.as_ref()).map(|s| &s.nodes);
            for node in nodes.into_iter().flatten() {
                if !part.selector.matches(&node.labels) {
                    continue;
                }
                let full = format!("{}/{}", part.member, node.name);
                let held = status
                    .holders
                    .iter()
                    .filter(|h| h.member == part.member && h.node == node.name);
                report.nodes.push(GatewayNode {
                    gateway: name.clone(),
                    node: full,
                    state: state(node),
                    held: held.count(),
                    message: node.message.clone(),
                });
            }
        }
    }
    report
}

fn state(node: &MemberNode) -> &'static str {
    if node.draining {
        "Draining"
    } else if node.ready {
        "Ready"
    } else {
        "NotReady"
    }
}

fn of_member(nodes: &[EgressNode]) -> Report {
    let mut addresses: Vec<Address> = nodes
        .iter()
        .flat_map(|node| {
            let held = node.status.iter().flat_map(|s| &s.held);
            held.map(|h| Address {
                address: h.address.clone(),
                gateway: None,
                holder: node.metadata.name.clone(),
                since: Some(h.since.clone()),
                reason: Some(h.reason.clone()),
            })
        })
        .collect();
    addresses.sort_by(|a, b| (&a.address, &a.holder).cmp(&(&b.address, &b.holder)));
    Report {
        addresses,
        nodes: Vec::new(),
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    if report.addresses.is_empty() {
        out.push_str("no egress IP is in use\n");
    } else {
        let dash = |t: &Option<String>| t.clone().unwrap_or_else(|| "-".into());
        let rows: Vec<Vec<String>> = report
            .addresses
            .iter()
            .map(|a| {
                vec![
                    a.address.clone(),
                    dash(&a.gateway),
                    a.holder.clone().unwrap_or_else(|| "nobody".into()),
                    dash(&a.since),
                    dash(&a.reason),
                ]
            })
            .collect();
        out.push_str(&output::table(
            &["EGRESS IP", "GATEWAY", "HOLDER", "SINCE", "REASON"],
            &rows,
        ));
    }
    if !report.nodes.is_empty() {
        let rows: Vec<Vec<String>> = report
            .nodes
            .iter()
            .map(|n| {
                vec![
                    n.gateway.clone(),
                    n.node.clone(),
                    n.state.into(),
                    n.held.to_string(),
                    n.message.clone(),
                ]
            })
            .collect();
        let _ = writeln!(out);
        out.push_str(&output::table(
            &["GATEWAY", "NODE", "STATE", "HOLDS", "MESSAGE"],
            &rows,
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gateways() -> Vec<EgressGateway> {
        serde_json::from_value(json!([{
            "apiVersion": "spillway.io/v1alpha1", "kind": "EgressGateway", "metadata": {"name": "frankfurt"},
            "spec": {
                "nodes": [{"member": "b", "selector": {"matchLabels": {"egress": "true"}}}],
                "addresses": {"ipv4": ["203.0.113.10-203.0.113.11"]},
            },
            "status": {
                "identities": [
                    {"id": 1, "egressIP": {"ipv4": "203.0.113.10"}},
                    {"id": 2, "egressIP": {"ipv4": "203.0.113.11"}},
                ],
                "holders": [{
                    "address": "203.0.113.10", "member": "b", "node": "b-n2",
                    "since": "2026-11-24T03:41:17.171Z", "reason": "node b/b-n1 doesn't answer",
                }],
            },
        }]))
        .expect("gateways")
    }

    fn members() -> Vec<Member> {
        let node = |name: &str, label: &str, ready: bool, draining: bool| json!({"name": name, "labels": {"egress": label}, "ready": ready, "draining": draining});
        serde_json::from_value(json!([{
            "apiVersion": "spillway.io/v1alpha1", "kind": "Member", "metadata": {"name": "b"}, "spec": {},
            "status": {"nodes": [
                node("b-n1", "true", false, false),
                node("b-n2", "true", true, false),
                node("b-n3", "true", false, true),
                node("b-n4", "false", true, false),
            ]},
        }]))
        .expect("members")
    }

    #[test]
    fn the_hub_says_who_holds_what_and_who_could() {
        let report = of_hub(&gateways(), &members());
        let held: Vec<_> = report.addresses.iter().map(|a| a.holder.as_deref()).collect();
        assert_eq!(held, [Some("b/b-n2"), None]);
        let nodes: Vec<_> = report
            .nodes
            .iter()
            .map(|n| (n.node.as_str(), n.state, n.held))
            .collect();
        assert_eq!(
            nodes,
            [
                ("b/b-n1", "NotReady", 0),
                ("b/b-n2", "Ready", 1),
                ("b/b-n3", "Draining", 0)
            ]
        );
        let text = text(&report);
        for words in ["node b/b-n1 doesn't answer", "nobody", "2026-11-24T03:41:17.171Z"] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_member_says_what_its_nodes_hold() {
        let nodes: Vec<EgressNode> = serde_json::from_value(json!([{
            "apiVersion": "member.spillway.io/v1alpha1", "kind": "EgressNode", "metadata": {"name": "b-n2"}, "spec": {},
            "status": {"held": [{"address": "203.0.113.10", "since": "2026-11-24T03:41:17Z", "reason": "first in rank"}]},
        }]))
        .expect("nodes");
        let report = of_member(&nodes);
        assert_eq!(report.addresses[0].holder.as_deref(), Some("b-n2"));
        assert!(text(&report).contains("first in rank"));
        assert!(text(&of_member(&[])).contains("no egress IP"));
    }
}

//! One member, as its own cluster shows it.

use std::fmt::Write as _;

use kube::api::Api;
use serde::Serialize;
use spillway_crds::member::{ClusterNetwork, EgressNode, EgressPlan, HubConnection};
use spillway_crds::{Condition, ConditionType, SINGLETON};

use super::{Problem, cell, or_dash};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::join::advice::{self, Context};
use crate::{output, pods};

/// What there is in a member.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberReport {
    /// Name in the federation; absent where the cluster hasn't joined.
    pub name: Option<String>,
    /// Endpoint of the hub in use, or the first one configured.
    pub endpoint: Option<String>,
    /// Condition.
    pub enrolled: String,
    /// Condition.
    pub connected: String,
    /// End of the agent's certificate, RFC 3339.
    pub certificate_expires: Option<String>,
    /// The member is leaving.
    pub leaving: bool,
    /// Digest of the plan in place.
    pub plan: Option<String>,
    /// Condition of the cluster's ranges.
    pub ranges_complete: String,
    /// What is known of the ranges, or what is wrong with them.
    pub ranges: String,
    /// Nodes by name.
    pub nodes: Vec<NodeLine>,
}

/// One node.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLine {
    /// Name.
    pub name: String,
    /// `Current`, `Older` (works with an older plan) or `None`.
    pub plan: String,
    /// Condition.
    pub programmed: String,
    /// Overlay address.
    pub overlay: Option<String>,
    /// Address in the partition.
    pub underlay: Option<String>,
    /// How the node programs.
    pub backend: Option<String>,
    /// Version of its agent.
    pub version: Option<String>,
}

/// Reads everything and judges it.
pub async fn read(cluster: &Cluster) -> Result<(MemberReport, Vec<Problem>), Failure> {
    let client = cluster.client.clone();
    let connection: Option<HubConnection> = cluster
        .get(Api::all(client.clone()), SINGLETON, "HubConnection")
        .await?;
    let plan: Option<EgressPlan> = cluster
        .get(Api::all(client.clone()), SINGLETON, "EgressPlan")
        .await?;
    let network: Option<ClusterNetwork> = cluster
        .get(Api::all(client.clone()), SINGLETON, "ClusterNetwork")
        .await?;
    let nodes = cluster
        .list(Api::<EgressNode>::all(client), "EgressNodes")
        .await?;
    let (report, mut problems) = judge(connection.as_ref(), plan.as_ref(), network.as_ref(), &nodes);
    for app in ["spillway-member-agent", "spillway-node-agent"] {
        if let Some(trouble) = pods::trouble(cluster, app).await? {
            let failure = trouble.failure();
            problems.push(Problem::new(app, failure.what, failure.fix.join("; ")));
        }
    }
    Ok((report, problems))
}

/// The report and the problems in these objects.
pub fn judge(
    connection: Option<&HubConnection>,
    plan: Option<&EgressPlan>,
    network: Option<&ClusterNetwork>,
    nodes: &[EgressNode],
) -> (MemberReport, Vec<Problem>) {
    let Some(connection) = connection else {
        let fix = "on the hub: spillway token create NAME, then paste what it prints";
        return (
            MemberReport::default(),
            vec![Problem::new("member", "has not joined a hub", fix)],
        );
    };
    let status = connection.status.clone().unwrap_or_default();
    let digest = plan.map(|p| p.spec.digest.clone());
    let mut problems: Vec<Problem> = Vec::new();
    problems.extend(connection_problem(connection, &status.conditions));
    let ranges = network
        .and_then(|n| n.status.as_ref())
        .map_or(&[][..], |s| &s.conditions);
    let found = ranges
        .iter()
        .find(|c| c.type_ == ConditionType::RangesComplete.as_str());
    problems.extend(found.filter(|c| c.status == "False").map(|c| {
        Problem::new(
            "cluster ranges",
            format!("not RangesComplete ({}): {}", c.reason, c.message),
            "see all sources: kubectl get clusternetwork current -o yaml",
        )
    }));
    let mut lines: Vec<NodeLine> = Vec::new();
    for node in nodes {
        lines.push(node_line(node, digest.as_deref(), &mut problems));
    }
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    let report = MemberReport {
        name: Some(connection.spec.member.clone()),
        endpoint: status
            .endpoint
            .or_else(|| connection.spec.endpoints.first().cloned()),
        enrolled: cell(&status.conditions, ConditionType::Enrolled),
        connected: cell(&status.conditions, ConditionType::Connected),
        certificate_expires: status.certificate_expires,
        leaving: connection.spec.leaving,
        ranges_complete: cell(ranges, ConditionType::RangesComplete),
        ranges: found.map(|c| c.message.clone()).unwrap_or_default(),
        plan: digest,
        nodes: lines,
    };
    (report, problems)
}

/// The first thing wrong on the way to the hub; what follows from it isn't said again.
fn connection_problem(connection: &HubConnection, conditions: &[Condition]) -> Option<Problem> {
    if connection.spec.leaving {
        return Some(Problem::new(
            "member",
            "is leaving",
            "let it finish: spillway leave",
        ));
    }
    let find = |kind: ConditionType| conditions.iter().find(|c| c.type_ == kind.as_str());
    let bad = [ConditionType::Enrolled, ConditionType::Connected]
        .into_iter()
        .filter_map(find)
        .find(|c| c.status == "False");
    if let Some(condition) = bad {
        let context = Context {
            member: &connection.spec.member,
            endpoints: &connection.spec.endpoints,
            pin: &connection.spec.ca_pin,
            message: &condition.message,
        };
        let advice = advice::for_reason(&condition.reason, &context);
        let failure = advice.failure();
        return Some(Problem::new(
            "hub connection",
            failure.what.clone(),
            failure.fix.join("; "),
        ));
    }
    let refused = find(ConditionType::Programmed).filter(|c| c.reason == "Refused");
    if let Some(condition) = refused {
        return Some(Problem::new(
            "plan",
            format!("the newest one was refused: {}", condition.message),
            "the one before stays active",
        ));
    }
    find(ConditionType::Enrolled).is_none().then(|| {
        Problem::new(
            "member agent",
            "has not said anything yet",
            "kubectl logs -n spillway-system deployment/spillway-member-agent",
        )
    })
}

fn node_line(node: &EgressNode, digest: Option<&str>, problems: &mut Vec<Problem>) -> NodeLine {
    let name = node.metadata.name.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let plan = match (status.programmed.as_deref(), digest) {
        (Some(has), Some(wants)) if has == wants => "Current",
        (Some(_), _) => "Older",
        (None, _) => "None",
    };
    let condition = status
        .conditions
        .iter()
        .find(|c| c.type_ == ConditionType::Programmed.as_str());
    match condition {
        Some(c) if c.status == "False" => {
            problems.push(Problem::new(
                format!("node {name}"),
                format!("not Programmed ({}): {}", c.reason, c.message),
                "",
            ));
        }
        None => problems.push(Problem::new(
            format!("node {name}"),
            "its agent has not said anything yet",
            format!("kubectl get pods -n spillway-system --field-selector spec.nodeName={name}"),
        )),
        _ => {}
    }
    NodeLine {
        plan: plan.into(),
        programmed: cell(&status.conditions, ConditionType::Programmed),
        overlay: node
            .spec
            .overlay
            .ipv4
            .clone()
            .or_else(|| node.spec.overlay.ipv6.clone()),
        underlay: node
            .spec
            .underlay
            .ipv4
            .clone()
            .or_else(|| node.spec.underlay.ipv6.clone()),
        backend: status.backend,
        version: status.agent_version,
        name,
    }
}

/// Tables for people.
pub fn text(report: &MemberReport) -> String {
    let Some(name) = &report.name else {
        return "MEMBER -\n\n".to_owned();
    };
    let mut out = format!(
        "MEMBER {name}{}\n",
        if report.leaving { " (leaving)" } else { "" }
    );
    let plan = report
        .plan
        .as_ref()
        .map(|digest| digest.chars().take(12).collect::<String>());
    let facts = [
        ("hub", or_dash(report.endpoint.as_deref())),
        ("enrolled", report.enrolled.clone()),
        ("connected", report.connected.clone()),
        (
            "certificate until",
            or_dash(report.certificate_expires.as_deref()),
        ),
        ("plan", or_dash(plan.as_deref())),
        ("ranges complete", report.ranges_complete.clone()),
    ];
    for (key, value) in facts {
        let _ = writeln!(out, "  {key:<18}{value}");
    }
    out.push('\n');
    let rows: Vec<Vec<String>> = report
        .nodes
        .iter()
        .map(|n| {
            vec![
                n.name.clone(),
                n.plan.clone(),
                n.programmed.clone(),
                or_dash(n.overlay.as_deref()),
                or_dash(n.underlay.as_deref()),
                or_dash(n.backend.as_deref()),
                or_dash(n.version.as_deref()),
            ]
        })
        .collect();
    if !rows.is_empty() {
        out.push_str(&output::table(
            &[
                "NODE",
                "PLAN",
                "PROGRAMMED",
                "OVERLAY",
                "UNDERLAY",
                "BACKEND",
                "VERSION",
            ],
            &rows,
        ));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::status::{Report, text as whole};

    fn connection(connected: &str, reason: &str, message: &str) -> HubConnection {
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        serde_json::from_value(json!({
            "apiVersion": "member.spillway.io/v1alpha1", "kind": "HubConnection", "metadata": {"name": "current"},
            "spec": {"member": "fra-1", "endpoints": ["hub.example.org:9443"], "caPin": "sha256:ab"},
            "status": {"certificateExpires": "2026-01-02T00:00:00Z", "conditions": [
                condition("Connected", connected, reason, message), condition("Enrolled", "True", "Enrolled", "")]},
        }))
        .expect("a connection")
    }

    #[test]
    fn a_member_with_troubles_says_which() {
        let plan: EgressPlan = serde_json::from_value(json!({
            "apiVersion": "member.spillway.io/v1alpha1", "kind": "EgressPlan", "metadata": {"name": "current"},
            "spec": {"digest": "0123456789abcdef", "hubId": "h", "epoch": 1},
        }))
        .expect("a plan");
        let nodes: Vec<EgressNode> = serde_json::from_value(json!([
            {"apiVersion": "member.spillway.io/v1alpha1", "kind": "EgressNode", "metadata": {"name": "n1"},
             "spec": {"overlay": {"ipv4": "100.64.4.1"}, "underlay": {"ipv4": "192.0.2.1"}},
             "status": {"programmed": "0123456789abcdef", "backend": "nftables", "agentVersion": "0.1.0", "conditions": [
                {"type": "Programmed", "status": "True", "reason": "Programmed", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}},
            {"apiVersion": "member.spillway.io/v1alpha1", "kind": "EgressNode", "metadata": {"name": "n2"},
             "spec": {"overlay": {"ipv4": "100.64.4.2"}, "underlay": {"ipv4": "192.0.2.2"}}},
        ]))
        .expect("nodes");
        let network: ClusterNetwork = serde_json::from_value(json!({
            "apiVersion": "member.spillway.io/v1alpha1", "kind": "ClusterNetwork", "metadata": {"name": "current"},
            "spec": {}, "status": {"conditions": [
                {"type": "RangesComplete", "status": "False", "reason": "RangesIncomplete",
                 "message": "pod shop/client on node n1 has the address 10.9.0.7", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }))
        .expect("a network");
        let (member, problems) = judge(
            Some(&connection("False", "HubUnreachable", "connection refused")),
            Some(&plan),
            Some(&network),
            &nodes,
        );
        insta::assert_snapshot!(whole(&Report {
            hub: None,
            member: Some(member),
            problems
        }));
    }

    #[test]
    fn a_healthy_member_has_no_problems() {
        let (_, problems) = judge(Some(&connection("True", "Connected", "")), None, None, &[]);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn a_cluster_with_agents_but_no_hub_says_how_to_join() {
        let (_, problems) = judge(None, None, None, &[]);
        assert!(problems[0].fix.contains("token create"));
    }
}

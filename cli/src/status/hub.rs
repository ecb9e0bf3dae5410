//! The federation as the hub's cluster shows it.

use std::fmt::Write as _;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Api;
use serde::Serialize;
use spillway_crds::ConditionType;
use spillway_crds::condition::holds;
use spillway_crds::hub::{
    EgressGateway, FederatedClusterEgressPolicy, FederatedEgressPolicy, Member, PathKind, PolicyStatus,
    Through,
};

use super::{Problem, cell, or_dash, problem_of};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::{output, pods};

/// What there is on a hub.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HubReport {
    /// The hub's ID; absent until it has run.
    pub hub_id: Option<String>,
    /// `ready/wanted` replicas; absent where the hub isn't installed.
    pub replicas: Option<String>,
    /// Members by name.
    pub members: Vec<MemberLine>,
    /// How members of different partitions reach each other.
    pub paths: Vec<PathLine>,
    /// Gateways by name.
    pub gateways: Vec<GatewayLine>,
    /// Policies by namespace and name; those without a namespace first.
    pub policies: Vec<PolicyLine>,
}

/// One member.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberLine {
    /// Name.
    pub name: String,
    /// Partition.
    pub partition: String,
    /// Condition.
    pub connected: String,
    /// `Current`, `Pending` or `Refused`.
    pub plan: String,
    /// `ready/all`.
    pub nodes: String,
    /// Overlay prefix.
    pub overlay: Option<String>,
    /// Version of its agent.
    pub version: Option<String>,
}

/// How nodes of two members of different partitions reach each other.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathLine {
    /// The first by name.
    pub from: String,
    /// The other.
    pub to: String,
    /// `Direct`, `NAT`, `Relay` or `None`.
    pub path: String,
    /// Relays, best first.
    pub through: Vec<String>,
    /// Why.
    pub reason: String,
}

/// One gateway.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayLine {
    /// Name.
    pub name: String,
    /// Condition.
    pub accepted: String,
    /// Condition.
    pub programmed: String,
    /// `member/node` that carries the traffic.
    pub holder: Option<String>,
    /// Nodes that could.
    pub ready_nodes: u32,
    /// The pool.
    pub addresses: Vec<String>,
}

/// One policy of either kind.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyLine {
    /// Namespace; absent for a cluster policy.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Condition.
    pub accepted: String,
    /// Condition.
    pub programmed: String,
    /// Gateways in order.
    pub gateways: Vec<String>,
    /// Egress IPs of the first gateway.
    #[serde(rename = "egressIPs")]
    pub egress_ips: Vec<String>,
    /// `programmed/selected` members.
    pub members: Option<String>,
}

/// Reads everything and judges it.
pub async fn read(cluster: &Cluster) -> Result<(HubReport, Vec<Problem>), Failure> {
    let client = cluster.client.clone();
    let info = cluster.hub_info().await?;
    let members = cluster
        .list(Api::<Member>::all(client.clone()), "members")
        .await?;
    let gateways = cluster
        .list(Api::<EgressGateway>::all(client.clone()), "gateways")
        .await?;
    let own = cluster
        .list(Api::<FederatedEgressPolicy>::all(client.clone()), "policies")
        .await?;
    let wide = cluster
        .list(
            Api::<FederatedClusterEgressPolicy>::all(client),
            "cluster policies",
        )
        .await?;
    let (mut report, mut problems) = judge(&members, &gateways, &own, &wide);
    let deployment: Option<Deployment> = cluster.get(cluster.ours(), "spillway-hub", "Deployment").await?;
    if let Some(deployment) = &deployment {
        let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        let ready = deployment
            .status
            .as_ref()
            .and_then(|s| s.ready_replicas)
            .unwrap_or(0);
        report.replicas = Some(format!("{ready}/{wanted}"));
        if ready == 0 {
            problems.insert(
                0,
                Problem::new(
                    "hub",
                    "no replica is ready: members keep the plan they have, and changes wait",
                    "kubectl get pods -n spillway-system; spillway hub install --wait, with the flags it was installed with, starts it and says why pods don't start",
                ),
            );
        }
    }
    if let Some(trouble) = pods::trouble(cluster, "spillway-hub").await? {
        let failure = trouble.failure();
        problems.push(Problem::new("hub", failure.what, failure.fix.join("; ")));
    }
    match info {
        Some(info) => report.hub_id = Some(info.hub_id),
        None => problems.insert(
            0,
            Problem::new(
                "hub",
                "has not started",
                "kubectl get pods -n spillway-system; spillway hub install --wait says why pods don't start",
            ),
        ),
    }
    Ok((report, problems))
}

/// The report and the problems in these objects.
pub fn judge(
    members: &[Member],
    gateways: &[EgressGateway],
    own: &[FederatedEgressPolicy],
    wide: &[FederatedClusterEgressPolicy],
) -> (HubReport, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut report = HubReport::default();
    for member in members {
        report.members.push(member_line(member, &mut problems));
        path_lines(member, &mut report.paths, &mut problems);
    }
    for gateway in gateways {
        report.gateways.push(gateway_line(gateway, &mut problems));
    }
    for policy in wide {
        let name = policy.metadata.name.as_deref().unwrap_or_default();
        report.policies.push(policy_line(
            None,
            name,
            &policy.spec.through,
            policy.status.as_ref(),
            &mut problems,
        ));
    }
    for policy in own {
        let namespace = policy.metadata.namespace.as_deref();
        let name = policy.metadata.name.as_deref().unwrap_or_default();
        report.policies.push(policy_line(
            namespace,
            name,
            &policy.spec.through,
            policy.status.as_ref(),
            &mut problems,
        ));
    }
    report.members.sort_by(|a, b| a.name.cmp(&b.name));
    report.paths.sort();
    report.gateways.sort_by(|a, b| a.name.cmp(&b.name));
    report
        .policies
        .sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    (report, problems)
}

fn member_line(member: &Member, problems: &mut Vec<Problem>) -> MemberLine {
    let name = member.metadata.name.clone().unwrap_or_default();
    let object = format!("member {name}");
    let status = member.status.clone().unwrap_or_default();
    if let Some(mut problem) = problem_of(&object, &status.conditions, ConditionType::Connected) {
        problem.fix =
            "its nodes keep working with the plan they have; see why on its side: spillway status there"
                .into();
        problems.push(problem);
    }
    if let Some(refusal) = &status.plan.refusal {
        problems.push(Problem::new(
            &object,
            format!(
                "refused the newest plan ({}): {}",
                or_dash(Some(&refusal.resource)),
                refusal.reason
            ),
            "",
        ));
    }
    problems.extend(problem_of(&object, &status.conditions, ConditionType::Accepted));
    problems.extend(problem_of(
        &object,
        &status.conditions,
        ConditionType::RangesComplete,
    ));
    for node in status.nodes.iter().filter(|n| !n.message.is_empty()) {
        problems.push(Problem::new(
            format!("{object}, node {}", node.name),
            node.message.clone(),
            "",
        ));
    }
    for node in &status.nodes {
        for path in node.wireguard.iter().flat_map(|w| &w.paths) {
            problems.push(Problem::new(
                format!("{object}, node {}", node.name),
                format!(
                    "the path to node {} must be encrypted and isn't yet, so nothing passes there: {}",
                    path.peer, path.reason
                ),
                "both nodes must run their agents and reach each other at WireGuard's UDP port",
            ));
        }
    }
    let plan = if status.plan.refusal.is_some() {
        "Refused"
    } else if status.plan.programmed.is_some() && status.plan.programmed == status.plan.acknowledged {
        "Current"
    } else {
        "Pending"
    };
    let ready = status.nodes.iter().filter(|n| n.ready).count();
    MemberLine {
        partition: member.spec.partition.clone(),
        connected: cell(&status.conditions, ConditionType::Connected),
        plan: plan.into(),
        nodes: format!("{ready}/{}", status.nodes.len()),
        overlay: status.overlay.and_then(|o| o.ipv4),
        version: status.agent_version,
        name,
    }
}

/// Each pair once, from the first by name.
fn path_lines(member: &Member, lines: &mut Vec<PathLine>, problems: &mut Vec<Problem>) {
    let name = member.metadata.name.clone().unwrap_or_default();
    let paths = member.status.iter().flat_map(|s| &s.paths);
    for path in paths.filter(|p| name < p.member) {
        let end = |member: &str, nodes: &[String]| match nodes {
            [] => member.to_owned(),
            [node] => format!("{member}/{node}"),
            [node, rest @ ..] => format!("{member}/{node} and {} more", rest.len()),
        };
        let (from, to) = (end(&name, &path.nodes), end(&path.member, &path.peers));
        if path.kind == PathKind::None {
            problems.push(Problem::new(
                format!("member {name}"),
                format!("{from} and {to} don't reach each other: {}", path.reason),
                "",
            ));
        }
        lines.push(PathLine {
            from,
            to,
            path: path.kind.as_str().into(),
            through: path.through.clone(),
            reason: path.reason.clone(),
        });
    }
}

fn gateway_line(gateway: &EgressGateway, problems: &mut Vec<Problem>) -> GatewayLine {
    let name = gateway.metadata.name.clone().unwrap_or_default();
    let object = format!("gateway {name}");
    let status = gateway.status.clone().unwrap_or_default();
    both(&object, &status.conditions, problems);
    GatewayLine {
        accepted: cell(&status.conditions, ConditionType::Accepted),
        programmed: cell(&status.conditions, ConditionType::Programmed),
        holder: status.holder,
        ready_nodes: status.ready_nodes.unwrap_or(0),
        addresses: [
            gateway.spec.addresses.ipv4.clone(),
            gateway.spec.addresses.ipv6.clone(),
        ]
        .concat(),
        name,
    }
}

fn policy_line(
    namespace: Option<&str>,
    name: &str,
    through: &[Through],
    status: Option<&PolicyStatus>,
    problems: &mut Vec<Problem>,
) -> PolicyLine {
    let object = match namespace {
        Some(namespace) => format!("policy {namespace}/{name}"),
        None => format!("cluster policy {name}"),
    };
    let status = status.cloned().unwrap_or_default();
    both(&object, &status.conditions, problems);
    // What isn't accepted says so already.
    if holds(&status.conditions, ConditionType::Accepted) {
        problems.extend(problem_of(&object, &status.conditions, ConditionType::Effective));
    }
    let first = status
        .egress
        .first()
        .map(|e| e.egress_ip.clone())
        .unwrap_or_default();
    PolicyLine {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
        accepted: cell(&status.conditions, ConditionType::Accepted),
        programmed: cell(&status.conditions, ConditionType::Programmed),
        gateways: through.iter().map(|t| t.gateway.clone()).collect(),
        egress_ips: first.ipv4.into_iter().chain(first.ipv6).collect(),
        members: status.members,
    }
}

/// An object that isn't accepted can't be programmed: one problem, not two.
fn both(object: &str, conditions: &[spillway_crds::Condition], problems: &mut Vec<Problem>) {
    match problem_of(object, conditions, ConditionType::Accepted) {
        Some(problem) => problems.push(problem),
        None => problems.extend(problem_of(object, conditions, ConditionType::Programmed)),
    }
    if !conditions
        .iter()
        .any(|c| c.type_ == ConditionType::Accepted.as_str())
    {
        problems.push(Problem::new(
            object,
            "the hub has not looked at it yet",
            "if that lasts, see whether the hub runs: kubectl get pods -n spillway-system",
        ));
    }
}

/// Tables for people.
pub fn text(report: &HubReport) -> String {
    let mut out = format!("HUB {}", or_dash(report.hub_id.as_deref()));
    if let Some(replicas) = &report.replicas {
        let _ = write!(out, ", {replicas} replicas ready");
    }
    out.push_str("\n\n");
    let rows: Vec<Vec<String>> = report
        .members
        .iter()
        .map(|m| {
            vec![
                m.name.clone(),
                m.connected.clone(),
                m.plan.clone(),
                m.nodes.clone(),
                m.partition.clone(),
                or_dash(m.overlay.as_deref()),
                or_dash(m.version.as_deref()),
            ]
        })
        .collect();
    section(
        &mut out,
        "members",
        "spillway token create NAME",
        &[
            "MEMBER",
            "CONNECTED",
            "PLAN",
            "NODES",
            "PARTITION",
            "OVERLAY",
            "VERSION",
        ],
        &rows,
    );
    if !report.paths.is_empty() {
        let rows: Vec<Vec<String>> = report
            .paths
            .iter()
            .map(|p| {
                vec![
                    p.from.clone(),
                    p.to.clone(),
                    p.path.clone(),
                    or_dash(Some(&p.through.join(","))),
                    p.reason.clone(),
                ]
            })
            .collect();
        section(
            &mut out,
            "paths",
            "",
            &["BETWEEN", "AND", "PATH", "THROUGH", "WHY"],
            &rows,
        );
    }
    let rows: Vec<Vec<String>> = report
        .gateways
        .iter()
        .map(|g| {
            vec![
                g.name.clone(),
                g.accepted.clone(),
                g.programmed.clone(),
                or_dash(g.holder.as_deref()),
                g.ready_nodes.to_string(),
                g.addresses.join(","),
            ]
        })
        .collect();
    section(
        &mut out,
        "gateways",
        "kubectl apply an EgressGateway",
        &[
            "GATEWAY",
            "ACCEPTED",
            "PROGRAMMED",
            "HOLDER",
            "READY",
            "ADDRESSES",
        ],
        &rows,
    );
    let rows: Vec<Vec<String>> = report
        .policies
        .iter()
        .map(|p| {
            vec![
                p.namespace
                    .as_ref()
                    .map_or_else(|| p.name.clone(), |n| format!("{n}/{}", p.name)),
                p.accepted.clone(),
                p.programmed.clone(),
                p.gateways.join(","),
                or_dash(Some(&p.egress_ips.join(","))),
                or_dash(p.members.as_deref()),
            ]
        })
        .collect();
    section(
        &mut out,
        "policies",
        "kubectl apply a FederatedEgressPolicy",
        &[
            "POLICY",
            "ACCEPTED",
            "PROGRAMMED",
            "GATEWAYS",
            "EGRESS-IP",
            "MEMBERS",
        ],
        &rows,
    );
    out
}

fn section(out: &mut String, what: &str, hint: &str, header: &[&str], rows: &[Vec<String>]) {
    if rows.is_empty() {
        let _ = write!(out, "no {what} yet: {hint}\n\n");
    } else {
        out.push_str(&output::table(header, rows));
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::status::{Report, text as whole};

    fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn a_federation_with_troubles_says_which() {
        let members: Vec<Member> = serde_json::from_value(json!([
            {"apiVersion": "spillway.io/v1alpha1", "kind": "Member", "metadata": {"name": "fra-2"}, "spec": {"partition": "default"},
             "status": {"conditions": [condition("Connected", "False", "Disconnected", "no stream for 2 min")],
                "plan": {"acknowledged": "d1"}}},
            {"apiVersion": "spillway.io/v1alpha1", "kind": "Member", "metadata": {"name": "fra-1"}, "spec": {"partition": "default"},
             "status": {"overlay": {"ipv4": "100.64.4.0/22"}, "agentVersion": "0.1.0",
                "plan": {"acknowledged": "d1", "programmed": "d1"},
                "paths": [{"member": "fra-2", "kind": "Relay", "through": ["muc/n1", "muc/n2"], "reason": "neither can be called"},
                    {"member": "ulm", "kind": "None", "nodes": ["n2"], "reason": "give one an endpoint"}],
                "nodes": [{"name": "n1", "ready": true, "wireguard": {"waiting": 1, "paths": [{"peer": "muc/n1", "reason": "its public key isn't known yet"}]}}, {"name": "n2", "ready": false, "message": "nft: table is busy"}],
                "conditions": [condition("Connected", "True", "Connected", "")]}},
        ]))
        .expect("members");
        let gateways: Vec<EgressGateway> = serde_json::from_value(json!([
            {"apiVersion": "spillway.io/v1alpha1", "kind": "EgressGateway", "metadata": {"name": "frankfurt"},
             "spec": {"nodes": [{"member": "fra-1"}], "addresses": {"ipv4": ["203.0.113.10-203.0.113.19"]}},
             "status": {"holder": "fra-1/n1", "readyNodes": 1, "conditions": [
                condition("Accepted", "True", "Valid", ""), condition("Programmed", "True", "Programmed", "")]}},
        ]))
        .expect("gateways");
        let own: Vec<FederatedEgressPolicy> = serde_json::from_value(json!([
            {"apiVersion": "spillway.io/v1alpha1", "kind": "FederatedEgressPolicy", "metadata": {"name": "bank", "namespace": "payments"},
             "spec": {"through": [{"gateway": "frankfurt"}]},
             "status": {"members": "1/2", "egress": [{"gateway": "frankfurt", "identity": 1, "egressIP": {"ipv4": "203.0.113.10"}}],
                "conditions": [condition("Accepted", "True", "Valid", ""),
                    condition("Programmed", "False", "Pending", "fra-2 has not programmed it")]}},
        ]))
        .expect("policies");
        let wide: Vec<FederatedClusterEgressPolicy> = serde_json::from_value(json!([
            {"apiVersion": "spillway.io/v1alpha1", "kind": "FederatedClusterEgressPolicy", "metadata": {"name": "all"},
             "spec": {"through": [{"gateway": "berlin"}]},
             "status": {"conditions": [
                condition("Accepted", "False", "UnknownGateway", "spec.through[0].gateway: there is no EgressGateway berlin; create it or name another"),
                condition("Programmed", "False", "Pending", "x")]}},
        ]))
        .expect("cluster policies");
        let (hub, problems) = judge(&members, &gateways, &own, &wide);
        insta::assert_snapshot!(whole(&Report {
            hub: Some(hub),
            member: None,
            problems
        }));
    }

    #[test]
    fn an_empty_hub_says_what_comes_next() {
        let (hub, problems) = judge(&[], &[], &[], &[]);
        insta::assert_snapshot!(whole(&Report {
            hub: Some(hub),
            member: None,
            problems
        }));
    }
}

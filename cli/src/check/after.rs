//! Where something is installed: what status doesn't say.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::Api;
use spillway_crds::SINGLETON;
use spillway_crds::hub::Member;
use spillway_crds::member::{EgressNode, EgressPlan, HubConnection};

use super::finding::{Finding, Topic};
use crate::cluster::Cluster;
use crate::version::image_tag;

/// A certificate is renewed twelve hours before its end, and tried again until then.
const RENEWAL_OVERDUE: SignedDuration = SignedDuration::from_hours(6);

/// The hub's cluster.
pub(super) async fn hub(cluster: &Cluster) -> Vec<Finding> {
    let mut out = Vec::new();
    let members = match cluster
        .list(Api::<Member>::all(cluster.client.clone()), "members")
        .await
    {
        Ok(members) => members,
        Err(failure) => return vec![Finding::unread("members", &failure)],
    };
    match image_tag(cluster, "spillway-hub").await {
        Ok(Some(hub)) => {
            let of = |m: &Member| {
                let version = m.status.as_ref()?.agent_version.clone()?;
                Some((format!("member {}", m.metadata.name.as_ref()?), version))
            };
            out.extend(versions(("the hub", &hub), members.iter().filter_map(of)));
        }
        Ok(None) => {}
        Err(failure) => out.push(Finding::unread("version of the hub", &failure)),
    }
    out.extend(members.iter().filter_map(behind));
    out
}

/// Nodes whose plan isn't the one that their member acknowledged, though they are ready.
fn behind(member: &Member) -> Option<Finding> {
    let status = member.status.as_ref()?;
    let wanted = status.plan.acknowledged.as_ref()?;
    let late: Vec<&str> = status
        .nodes
        .iter()
        .filter(|n| n.ready && n.programmed.as_ref() != Some(wanted))
        .map(|n| n.name.as_str())
        .collect();
    (!late.is_empty()).then(|| {
        let named = late.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        Finding::warning(
            Topic::Reasons,
            format!("member {}", member.metadata.name.clone().unwrap_or_default()),
            format!("{} nodes work with an older plan: {named}", late.len()),
            "seconds are normal; else `spillway status` in that member",
        )
    })
}

/// A member's cluster.
pub(super) async fn member(cluster: &Cluster) -> Vec<Finding> {
    let client = cluster.client.clone();
    let mut out = Vec::new();
    let connection: Option<HubConnection> = match cluster
        .get(Api::all(client.clone()), SINGLETON, "HubConnection")
        .await
    {
        Ok(connection) => connection,
        Err(failure) => return vec![Finding::unread("HubConnection", &failure)],
    };
    // Status says that the cluster has not joined.
    let Some(connection) = connection else { return out };
    let status = connection.status.unwrap_or_default();
    if let Some(expires) = &status.certificate_expires {
        out.extend(certificate(expires, Timestamp::now()));
    }
    let nodes = match cluster
        .list(Api::<EgressNode>::all(client.clone()), "EgressNodes")
        .await
    {
        Ok(nodes) => nodes,
        Err(failure) => {
            out.push(Finding::unread("EgressNodes", &failure));
            return out;
        }
    };
    let plan: Result<Option<EgressPlan>, _> = cluster
        .get(Api::all(client.clone()), SINGLETON, "EgressPlan")
        .await;
    match plan {
        Ok(plan) => {
            let digest = plan.map(|p| p.spec.digest).filter(|d| !d.is_empty());
            out.extend(digests(digest.as_deref(), status.acknowledged.as_deref(), &nodes));
        }
        Err(failure) => out.push(Finding::unread("EgressPlan", &failure)),
    }
    match image_tag(cluster, "spillway-member-agent").await {
        Ok(Some(agent)) => {
            let of = |n: &EgressNode| {
                let version = n.status.as_ref()?.agent_version.clone()?;
                Some((format!("node {}", n.metadata.name.as_ref()?), version))
            };
            out.extend(versions(
                ("the member agent", &agent),
                nodes.iter().filter_map(of),
            ));
        }
        Ok(None) => out.push(Finding::error(
            Topic::Agents,
            "member agent",
            "its Deployment isn't there: no plan of the hub comes in",
            "install the member's objects again: deploy/README.md",
        )),
        Err(failure) => out.push(Finding::unread("version of the member agent", &failure)),
    }
    let agents: Result<Option<DaemonSet>, _> = cluster
        .get(cluster.ours(), "spillway-node-agent", "DaemonSet")
        .await;
    match agents {
        Ok(agents) => out.extend(ready(agents.as_ref())),
        Err(failure) => out.push(Finding::unread("node agents", &failure)),
    }
    out
}

fn certificate(expires: &str, now: Timestamp) -> Option<Finding> {
    let end: Timestamp = expires.parse().ok()?;
    let left = end.duration_since(now);
    let fix = "spillway status says why the hub can't be reached; it is renewed as soon as it can";
    if left.is_negative() {
        let what = format!("it ended at {expires}; for 30 days it still serves to renew itself");
        Some(Finding::error(Topic::Certificates, "certificate", what, fix))
    } else if left < RENEWAL_OVERDUE {
        let what = format!("it ends at {expires}, and should have been renewed hours ago");
        Some(Finding::warning(Topic::Certificates, "certificate", what, fix))
    } else {
        None
    }
}

/// The plan that the agent says it has, the one that its objects announce, and those of the nodes.
fn digests(plan: Option<&str>, acknowledged: Option<&str>, nodes: &[EgressNode]) -> Vec<Finding> {
    let mut out = Vec::new();
    let Some(plan) = plan else { return out };
    let short = |digest: &str| digest.chars().take(12).collect::<String>();
    if let Some(acknowledged) = acknowledged.filter(|a| *a != plan) {
        out.push(Finding::warning(
            Topic::Reasons,
            "plan",
            format!(
                "the agent told the hub of {}, and the objects announce {}",
                short(acknowledged),
                short(plan)
            ),
            "seconds are normal; else see the member agent's log",
        ));
    }
    for node in nodes {
        let has = node.status.as_ref().and_then(|s| s.programmed.as_deref());
        if let Some(has) = has.filter(|has| *has != plan) {
            out.push(Finding::warning(
                Topic::Reasons,
                format!("node {}", node.metadata.name.clone().unwrap_or_default()),
                format!("it works with plan {}, the newest is {}", short(has), short(plan)),
                "seconds are normal; else see that node agent's log",
            ));
        }
    }
    out
}

fn ready(agents: Option<&DaemonSet>) -> Option<Finding> {
    let Some(agents) = agents else {
        return Some(Finding::error(
            Topic::Agents,
            "node agents",
            "their DaemonSet isn't there: nodes keep what they have programmed, and new pods of policies' namespaces are held",
            "install the member's objects again: deploy/README.md",
        ));
    };
    let status = agents.status.as_ref()?;
    let (wanted, ready) = (status.desired_number_scheduled, status.number_ready);
    (ready < wanted).then(|| {
        Finding::error(
            Topic::Agents,
            "node agents",
            format!("{ready} of {wanted} are ready; pods that are new on the others are held"),
            "kubectl get pods -n spillway-system -o wide -l app.kubernetes.io/name=spillway-node-agent; `kubectl describe` gives \
             the readiness probe's words",
        )
    })
}

/// `0.3.1` → (0, 3). What isn't a version, such as `dev`, is compared with nothing.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// One version apart is meant to work.
fn versions<'a>(
    (whose, version): (&'a str, &'a str),
    others: impl Iterator<Item = (String, String)>,
) -> Vec<Finding> {
    let Some(own) = minor(version) else {
        return Vec::new();
    };
    let mut apart: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (object, other) in others {
        let fits = minor(&other).is_none_or(|o| o.0 == own.0 && o.1.abs_diff(own.1) <= 1);
        if !fits {
            apart.entry(other).or_default().push(object);
        }
    }
    let found = apart.into_iter().map(|(other, objects)| {
        let more = objects.len().saturating_sub(5);
        let mut named = objects[..objects.len().min(5)].join(", ");
        if more > 0 {
            named = format!("{named} and {more} more");
        }
        Finding::error(
            Topic::Versions,
            named,
            format!("{other} is more than one version apart from {whose}'s {version}"),
            "upgrade the hub first, then members, one version at a time",
        )
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Severity;
    use super::*;

    #[test]
    fn one_version_apart_is_fine_and_two_are_not() {
        let of = |other: &str| {
            versions(
                ("the hub", "0.5.0"),
                [("member a".to_owned(), other.to_owned())].into_iter(),
            )
        };
        for fine in ["0.5.9", "0.4.0", "0.6.0", "dev"] {
            assert!(of(fine).is_empty(), "{fine}");
        }
        for wrong in ["0.3.0", "0.7.0", "1.5.0"] {
            assert_eq!(of(wrong)[0].object, "member a", "{wrong}");
        }
        assert!(
            versions(
                ("the hub", "dev"),
                [("a".to_owned(), "0.1.0".to_owned())].into_iter()
            )
            .is_empty()
        );
    }

    #[test]
    fn a_certificate_is_told_of_when_its_renewal_is_overdue() {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let of = |expires: &str| certificate(expires, now).map(|f| f.severity);
        assert_eq!(of("2026-01-01T13:00:00Z"), None);
        assert_eq!(of("2026-01-01T05:00:00Z"), Some(Severity::Warning));
        assert_eq!(of("2025-12-31T23:00:00Z"), Some(Severity::Error));
    }

    #[test]
    fn nodes_with_another_plan_are_named() {
        let node = |name: &str, programmed: &str| -> EgressNode {
            serde_json::from_value(json!({
                "apiVersion": "member.spillway.io/v1alpha1", "kind": "EgressNode", "metadata": {"name": name},
                "spec": {}, "status": {"programmed": programmed},
            }))
            .expect("a node")
        };
        let found = digests(Some("new"), Some("new"), &[node("n1", "new"), node("n2", "old")]);
        let objects: Vec<_> = found.iter().map(|f| f.object.as_str()).collect();
        assert_eq!(objects, ["node n2"]);
        assert_eq!(digests(Some("new"), Some("old"), &[])[0].object, "plan");
        assert!(digests(None, None, &[node("n1", "old")]).is_empty());
    }

    #[test]
    fn agents_that_are_not_ready_are_counted() {
        let set = |ready: i32| -> DaemonSet {
            serde_json::from_value(json!({"status": {
                "desiredNumberScheduled": 3, "numberReady": ready, "currentNumberScheduled": 3, "numberMisscheduled": 0,
            }}))
            .expect("a DaemonSet")
        };
        assert_eq!(ready(Some(&set(3))), None);
        assert!(ready(None).is_some());
        assert!(ready(Some(&set(1))).expect("found").what.starts_with("1 of 3"));
    }

    #[test]
    fn a_members_nodes_that_are_ready_and_behind_are_named() {
        let member: Member = serde_json::from_value(json!({
            "apiVersion": "spillway.io/v1alpha1", "kind": "Member", "metadata": {"name": "a"}, "spec": {},
            "status": {"plan": {"acknowledged": "new"}, "nodes": [
                {"name": "n1", "ready": true, "programmed": "new"},
                {"name": "n2", "ready": true, "programmed": "old"},
                {"name": "n3", "ready": false, "programmed": "old"},
            ]},
        }))
        .expect("a member");
        let found = behind(&member).expect("found");
        assert!(found.what.ends_with("plan: n2"), "{}", found.what);
    }
}

//! `HubConnection.status` and `EgressPlan.status`: what people and `spillway join` wait for.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, Resource as _};
use serde_json::json;
use spillway_core::plan::Digest;
use spillway_crds::condition::{self, Verdict};
use spillway_crds::member::{EgressNode, EgressPlan, EgressPlanStatus, HubConnection, HubConnectionStatus};
use spillway_crds::{ConditionType, SINGLETON};
use tokio::sync::Mutex;

use crate::api::{self, Failure};
use crate::control::{self, Wake};
use crate::mirror::{Mirror, Objects};
use crate::plan::{Contents, Store};
use crate::progress::Progress;
use crate::published::Published;
use crate::report;
use crate::uplink;

/// Everything that the statuses are made of.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) nodes: Mirror<Node>,
    pub(crate) egress: Mirror<EgressNode>,
    pub(crate) hub: Mirror<HubConnection>,
    pub(crate) head: Mirror<EgressPlan>,
    pub(crate) store: Arc<Store>,
    pub(crate) progress: Published<Progress>,
}

/// How far this cluster's nodes are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Nodes {
    /// Programmed digests of the nodes that are Ready.
    ready: BTreeMap<String, Option<Digest>>,
    /// How many nodes there are.
    all: usize,
    /// How many of all nodes have the plan.
    programmed: usize,
    /// Ready nodes that aren't torn down.
    standing: Vec<String>,
}

fn survey(nodes: &Objects<Node>, egress: &Objects<EgressNode>, plan: Option<Digest>) -> Nodes {
    let status = |name: &str| egress.get(name).and_then(|e| e.status.as_ref());
    let has =
        |name: &&String| plan.is_some() && egress.get(*name).and_then(|e| report::programmed(e)) == plan;
    Nodes {
        ready: report::progress(nodes, egress),
        all: nodes.len(),
        programmed: nodes.keys().filter(has).count(),
        standing: nodes
            .iter()
            .filter(|(name, node)| {
                report::kubernetes_ready(node) && !status(name).is_some_and(|s| s.torn_down)
            })
            .map(|(name, _)| name.clone())
            .collect(),
    }
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(5);
    let list = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 {
        format!("{list} and {more} more")
    } else {
        list
    }
}

/// The `Programmed` condition.
fn programmed(contents: &Contents, nodes: &Nodes, refused: Option<&str>) -> Verdict {
    let kind = ConditionType::Programmed;
    let Some(head) = &contents.head else {
        return match refused {
            Some(why) => Verdict::no(kind, "Refused", format!("the hub's plan was refused: {why}")),
            None => Verdict::no(kind, "NoPlan", "the hub has sent no plan yet"),
        };
    };
    if head.teardown {
        return if nodes.standing.is_empty() {
            Verdict::no(kind, "TornDown", "no node has anything of Spillway in its kernel")
        } else {
            Verdict::no(
                kind,
                "TearingDown",
                format!("waiting for {}", listed(&nodes.standing)),
            )
        };
    }
    if let Some(why) = refused {
        let message = format!("the newest plan was refused, the one before it stays: {why}");
        return Verdict::no(kind, "Refused", message);
    }
    let plan = contents.digest();
    let behind: Vec<String> = nodes
        .ready
        .iter()
        .filter(|(_, digest)| **digest != plan)
        .map(|(name, _)| name.clone())
        .collect();
    if nodes.ready.is_empty() {
        Verdict::no(kind, "Pending", "no node of this cluster is Ready")
    } else if behind.is_empty() {
        let message = format!("{} nodes have the plan", nodes.ready.len());
        Verdict::yes(kind, "Programmed", message)
    } else {
        Verdict::no(kind, "Pending", format!("waiting for {}", listed(&behind)))
    }
}

/// The `Granted` condition.
fn granted(contents: &Contents) -> Verdict {
    let kind = ConditionType::Granted;
    let withheld = contents.withheld();
    if withheld.is_empty() {
        Verdict::yes(
            kind,
            "Granted",
            "the hub's plan asks for nothing that spec.grants leaves out",
        )
    } else {
        let message = format!(
            "left out, as spec.grants doesn't have it: {}; add the namespaces or gateways there, or have the hub's \
             administrators take this member out of those objects",
            listed(&withheld)
        );
        Verdict::no(kind, "NotGranted", message)
    }
}

fn status_of(
    old: &HubConnectionStatus,
    leaving: bool,
    progress: &Progress,
    contents: &Contents,
    nodes: &Nodes,
    now: Timestamp,
) -> HubConnectionStatus {
    let mut conditions = old.conditions.clone();
    let verdicts = [
        progress.enrolled.clone(),
        progress.connected.clone(),
        programmed(contents, nodes, progress.refused.as_deref()),
        granted(contents),
    ];
    for verdict in &verdicts {
        condition::set(&mut conditions, progress.generation, verdict, now);
    }
    let torn_down = contents
        .head
        .as_ref()
        .is_none_or(|h| h.teardown && nodes.standing.is_empty());
    HubConnectionStatus {
        endpoint: progress.endpoint.clone(),
        acknowledged: contents.digest().map(|d| d.to_string()),
        certificate_expires: progress.expires.map(uplink::rfc3339),
        left: leaving && progress.released && torn_down,
        conditions,
    }
}

struct Writer {
    client: Client,
    sources: Sources,
    /// What was written last, and to which object: the watch shows it only later.
    written: Option<(Option<String>, HubConnectionStatus)>,
    plan_written: Option<(Option<String>, EgressPlanStatus)>,
}

/// Keeps both statuses for ever.
pub(crate) async fn run(client: Client, sources: Sources) {
    let wake = Wake::on([
        sources.nodes.changes(),
        sources.egress.changes(),
        sources.hub.changes(),
        sources.head.changes(),
        sources.store.changes(),
        sources.progress.changes(),
    ]);
    let writer = Mutex::new(Writer {
        client,
        sources,
        written: None,
        plan_written: None,
    });
    control::run("status", wake, || async { writer.lock().await.reconcile().await }).await;
}

impl Writer {
    async fn reconcile(&mut self) -> Result<(), Failure> {
        if !self.sources.nodes.synced() || !self.sources.egress.synced() {
            return Ok(());
        }
        let contents = self.sources.store.contents();
        let nodes = survey(
            &self.sources.nodes.objects(),
            &self.sources.egress.objects(),
            contents.digest(),
        );
        self.connection(&contents, &nodes).await?;
        self.plan(&contents, &nodes).await
    }

    async fn connection(&mut self, contents: &Contents, nodes: &Nodes) -> Result<(), Failure> {
        let Some(object) = self.sources.hub.get(SINGLETON) else {
            return Ok(());
        };
        let uid = object.metadata.uid.clone();
        let progress = self.sources.progress.get();
        // Nothing is known about this object before the connection has looked at it.
        if progress.generation.is_none() {
            return Ok(());
        }
        let old = match &self.written {
            Some((of, status)) if *of == uid => status.clone(),
            _ => object.status.clone().unwrap_or_default(),
        };
        let leaving = object.spec.leaving;
        let new = status_of(&old, leaving, &progress, contents, nodes, Timestamp::now());
        if old == new && object.status.is_some() {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": HubConnection::api_version(&()),
            "kind": HubConnection::kind(&()),
            "metadata": { "name": SINGLETON, "uid": uid },
            "status": new,
        });
        let api = Api::<HubConnection>::all(self.client.clone());
        api::apply_status(&api, "writing the HubConnection's status", SINGLETON, &patch).await?;
        self.written = Some((uid, new));
        Ok(())
    }

    async fn plan(&mut self, contents: &Contents, nodes: &Nodes) -> Result<(), Failure> {
        let Some(object) = self.sources.head.get(SINGLETON) else {
            return Ok(());
        };
        if contents.head.is_none() {
            return Ok(());
        }
        let uid = object.metadata.uid.clone();
        let new = EgressPlanStatus {
            nodes: Some(format!("{}/{}", nodes.programmed, nodes.all)),
        };
        let old = match &self.plan_written {
            Some((of, status)) if *of == uid => Some(status),
            _ => object.status.as_ref(),
        };
        if old == Some(&new) {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": EgressPlan::api_version(&()),
            "kind": EgressPlan::kind(&()),
            "metadata": { "name": SINGLETON, "uid": uid },
            "status": new,
        });
        let api = Api::<EgressPlan>::all(self.client.clone());
        api::apply_status(&api, "writing the EgressPlan's status", SINGLETON, &patch).await?;
        self.plan_written = Some((uid, new));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use spillway_core::plan::Resource;
    use spillway_crds::member::{EgressPlanSpec, Grants, PlannedPolicySpec, PolicyRef};

    use crate::plan::Entry;

    use super::*;

    fn contents(digest: Digest, teardown: bool) -> Contents {
        Contents {
            head: Some(EgressPlanSpec {
                digest: digest.to_string(),
                hub_id: "h".into(),
                epoch: 1,
                teardown,
                ..EgressPlanSpec::default()
            }),
            ..Contents::default()
        }
    }

    fn nodes(ready: &[(&str, Digest)]) -> Nodes {
        Nodes {
            ready: ready.iter().map(|(n, d)| ((*n).to_owned(), Some(*d))).collect(),
            ..Nodes::default()
        }
    }

    #[test]
    fn programmed_names_the_nodes_that_are_behind() {
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let plan = contents(new, false);
        let verdict = programmed(&plan, &nodes(&[("a", new), ("b", old)]), None);
        assert_eq!(
            (verdict.status, verdict.reason.as_str()),
            (Some(false), "Pending")
        );
        assert_eq!(verdict.message, "waiting for b");
        let verdict = programmed(&plan, &nodes(&[("a", new), ("b", new)]), None);
        assert_eq!(verdict.status, Some(true));
        assert_eq!(programmed(&plan, &nodes(&[]), None).reason, "Pending");
        assert_eq!(
            programmed(&Contents::default(), &nodes(&[]), None).reason,
            "NoPlan"
        );
        assert_eq!(
            programmed(&plan, &nodes(&[("a", new)]), Some("bad")).reason,
            "Refused"
        );
    }

    #[test]
    fn a_member_has_left_when_the_hub_agreed_and_no_node_stands() {
        let digest = Digest::of(b"plan");
        let mut progress = Progress::default();
        let mut standing = nodes(&[("a", digest)]);
        standing.standing = vec!["a".into()];
        let left = |progress: &Progress, contents: &Contents, nodes: &Nodes, leaving| {
            let old = HubConnectionStatus::default();
            status_of(&old, leaving, progress, contents, nodes, Timestamp::UNIX_EPOCH).left
        };
        let torn = contents(digest, true);
        assert!(!left(&progress, &torn, &nodes(&[]), true), "the hub doesn't know");
        progress.released = true;
        assert!(!left(&progress, &torn, &standing, true), "a node stands");
        assert!(left(&progress, &torn, &nodes(&[]), true));
        assert!(!left(&progress, &torn, &nodes(&[]), false), "nobody is leaving");
        assert!(
            left(&progress, &Contents::default(), &standing, true),
            "never had a plan"
        );
    }

    #[test]
    fn what_the_owner_does_not_grant_is_named() {
        let policy = Resource::Policy(PlannedPolicySpec {
            source: PolicyRef {
                namespace: Some("payments".into()),
                name: "bank".into(),
            },
            ..PlannedPolicySpec::default()
        });
        let mut plan = contents(Digest::of(b"p"), false);
        let entry = Entry {
            digest: Digest::default(),
            resource: Some(policy.clone()),
        };
        plan.entries.insert(policy.key(), entry);
        assert_eq!(granted(&plan).status, Some(true));
        let grants = |namespaces: &[&str]| Grants {
            namespaces: Some(namespaces.iter().map(|n| (*n).to_owned()).collect()),
            ..Grants::default()
        };
        plan.head.as_mut().expect("head").grants = grants(&["payments"]);
        assert_eq!(granted(&plan).status, Some(true));
        plan.head.as_mut().expect("head").grants = grants(&["web"]);
        let verdict = granted(&plan);
        assert_eq!(
            (verdict.status, verdict.reason.as_str()),
            (Some(false), "NotGranted")
        );
        assert!(
            verdict.message.contains("policy payments/bank"),
            "{}",
            verdict.message
        );
    }

    #[test]
    fn a_second_look_changes_nothing() {
        let progress = Progress::default();
        let (plan, nodes) = (contents(Digest::of(b"p"), false), Nodes::default());
        let old = HubConnectionStatus::default();
        let at = |s| Timestamp::from_second(s).expect("in range");
        let first = status_of(&old, false, &progress, &plan, &nodes, at(1));
        assert_eq!(status_of(&first, false, &progress, &plan, &nodes, at(2)), first);
    }
}

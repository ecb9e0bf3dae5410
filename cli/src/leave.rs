//! `spillway leave`: the hub is told, every node removes what it programmed, then all objects go.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use spillway_crds::condition::{Condition, ConditionType};
use spillway_crds::member::{EgressNode, EgressPlan, HubConnection};
use spillway_crds::{NAMESPACE, SINGLETON};
use tokio::time::Instant;

use crate::FIELD_MANAGER;
use crate::args::{Leave, Target};
use crate::cluster::{Cluster, reference};
use crate::failure::{Exit, Failure};
use crate::join::objects::{IDENTITY_SECRET, TOKEN_SECRET};
use crate::ui::Ui;
use crate::values::MemberValues;
use crate::{manifest, output, wait};

/// How long `--force` still waits for nodes to clean up.
const FORCED: Duration = Duration::from_secs(30);

/// Takes the cluster out of its federation.
pub async fn run(target: &Target, leave: &Leave, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let hub_is_here = cluster
        .exists(&reference(
            "apps/v1",
            "Deployment",
            Some(NAMESPACE),
            "spillway-hub",
        ))
        .await?;
    let doomed = doomed(MemberValues::default().render()?, hub_is_here);
    if leave.dry_run {
        return output::print(&manifest::titles(&doomed));
    }
    let connection = read(&cluster).await?;
    if connection.is_none() && !any_exists(&cluster, &doomed).await? {
        // What is asked for is so already: no failure, so that scripts can repeat it.
        ui.say(format!(
            "{} is no member: there is nothing to remove",
            cluster.name
        ));
        return Ok(());
    }
    if !leave.yes {
        ui.confirm(&format!(
            "{} leaves its federation: selected pods then leave with their node's address. Go on?",
            cluster.name
        ))?;
    }
    let deadline = Instant::now() + leave.timeout;
    if connection.is_some() {
        ask(&cluster).await?;
        let goodbye = goodbye(&cluster, deadline, leave.force, ui).await;
        match (goodbye, leave.force) {
            (Err(failure), true) => {
                ui.warn(&failure.what);
                forced(&cluster, deadline, ui).await?;
            }
            (result, _) => result?,
        }
    }
    remove(&cluster, &doomed, deadline, ui).await?;
    ui.say(format!(
        "{} is no member any more; no object of Spillway is left in it",
        cluster.name
    ));
    Ok(())
}

async fn read(cluster: &Cluster) -> Result<Option<HubConnection>, Failure> {
    cluster
        .get(Api::all(cluster.client.clone()), SINGLETON, "HubConnection")
        .await
}

async fn any_exists(cluster: &Cluster, objects: &[Value]) -> Result<bool, Failure> {
    for object in objects {
        if cluster.exists(object).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sets `spec.leaving`: from here on the agent acts.
async fn ask(cluster: &Cluster) -> Result<(), Failure> {
    let api: Api<HubConnection> = Api::all(cluster.client.clone());
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch(
        SINGLETON,
        &parameters,
        &Patch::Merge(json!({"spec": {"leaving": true}})),
    )
    .await
    .map(drop)
    .map_err(|err| Failure::kube("telling the member agent to leave", &err))
}

/// What the agent has reached on its way out.
#[derive(Clone, Debug, Default, PartialEq)]
struct Farewell {
    /// The hub agreed and all nodes are torn down.
    left: bool,
    /// All ready nodes are torn down.
    torn_down: bool,
    /// Why the hub wasn't told, where it wasn't: reason and message.
    hub: Option<(String, String)>,
    /// Nodes that aren't torn down.
    waiting: Vec<String>,
    /// How many nodes are torn down, and how many there are.
    nodes: (usize, usize),
}

fn farewell(connection: &HubConnection, nodes: &[EgressNode]) -> Farewell {
    let conditions = connection
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let find =
        |kind: ConditionType| -> Option<&Condition> { conditions.iter().find(|c| c.type_ == kind.as_str()) };
    let down = |node: &&EgressNode| node.status.as_ref().is_some_and(|s| s.torn_down);
    let waiting: Vec<String> = nodes
        .iter()
        .filter(|n| !down(n))
        .filter_map(|n| n.metadata.name.clone())
        .collect();
    let hub = find(ConditionType::Connected)
        .filter(|c| c.status == "False" && c.reason != "Left" && c.reason != "NotEnrolled")
        .map(|c| (c.reason.clone(), c.message.clone()));
    Farewell {
        left: connection.status.as_ref().is_some_and(|s| s.left),
        torn_down: find(ConditionType::Programmed).is_some_and(|c| c.reason == "TornDown"),
        hub,
        nodes: (nodes.len() - waiting.len(), nodes.len()),
        waiting,
    }
}

/// Waits until the nodes are torn down and the hub agreed. With `force` it gives up as soon as only the
/// hub is missing.
async fn goodbye(cluster: &Cluster, deadline: Instant, force: bool, ui: &Ui) -> Result<(), Failure> {
    let deadline = if force {
        deadline.min(Instant::now() + FORCED)
    } else {
        deadline
    };
    let mut phase = ui.phase("nodes torn down, hub told");
    let mut last = Farewell::default();
    let done = wait::until(
        deadline,
        async || {
            let Some(connection) = read(cluster).await? else {
                return Ok(Some(Farewell {
                    left: true,
                    ..Farewell::default()
                }));
            };
            let nodes = cluster
                .list(Api::<EgressNode>::all(cluster.client.clone()), "EgressNodes")
                .await?;
            last = farewell(&connection, &nodes);
            phase.update(&format!(
                "{} of {} nodes{}",
                last.nodes.0,
                last.nodes.1,
                last.hub
                    .as_ref()
                    .map(|(reason, _)| format!(", hub not told ({reason})"))
                    .unwrap_or_default()
            ));
            Ok((last.left || (force && last.torn_down && last.hub.is_some())).then(|| last.clone()))
        },
        || Failure::new(Exit::TimedOut, String::new()),
    )
    .await
    .map_err(|failure| {
        if failure.what.is_empty() {
            why_not(&last)
        } else {
            failure
        }
    })?;
    phase.done(&if done.left {
        format!("{} nodes", done.nodes.0)
    } else {
        format!(
            "{} nodes; the hub was not told: delete the Member there",
            done.nodes.0
        )
    });
    Ok(())
}

fn why_not(last: &Farewell) -> Failure {
    match (&last.hub, last.waiting.is_empty() || last.torn_down) {
        (Some((reason, message)), true) => Failure::new(Exit::HubUnreachable, format!("the nodes are torn down, but the hub was not told ({reason})\n  the agent says: {message}"))
            .fix("run it again when the hub can be reached")
            .fix("or leave without telling it: spillway leave --force; then, on the hub: kubectl delete member NAME"),
        (_, false) => Failure::new(Exit::TimedOut, format!("these nodes have not removed what they programmed: {}", last.waiting.join(", ")))
            .fix("see why: kubectl logs -n spillway-system daemonset/spillway-node-agent")
            .fix("if those nodes are gone for good, delete their Node objects and run it again")
            .fix("or leave anyway with --force, and reboot those nodes afterwards"),
        (None, true) => Failure::new(Exit::TimedOut, "the member agent hasn't finished leaving")
            .fix("see why: kubectl logs -n spillway-system deployment/spillway-member-agent")
            .fix("or leave anyway: --force"),
    }
}

/// Does the agent's part where it can't: tells the nodes itself, and waits for those that still answer.
async fn forced(cluster: &Cluster, deadline: Instant, ui: &Ui) -> Result<(), Failure> {
    let api: Api<EgressPlan> = Api::all(cluster.client.clone());
    let Some(plan) = cluster.get(api.clone(), SINGLETON, "EgressPlan").await? else {
        return Ok(());
    };
    // Where the agent has told the nodes, they have had their time.
    let patience = if plan.spec.teardown {
        Duration::ZERO
    } else {
        FORCED
    };
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch(
        SINGLETON,
        &parameters,
        &Patch::Merge(json!({"spec": {"teardown": true}})),
    )
    .await
    .map_err(|err| Failure::kube("telling the nodes to clean up", &err))?;
    let mut phase = ui.phase("nodes torn down");
    let mut waiting: Vec<String> = Vec::new();
    let all = wait::until(
        deadline.min(Instant::now() + patience),
        async || {
            let nodes = cluster
                .list(Api::<EgressNode>::all(cluster.client.clone()), "EgressNodes")
                .await?;
            waiting = nodes
                .iter()
                .filter(|n| !n.status.as_ref().is_some_and(|s| s.torn_down))
                .filter_map(|n| n.metadata.name.clone())
                .collect();
            phase.update(&format!("{} of {}", nodes.len() - waiting.len(), nodes.len()));
            Ok(waiting.is_empty().then_some(nodes.len()))
        },
        || Failure::new(Exit::TimedOut, "nodes don't answer"),
    )
    .await;
    match all {
        Ok(count) => phase.done(&format!("{count} nodes")),
        Err(failure) if failure.exit == Exit::TimedOut => {
            drop(phase);
            ui.warn(format!(
                "these nodes keep what they programmed until they are rebooted: {}",
                waiting.join(", ")
            ));
        }
        Err(failure) => return Err(failure),
    }
    Ok(())
}

/// Deletes everything: workloads first, so that no agent writes again what goes after it.
async fn remove(cluster: &Cluster, doomed: &[Value], deadline: Instant, ui: &Ui) -> Result<(), Failure> {
    let deadline = deadline.max(Instant::now() + Duration::from_secs(60));
    let phase = ui.phase("objects removed");
    let (workloads, rest): (Vec<Value>, Vec<Value>) = doomed
        .iter()
        .cloned()
        .partition(|o| ["Deployment", "DaemonSet"].contains(&manifest::kind(o)));
    let mut count = 0;
    for group in [workloads, rest] {
        for object in &group {
            phase.show(manifest::kind(object));
            count += usize::from(cluster.delete(object).await?);
        }
        cluster.gone(&group, deadline).await?;
    }
    phase.done(&format!("{count} objects"));
    Ok(())
}

/// What goes, workloads first and the namespace last. Where the hub runs in the same namespace, the
/// namespace stays and the member's secrets are named one by one.
fn doomed(objects: Vec<Value>, hub_is_here: bool) -> Vec<Value> {
    let mut doomed: Vec<Value> = objects.into_iter().rev().collect();
    for name in [TOKEN_SECRET, IDENTITY_SECRET] {
        let at = doomed.len() - 1;
        doomed.insert(at, reference("v1", "Secret", Some(NAMESPACE), name));
    }
    if hub_is_here {
        doomed.retain(|o| manifest::kind(o) != "Namespace");
    }
    doomed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_join_brought_goes_and_the_namespace_goes_last() {
        let objects = MemberValues::default().render().expect("renders");
        let count = objects.len();
        let all = doomed(objects.clone(), false);
        assert_eq!(all.len(), count + 2);
        assert!(["Deployment", "DaemonSet"].contains(&manifest::kind(&all[0])));
        assert_eq!(all.last().map(manifest::kind), Some("Namespace"));
        assert!(
            !doomed(objects, true)
                .iter()
                .any(|o| manifest::kind(o) == "Namespace")
        );
    }

    fn connection(left: bool, connected: (&str, &str), programmed: &str) -> HubConnection {
        let condition = |kind: &str, status: &str, reason: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        serde_json::from_value(json!({
            "apiVersion": "member.spillway.io/v1alpha1", "kind": "HubConnection", "metadata": {"name": "current"},
            "spec": {"member": "a", "endpoints": ["hub:1"], "caPin": "sha256:", "leaving": true},
            "status": {"left": left, "conditions": [
                condition("Connected", connected.0, connected.1), condition("Programmed", "False", programmed)]},
        }))
        .expect("a connection")
    }

    fn node(name: &str, torn_down: bool) -> EgressNode {
        serde_json::from_value(json!({
            "apiVersion": "member.spillway.io/v1alpha1", "kind": "EgressNode", "metadata": {"name": name}, "spec": {},
            "status": {"tornDown": torn_down},
        }))
        .expect("a node")
    }

    #[test]
    fn a_hub_that_is_away_is_told_from_nodes_that_are() {
        let away = farewell(
            &connection(false, ("False", "HubUnreachable"), "TornDown"),
            &[node("n1", true)],
        );
        let failure = why_not(&away);
        assert_eq!(failure.exit, Exit::HubUnreachable);
        assert!(failure.fix[1].contains("--force"), "{failure}");

        let stuck = farewell(
            &connection(false, ("True", "Connected"), "TearingDown"),
            &[node("n1", true), node("n2", false)],
        );
        assert_eq!((stuck.nodes, stuck.hub.clone()), ((1, 2), None));
        assert!(
            why_not(&stuck).what.ends_with("programmed: n2"),
            "{}",
            why_not(&stuck)
        );

        let gone = farewell(&connection(true, ("False", "Left"), "TornDown"), &[]);
        assert!(gone.left && gone.hub.is_none());
    }
}

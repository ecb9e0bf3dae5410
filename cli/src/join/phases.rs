//! The phases of a join, as the member's own objects tell them.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::api::Api;
use serde::Serialize;
use spillway_crds::SINGLETON;
use spillway_crds::condition::ConditionType;
use spillway_crds::member::{EgressNode, EgressPlan, HubConnection};
use tokio::time::Instant;

use crate::args::Join;
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::join::advice::{self, Advice, Context};
use crate::join::enrolment::{Enrolment, Since, connection, current, enrolment};
use crate::join::progress::progress;
use crate::pods::{self, Trouble};
use crate::ui::{Phase, Ui};
use crate::wait;

/// How long a hub that can't be reached is tried before the join fails. The agent goes on trying.
const HUB_PATIENCE: Duration = Duration::from_secs(30);

/// A finished join.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// Name of the member.
    pub member: String,
    /// Endpoint of the hub in use.
    pub endpoint: Option<String>,
    /// Digest of the plan that every node has.
    pub plan: String,
    /// Nodes that have it.
    pub nodes: usize,
}

/// Follows the agents until every node has the first plan, telling each phase.
pub async fn follow(
    cluster: &Cluster,
    join: &Join,
    since: &Since,
    deadline: Instant,
    ui: &Ui,
) -> Result<Joined, Failure> {
    agent_runs(cluster, deadline, ui.phase("agent running")).await?;
    let endpoint = hub_reached(cluster, join, since, deadline, ui.phase("hub reached")).await?;
    // Neither can be seen alone: the agent checks the pin before it sends anything.
    ui.phase("pin verified").done(&short_pin(&join.pin.to_string()));
    enrolled(cluster, join, since, deadline, ui.phase("enrolled")).await?;
    first_plan(cluster, join, deadline, ui.phase("first plan acknowledged")).await?;
    let (plan, nodes) = nodes_ready(cluster, deadline, ui.phase("node agents ready")).await?;
    Ok(Joined {
        member: join.name.clone(),
        endpoint,
        plan,
        nodes,
    })
}

fn short_pin(pin: &str) -> String {
    pin.chars().take(19).chain("...".chars()).collect()
}

async fn agent_runs(cluster: &Cluster, deadline: Instant, mut phase: Phase) -> Result<(), Failure> {
    let mut last: Option<Trouble> = None;
    wait::until(
        deadline,
        async || {
            let found: Option<Deployment> = cluster
                .get(cluster.ours(), "spillway-member-agent", "Deployment")
                .await?;
            let generation = found.as_ref().and_then(|d| d.metadata.generation);
            let status = found.and_then(|d| d.status).unwrap_or_default();
            let current = status.observed_generation >= generation && status.updated_replicas >= Some(1);
            if current
                && status.available_replicas >= Some(1)
                && status.unavailable_replicas.unwrap_or(0) == 0
            {
                return Ok(Some(()));
            }
            stop_on(
                pods::trouble(cluster, "spillway-member-agent").await?,
                &mut phase,
                &mut last,
            )
        },
        || {
            late(
                "the member agent doesn't run yet",
                "deployment/spillway-member-agent",
            )
        },
    )
    .await
    .map_err(|failure| instead(failure, last.as_ref()))?;
    phase.done("");
    Ok(())
}

/// Fails on trouble that doesn't pass; tells and remembers the rest.
fn stop_on<T>(
    found: Option<Trouble>,
    phase: &mut Phase,
    last: &mut Option<Trouble>,
) -> Result<Option<T>, Failure> {
    if let Some(trouble) = found {
        if trouble.is_final() {
            return Err(trouble.failure());
        }
        phase.update(&format!("{}: {}", trouble.object, trouble.message));
        *last = Some(trouble);
    }
    Ok(None)
}

/// A timeout, told by what was last in the way.
fn instead(failure: Failure, last: Option<&Trouble>) -> Failure {
    match last {
        Some(trouble) if failure.exit == Exit::TimedOut => trouble.failure(),
        _ => failure,
    }
}

fn late(what: &str, logs: &str) -> Failure {
    Failure::new(Exit::TimedOut, what)
        .fix(format!(
            "see what it says: kubectl logs -n spillway-system {logs}"
        ))
        .fix("nothing is lost: the agents go on by themselves, and spillway status shows how far they are")
        .fix("give it longer with --timeout, or take everything back with spillway leave --force")
}

/// True where the advice is about reaching the hub at all.
fn is_about_reaching(advice: &Advice) -> bool {
    advice.failure().exit == Exit::HubUnreachable
}

async fn hub_reached(
    cluster: &Cluster,
    join: &Join,
    since: &Since,
    deadline: Instant,
    mut phase: Phase,
) -> Result<Option<String>, Failure> {
    let patience = deadline.min(Instant::now() + HUB_PATIENCE);
    let mut last: Option<Failure> = None;
    let reached = wait::until(
        deadline,
        async || {
            let Some(found) = connection(cluster).await? else {
                return Ok(None);
            };
            match enrolment(&found, join, since) {
                Enrolment::Not(advice) if is_about_reaching(&advice) => {
                    phase.update(&advice.failure().what);
                    if Instant::now() > patience {
                        return Err(advice.failure().clone());
                    }
                    last = Some(advice.failure().clone());
                }
                // It answered: what it said belongs to the phases that follow, unless it isn't the hub.
                Enrolment::Not(advice) if advice.failure().exit == Exit::PinMismatch => {
                    return Err(advice.failure().clone());
                }
                Enrolment::Done | Enrolment::Not(Advice::Stop(_)) => return Ok(Some(endpoint_of(&found))),
                Enrolment::Not(Advice::Wait(failure)) => {
                    phase.update(&failure.what);
                    last = Some(failure);
                }
                Enrolment::Trying => {}
            }
            Ok(None)
        },
        || {
            late(
                "the member agent hasn't reached the hub yet",
                "deployment/spillway-member-agent",
            )
        },
    )
    .await
    .map_err(|failure| match last {
        Some(known) if failure.exit == Exit::TimedOut => known,
        _ => failure,
    })?;
    phase.done(reached.as_deref().unwrap_or_default());
    Ok(reached)
}

fn endpoint_of(connection: &HubConnection) -> Option<String> {
    connection.status.as_ref().and_then(|s| s.endpoint.clone())
}

async fn enrolled(
    cluster: &Cluster,
    join: &Join,
    since: &Since,
    deadline: Instant,
    mut phase: Phase,
) -> Result<(), Failure> {
    wait::until(
        deadline,
        async || match connection(cluster).await?.map(|c| enrolment(&c, join, since)) {
            Some(Enrolment::Done) => Ok(Some(())),
            Some(Enrolment::Not(Advice::Stop(failure))) => Err(failure),
            Some(Enrolment::Not(Advice::Wait(failure))) => {
                phase.update(&failure.what);
                Ok(None)
            }
            Some(Enrolment::Trying) | None => Ok(None),
        },
        || {
            late(
                "the hub hasn't enrolled the member yet",
                "deployment/spillway-member-agent",
            )
        },
    )
    .await?;
    phase.done(&format!("as {}", join.name));
    Ok(())
}

async fn first_plan(
    cluster: &Cluster,
    join: &Join,
    deadline: Instant,
    mut phase: Phase,
) -> Result<(), Failure> {
    let endpoints: Vec<String> = join.endpoints.iter().map(ToString::to_string).collect();
    let digest = wait::until(
        deadline,
        async || {
            let Some(found) = connection(cluster).await? else {
                return Ok(None);
            };
            if let Some(digest) = found
                .status
                .as_ref()
                .and_then(|s| s.acknowledged.clone())
                .filter(|d| !d.is_empty())
            {
                return Ok(Some(digest));
            }
            let connected = current(&found, ConditionType::Connected, None);
            if let Some(c) = connected.filter(|c| c.status == "False" && c.reason != "NotEnrolled") {
                let context = Context {
                    member: &join.name,
                    endpoints: &endpoints,
                    pin: &join.pin.to_string(),
                    message: &c.message,
                };
                phase.update(&advice::for_reason(&c.reason, &context).failure().what);
            }
            let programmed = current(&found, ConditionType::Programmed, None);
            if let Some(c) = programmed.filter(|c| c.reason == "Refused") {
                return Err(Failure::new(
                    Exit::Other,
                    format!("the agent refused the hub's plan: {}", c.message),
                )
                .fix("hub and agents may be of different versions: spillway version, on both sides"));
            }
            Ok(None)
        },
        || {
            late(
                "the hub hasn't sent a plan yet",
                "deployment/spillway-member-agent",
            )
            .fix(format!(
                "see what the hub says about {}: spillway status, on the hub",
                join.name
            ))
        },
    )
    .await?;
    phase.done(&digest.chars().take(12).collect::<String>());
    Ok(())
}

/// Waits until every node agent has the plan in its node's kernel; gives the plan's digest and their number.
async fn nodes_ready(
    cluster: &Cluster,
    deadline: Instant,
    mut phase: Phase,
) -> Result<(String, usize), Failure> {
    let mut last: Option<Trouble> = None;
    let mut waiting: Vec<String> = Vec::new();
    let result = wait::until(
        deadline,
        async || {
            let plan: Option<EgressPlan> = cluster
                .get(Api::all(cluster.client.clone()), SINGLETON, "EgressPlan")
                .await?;
            let agents: Option<DaemonSet> = cluster
                .get(cluster.ours(), "spillway-node-agent", "DaemonSet")
                .await?;
            let nodes = cluster
                .list(Api::<EgressNode>::all(cluster.client.clone()), "EgressNodes")
                .await?;
            let progress = progress(plan.as_ref(), agents.as_ref(), &nodes);
            phase.update(&format!("{} of {}", progress.ready, progress.wanted));
            waiting.clone_from(&progress.waiting);
            if let (Some(digest), true) = (
                progress.digest,
                progress.wanted > 0 && progress.ready >= progress.wanted,
            ) {
                return Ok(Some((digest, progress.ready)));
            }
            stop_on(
                pods::trouble(cluster, "spillway-node-agent").await?,
                &mut phase,
                &mut last,
            )
        },
        || late("not every node has the plan yet", "daemonset/spillway-node-agent"),
    )
    .await;
    let (digest, nodes) = result.map_err(|mut failure| {
        if failure.exit == Exit::TimedOut && !waiting.is_empty() {
            failure.what = format!("{}: {}", failure.what, waiting.join("; "));
        }
        instead(failure, last.as_ref())
    })?;
    phase.done(&format!("{nodes} of {nodes}"));
    Ok((digest, nodes))
}

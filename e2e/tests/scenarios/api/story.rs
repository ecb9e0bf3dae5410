//! Two replicas of the hub and members of flesh and blood (but without a kernel) against a real API server:
//! what can't be seen from outside a hub's process, and how soon a change is in a member's plan.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use spillway_core::plan::{Resource, ResourceKey};
use spillway_crds::condition::{ConditionType, holds};
use spillway_crds::hub::{EgressGateway, FederatedClusterEgressPolicy, Member};
use spillway_crds::member::PolicyRef;
use spillway_e2e::{Arena, ArenaSpec};
use spillway_link::hub::EnrollRefusal;
use spillway_link::member::{ConnectionState, DisconnectReason, EnrollError};

use super::hub::{self, Replica};
use super::member::{FakeMember, enroll, token};

/// How many changes the latency is taken over.
const CHANGES: usize = 50;

/// Name of the gateway and of the policy, and a label of the members.
const RUN: &str = "test";

/// The member with the gateway.
const GATE: &str = "gate";

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `look` succeeds.
pub(crate) async fn eventually<F, Fut>(what: &str, look: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    spillway_e2e::eventually(PATIENCE, what, look).await
}

/// The object that the JSON is.
pub(crate) fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<K> {
    Ok(serde_json::from_value(value)?)
}

/// The refusal of an enrolment.
fn refusal<T>(outcome: Result<T, EnrollError>) -> Option<EnrollRefusal> {
    match outcome {
        Err(EnrollError::Refused(why)) => Some(why),
        _ => None,
    }
}

/// Two members join, get plans, change replicas and go, each in its own way.
pub(crate) async fn members_come_and_go_from_token_to_leave() -> Result<()> {
    let spec = ArenaSpec::parse_short(&format!("api-{}", std::process::id() % 10_000), "api:1")?;
    let arena = Arena::up(&spec).await?;
    let client = arena.cluster("api").await?.client();
    hub::prepare(&client).await?;
    told_to(&client).await?;
    arena.down().await
}

async fn told_to(client: &Client) -> Result<()> {
    let first = Replica::start(client, "replica-a").await?;
    let second = Replica::start(client, "replica-b").await?;
    let endpoints = vec![first.endpoint(), second.endpoint()];
    let pin = hub::pin(client).await?;

    // Joining.
    let members: Api<Member> = Api::all(client.clone());
    let invitation = token(client, GATE, RUN).await?;
    let identity = enroll(&endpoints, pin, &invitation, GATE).await?;
    let twice = enroll(&endpoints, pin, &invitation, GATE).await;
    ensure!(
        refusal(twice) == Some(EnrollRefusal::TokenUsed),
        "a token joins twice"
    );
    let another = token(client, GATE, RUN).await?;
    let taken = enroll(&endpoints, pin, &another, GATE).await;
    ensure!(
        refusal(taken) == Some(EnrollRefusal::NameTaken),
        "two have a name"
    );
    let elsewhere = enroll(&endpoints, pin, &another, "elsewhere").await;
    ensure!(
        refusal(elsewhere) == Some(EnrollRefusal::TokenForOtherMember),
        "a token joins under another name"
    );
    let labels = members.get(GATE).await?.metadata.labels.unwrap_or_default();
    ensure!(
        labels.get("run").is_some_and(|v| v == RUN),
        "the token's labels: {labels:?}"
    );

    // The first plan, and a report that makes a gateway of the member's node.
    let member = FakeMember::connect(identity, &endpoints, GATE);
    eventually("there is a plan", || async {
        ensure!(member.node_from_plan(), "it names no overlay prefix");
        Ok(())
    })
    .await?;
    member.report();
    let gateways: Api<EgressGateway> = Api::all(client.clone());
    let gateway: EgressGateway = object(json!({
        "apiVersion": "spillway.io/v1alpha1", "kind": "EgressGateway", "metadata": {"name": RUN},
        "spec": {"nodes": [{"member": GATE}], "addresses": {"ipv4": ["198.18.0.0/24"]}},
    }))?;
    gateways.create(&PostParams::default(), &gateway).await?;
    let policies: Api<FederatedClusterEgressPolicy> = Api::all(client.clone());
    let policy: FederatedClusterEgressPolicy = object(json!({
        "apiVersion": "spillway.io/v1alpha1", "kind": "FederatedClusterEgressPolicy", "metadata": {"name": RUN},
        "spec": {"members": {"matchLabels": {"run": RUN}}, "to": {"cidrs": ["192.0.2.0/24"]}, "through": [{"gateway": RUN}]},
    }))?;
    policies.create(&PostParams::default(), &policy).await?;
    let key = ResourceKey::policy(&PolicyRef {
        namespace: None,
        name: RUN.into(),
    });
    let planned_egress = || match member.resource(&key) {
        Some(Resource::Policy(p)) => p.through.first().map(|t| t.identity),
        _ => None,
    };
    member.until(|| planned_egress().is_some()).await?;

    // From a change to the plan in the member, with a new identity each time: the longest way.
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let address = format!("198.18.0.{}", change + 1);
        let patch = json!({"spec": {"through": [{"gateway": RUN, "egressIP": {"ipv4": address}}]}});
        let before = planned_egress();
        let began = Instant::now();
        policies
            .patch(RUN, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        member.until(|| planned_egress() != before).await?;
        times.push(began.elapsed());
    }
    times.sort();
    eprintln!(
        "    change of a policy to its plan: p50 {:?}, p99 {:?}",
        times[CHANGES / 2],
        times[CHANGES - 1]
    );
    // Some 20 ms where nothing else runs; a poll in the path would take this long.
    ensure!(
        times[CHANGES / 2] < Duration::from_secs(1),
        "changes take {times:?}"
    );

    // What the member programmed shows on the policy. Its ports come with a later plan, once the gateway knows them.
    eventually("the policy is Programmed", || async {
        member.programmed();
        let status = policies.get(RUN).await?.status.context("no status")?;
        ensure!(
            holds(&status.conditions, ConditionType::Programmed) && status.members.as_deref() == Some("1/1"),
            "{status:?}"
        );
        Ok(())
    })
    .await?;
    let status = members.get(GATE).await?.status.context("no status")?;
    ensure!(status.node_count == Some(1), "nodes: {:?}", status.node_count);
    ensure!(
        status.conditions.len() == 3,
        "three writers' conditions side by side: {:?}",
        status.conditions
    );

    // A replica goes; the other one serves and, after it, leads.
    let (leaver, stayer) = if status.connected_to.as_deref() == Some(first.name()) {
        (first, second)
    } else {
        (second, first)
    };
    let gone = leaver.name().to_owned();
    leaver.stop().await?;
    eventually("the member is connected to the other replica", || async {
        let status = members.get(GATE).await?.status.context("no status")?;
        ensure!(
            holds(&status.conditions, ConditionType::Connected)
                && status.connected_to.as_ref().is_some_and(|to| *to != gone),
            "{status:?}"
        );
        Ok(())
    })
    .await?;
    let patch = json!({"spec": {"to": {"cidrs": ["192.0.2.128/25"]}}});
    policies
        .patch(RUN, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    member
        .until(
            || matches!(member.resource(&key), Some(Resource::Policy(p)) if p.to.cidrs == ["192.0.2.128/25"]),
        )
        .await?;

    // Leaving deletes the member; deleting a member by hand ends its certificate.
    let guest = "guest";
    let invitation = token(client, guest, RUN).await?;
    let endpoints = [stayer.endpoint()];
    let identity = enroll(&endpoints, pin, &invitation, guest).await?;
    let other = FakeMember::connect(identity, &endpoints, guest);
    other.until(|| other.resource(&key).is_some()).await?;
    other.leave().await?;
    ensure!(
        members.get_opt(guest).await?.is_none(),
        "a member that left is listed"
    );
    members.delete(GATE, &DeleteParams::default()).await?;
    eventually("the certificate is refused", || async {
        let state = member.state();
        ensure!(
            matches!(
                state,
                ConnectionState::Connecting {
                    reason: Some(DisconnectReason::Revoked(_) | DisconnectReason::NotAccepted(_))
                }
            ),
            "{state:?}"
        );
        Ok(())
    })
    .await?;

    policies.delete(RUN, &DeleteParams::default()).await?;
    eventually("a gateway without policies has no identities", || async {
        let status = gateways.get(RUN).await?.status.context("no status")?;
        ensure!(status.identities.is_empty(), "{:?}", status.identities);
        Ok(())
    })
    .await?;
    stayer.stop().await
}

//! Two replicas of the hub and members of flesh and blood (but without a kernel) against a real API
//! server. `KUBECONFIG` names a cluster with the hub's definitions and the namespace `spillway-system`:
//!
//! ```sh
//! cargo test -p spillway-hub --test federation -- --ignored --nocapture
//! ```

mod hub;
mod member;

use std::time::{Duration, Instant};

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use spillway_core::plan::{Resource, ResourceKey};
use spillway_crds::hub::{EgressGateway, FederatedClusterEgressPolicy, Member};
use spillway_crds::member::PolicyRef;
use spillway_link::hub::EnrollRefusal;
use spillway_link::member::{ConnectionState, DisconnectReason, EnrollError};

use hub::Replica;
use member::{FakeMember, enroll, token};

/// How many changes the latency is taken over.
const CHANGES: usize = 50;

/// Polls until `check` gives something, for at most 20 s.
async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("a valid object")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a hub cluster's API server in KUBECONFIG"]
async fn a_federation_from_token_to_leave() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.expect("KUBECONFIG");
    let run = format!("t{:06x}", rand::random::<u32>() & 0x00ff_ffff);
    let first = Replica::start(&client, &format!("{run}-a")).await;
    let second = Replica::start(&client, &format!("{run}-b")).await;
    let endpoints = vec![first.endpoint(), second.endpoint()];
    let pin = hub::pin(&client).await;

    // Joining.
    let members: Api<Member> = Api::all(client.clone());
    let gate = format!("{run}-gate");
    let invitation = token(&client, &gate, &run).await;
    let identity = enroll(&endpoints, pin, &invitation, &gate)
        .await
        .expect("enrolled");
    let twice = enroll(&endpoints, pin, &invitation, &gate).await;
    assert_eq!(twice.unwrap_err(), EnrollError::Refused(EnrollRefusal::TokenUsed));
    let another = token(&client, &gate, &run).await;
    let taken = enroll(&endpoints, pin, &another, &gate).await;
    assert_eq!(taken.unwrap_err(), EnrollError::Refused(EnrollRefusal::NameTaken));
    let other_name = enroll(&endpoints, pin, &another, "elsewhere").await;
    assert_eq!(
        other_name.unwrap_err(),
        EnrollError::Refused(EnrollRefusal::TokenForOtherMember)
    );
    let labels = members.get(&gate).await.expect("created").metadata.labels;
    assert_eq!(labels.expect("labels").get("run"), Some(&run));

    // The first plan, and a report that makes a gateway of the member's node.
    let member = FakeMember::connect(identity, &endpoints, &gate);
    eventually("a plan", async || {
        member.node_from_plan().then(|| member.report())
    })
    .await;
    let gateways: Api<EgressGateway> = Api::all(client.clone());
    let octet = rand::random::<u8>();
    let pool = format!("198.18.{octet}.0/24");
    let gateway: EgressGateway = object(json!({
        "apiVersion": "spillway.io/v1alpha1", "kind": "EgressGateway", "metadata": {"name": run},
        "spec": {"nodes": [{"member": gate}], "addresses": {"ipv4": [pool]}},
    }));
    gateways
        .create(&PostParams::default(), &gateway)
        .await
        .expect("created");
    let policies: Api<FederatedClusterEgressPolicy> = Api::all(client.clone());
    let policy: FederatedClusterEgressPolicy = object(json!({
        "apiVersion": "spillway.io/v1alpha1", "kind": "FederatedClusterEgressPolicy", "metadata": {"name": run},
        "spec": {"members": {"matchLabels": {"run": run}}, "to": {"cidrs": ["192.0.2.0/24"]}, "through": [{"gateway": run}]},
    }));
    policies
        .create(&PostParams::default(), &policy)
        .await
        .expect("created");
    let key = ResourceKey::policy(&PolicyRef {
        namespace: None,
        name: run.clone(),
    });
    let planned_egress = || match member.resource(&key) {
        Some(Resource::Policy(p)) => p.through.first().map(|t| t.identity),
        _ => None,
    };
    eventually("the policy in the plan", async || planned_egress()).await;

    // From a change to the plan in the member, with a new identity each time: the longest way.
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let address = format!("198.18.{octet}.{}", change + 1);
        let patch = json!({"spec": {"through": [{"gateway": run, "egressIP": {"ipv4": address}}]}});
        let before = planned_egress();
        let began = Instant::now();
        policies
            .patch(&run, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .expect("patched");
        member.until(|| planned_egress() != before).await;
        times.push(began.elapsed());
    }
    times.sort();
    eprintln!(
        "change of a policy to its plan: p50 {:?}, p99 {:?}",
        times[CHANGES / 2],
        times[CHANGES - 1]
    );
    assert!(times[CHANGES / 2] < Duration::from_millis(200));

    // What the member programmed shows on the policy.
    member.programmed();
    eventually("Programmed on the policy", async || {
        let status = policies.get(&run).await.ok()?.status?;
        let done = status
            .conditions
            .iter()
            .any(|c| c.type_ == "Programmed" && c.status == "True");
        (done && status.members.as_deref() == Some("1/1")).then_some(())
    })
    .await;
    let status = members.get(&gate).await.expect("there").status.expect("a status");
    assert_eq!(status.node_count, Some(1));
    let types: Vec<_> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(
        types.len(),
        3,
        "three writers' conditions side by side: {types:?}"
    );

    // A replica goes; the other one serves and, after it, leads.
    let (leaver, stayer) = if status.connected_to.as_deref() == Some(first.name()) {
        (first, second)
    } else {
        (second, first)
    };
    let gone = leaver.name().to_owned();
    leaver.stop().await;
    eventually("the stream to the other replica", async || {
        let status = members.get(&gate).await.ok()?.status?;
        let connected = spillway_crds::condition::holds(
            &status.conditions,
            spillway_crds::condition::ConditionType::Connected,
        );
        (connected && status.connected_to? != gone).then_some(())
    })
    .await;
    let patch = json!({"spec": {"to": {"cidrs": ["192.0.2.128/25"]}}});
    policies
        .patch(&run, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .expect("patched");
    eventually("a plan from the other replica", async || {
        let planned =
            matches!(member.resource(&key), Some(Resource::Policy(p)) if p.to.cidrs == ["192.0.2.128/25"]);
        planned.then_some(())
    })
    .await;

    // Leaving deletes the member; deleting a member by hand ends its certificate.
    let guest = format!("{run}-guest");
    let invitation = token(&client, &guest, &run).await;
    let endpoints = [stayer.endpoint()];
    let identity = enroll(&endpoints, pin, &invitation, &guest)
        .await
        .expect("enrolled");
    let other = FakeMember::connect(identity, &endpoints, &guest);
    eventually("the guest's plan", async || other.resource(&key)).await;
    other.leave().await;
    assert!(members.get_opt(&guest).await.expect("an answer").is_none());
    members
        .delete(&gate, &DeleteParams::default())
        .await
        .expect("deleted");
    eventually("refusal of the certificate", async || {
        matches!(
            member.state(),
            ConnectionState::Connecting {
                reason: Some(DisconnectReason::Revoked(_) | DisconnectReason::NotAccepted(_))
            }
        )
        .then_some(())
    })
    .await;

    policies
        .delete(&run, &DeleteParams::default())
        .await
        .expect("deleted");
    eventually("identities of a gateway without policies", async || {
        let gateway = gateways.get(&run).await.ok()?;
        gateway.status?.identities.is_empty().then_some(())
    })
    .await;
    gateways
        .delete(&run, &DeleteParams::default())
        .await
        .expect("deleted");
    stayer.stop().await;
}

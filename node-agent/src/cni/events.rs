//! A pod that waits long, or is refused, says so itself: `kubectl describe pod` shows it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use spillway_cni::protocol::Attachment;

/// `reason` of the events.
const REASON: &str = "EgressNotReady";

/// Longest time that the API server may take; nobody waits for it.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Longest message; API servers take 1,024 bytes.
const MESSAGE_LIMIT: usize = 1_000;

fn event(attachment: &Attachment, node: &str, message: &str, now: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta {
            // As kubectl and kubelet name theirs: unique by the time.
            name: Some(format!("{}.{:x}", attachment.pod, now.as_nanosecond())),
            namespace: Some(attachment.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(attachment.namespace.clone()),
            name: Some(attachment.pod.clone()),
            uid: (!attachment.uid.is_empty()).then(|| attachment.uid.clone()),
            ..ObjectReference::default()
        },
        reason: Some(REASON.into()),
        message: Some(message.chars().take(MESSAGE_LIMIT).collect()),
        type_: Some("Warning".into()),
        source: Some(EventSource {
            component: Some("spillway-node-agent".into()),
            host: Some(node.into()),
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

/// Says `message` of the pod, in the background; where the API server is away nobody hears it.
pub(super) fn warn(client: &Client, attachment: &Attachment, node: &str, message: &str) {
    let event = event(attachment, node, message, Timestamp::now());
    let api: Api<Event> = Api::namespaced(client.clone(), &attachment.namespace);
    tokio::spawn(async move {
        let parameters = PostParams::default();
        let call = api.create(&parameters, &event);
        match tokio::time::timeout(CALL_LIMIT, call).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an event can't be written"),
            Err(_) => tracing::debug!("an event can't be written: no answer from the API server"),
        }
    });
}

//! A replica that died can't say that its members' streams ended; the leader does.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use spillway_crds::hub::Member;

use crate::api::{CALL_LIMIT, Failure, Guard, LINK, apply_status, within};
use crate::lease::Leadership;
use crate::mirror::Mirror;
use crate::report::LinkStatus;

/// Selects the hub's pods.
const PODS: &str = "app.kubernetes.io/name=spillway-hub";
/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(5);

/// Watches over other replicas' streams.
pub(crate) struct Presence {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) members: Mirror<Member>,
    pub(crate) leadership: Leadership,
}

impl Presence {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if self.leadership.remaining().is_none() {
                continue;
            }
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "can't tell which replicas are still there");
            }
        }
    }

    async fn look(&self) -> Result<(), Failure> {
        // First the streams, then the pods: a replica that is new in between isn't taken for dead.
        let streams: Vec<_> = self.members.objects().into_values().collect();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let params = ListParams::default().labels(PODS);
        let pods = within(CALL_LIMIT, pods.list(&params)).await?;
        let alive: BTreeSet<_> = pods
            .iter()
            .filter(|p| !on_a_lost_node(p))
            .map(ResourceExt::name_any)
            .collect();
        for member in streams {
            let mut status = LinkStatus::recorded(member.status.as_ref());
            if pods.items.is_empty() || !orphaned(&status, &alive) {
                continue;
            }
            status.connected = false;
            let gone = status.replica.as_deref().unwrap_or_default();
            status.why = format!("the hub's replica {gone} is gone");
            let limit = self.leadership.limit()?;
            let fields = status.wanted(&member, Timestamp::now());
            let api = Api::all(self.client.clone());
            match apply_status(&api, LINK, &member.metadata, Guard::Version, &fields, limit).await {
                Ok(written) => {
                    tracing::info!(
                        cluster = member.name_any(),
                        why = status.why,
                        "member disconnected"
                    );
                    self.members.written(written);
                }
                // Somebody wrote it meanwhile: perhaps it is connected again.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A lost node's pods stay for minutes. The node controller makes them unready, but only their kubelet would
/// say that their containers are.
fn on_a_lost_node(pod: &Pod) -> bool {
    let is = |kind: &str, value: &str| {
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions
            .into_iter()
            .any(|c| c.type_ == kind && c.status == value)
    };
    is("Ready", "False") && is("ContainersReady", "True")
}

/// Where no replica at all runs as a pod, the hub runs outside of a cluster and nothing can be told; the
/// caller has seen to that.
fn orphaned(status: &LinkStatus, alive: &BTreeSet<String>) -> bool {
    status.connected && !status.replica.as_ref().is_some_and(|r| alive.contains(r))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_streams_of_replicas_that_are_gone_are_orphaned() {
        let status = |connected, replica: &str| LinkStatus {
            connected,
            replica: Some(replica.into()),
            ..LinkStatus::default()
        };
        let alive = BTreeSet::from(["hub-a".to_owned()]);
        assert!(orphaned(&status(true, "hub-b"), &alive));
        assert!(!orphaned(&status(true, "hub-a"), &alive));
        assert!(!orphaned(&status(false, "hub-b"), &alive));
    }

    #[test]
    fn a_pod_whose_node_is_lost_counts_as_gone() {
        let pod = |ready: &str, containers: &str| -> Pod {
            serde_json::from_value(serde_json::json!({"status": {"conditions": [
                {"type": "Ready", "status": ready}, {"type": "ContainersReady", "status": containers},
            ]}}))
            .expect("a pod")
        };
        assert!(on_a_lost_node(&pod("False", "True")));
        assert!(!on_a_lost_node(&pod("True", "True")));
        assert!(!on_a_lost_node(&pod("False", "False")), "its kubelet says so");
        assert!(!on_a_lost_node(&Pod::default()));
    }
}

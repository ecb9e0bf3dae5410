//! Pods as the compiler wants them.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod as KubePod};
use spillway_core::node::inputs::Pod;

/// On the API server's copy of a static pod: what kubelet and the runtime call the pod's uid.
const STATIC_UID: &str = "kubernetes.io/config.mirror";

/// Reduces a pod.
pub(crate) fn reduce(pod: &KubePod) -> Pod {
    let meta = &pod.metadata;
    let status = pod.status.as_ref();
    let addresses: BTreeSet<_> = status
        .into_iter()
        .flat_map(|s| {
            let all = s.pod_ips.iter().flatten().map(|p| p.ip.as_str());
            all.chain(s.pod_ip.as_deref())
        })
        .filter_map(|ip| ip.parse().ok())
        .collect();
    Pod {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta
            .annotations
            .as_ref()
            .and_then(|a| a.get(STATIC_UID))
            .or(meta.uid.as_ref())
            .cloned()
            .unwrap_or_default(),
        labels: meta.labels.clone().unwrap_or_default(),
        addresses,
        host_network: pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false),
        finished: finished(pod),
        deleting: meta.deletion_timestamp.is_some(),
        removed: false,
        created: meta.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
    }
}

/// True where no container of the pod runs or will run again: its sandbox may be gone and its address be
/// another pod's. A status that says less than that may be older than the container it is about; while such a
/// pod is being deleted its addresses stay its own, unless another pod claims them.
fn finished(pod: &KubePod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return true;
    }
    let running = |list: &Option<Vec<ContainerStatus>>| {
        list.iter()
            .flatten()
            .any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
    };
    let terminated = |list: &Option<Vec<ContainerStatus>>| {
        list.as_ref().is_some_and(|list| {
            !list.is_empty()
                && list
                    .iter()
                    .all(|c| c.state.as_ref().is_some_and(|s| s.terminated.is_some()))
        })
    };
    pod.metadata.deletion_timestamp.is_some()
        && terminated(&status.container_statuses)
        && !running(&status.init_container_statuses)
        && !running(&status.ephemeral_container_statuses)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(deleting: bool, status: &Value) -> Pod {
        let mut meta = json!({"namespace": "payments", "name": "p", "labels": {"app": "billing"},
            "creationTimestamp": "2026-01-02T03:04:05Z"});
        if deleting {
            meta["deletionTimestamp"] = "2026-01-02T04:04:05Z".into();
        }
        let pod = json!({"metadata": meta, "spec": {"containers": []}, "status": status});
        reduce(&serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn both_addresses_are_taken_once() {
        let pod = pod(
            false,
            &json!({"phase": "Running", "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}),
        );
        assert_eq!(pod.addresses.len(), 2);
        assert_eq!(pod.created, 1_767_323_045);
        assert!(!pod.finished && !pod.deleting && !pod.host_network);
    }

    #[test]
    fn a_pod_ends_with_its_last_container() {
        let running = json!([{"name": "c", "ready": true, "image": "i", "imageID": "", "restartCount": 0,
            "state": {"running": {}}}]);
        let ended = json!([{"name": "c", "ready": false, "image": "i", "imageID": "", "restartCount": 0,
            "state": {"terminated": {"exitCode": 0}}}]);
        assert!(!pod(true, &json!({"phase": "Running", "containerStatuses": running})).finished);
        assert!(pod(true, &json!({"phase": "Running", "containerStatuses": ended})).finished);
        assert!(
            !pod(false, &json!({"phase": "Running", "containerStatuses": ended})).finished,
            "will restart"
        );
        assert!(
            !pod(true, &json!({"phase": "Pending"})).finished,
            "may be older than its containers"
        );
        assert!(pod(false, &json!({"phase": "Failed"})).finished);
        assert!(!pod(false, &json!({"phase": "Pending"})).finished);
    }
}

//! Why a workload's pods don't run.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::api::{Api, ListParams};
use spillway_crds::NAMESPACE;

use crate::cluster::{Cluster, reference};
use crate::failure::{Exit, Failure};

/// Events live for an hour; older ones than this may speak of what has been mended.
const RECENT: SignedDuration = SignedDuration::from_secs(60);

/// What keeps pods from running.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trouble {
    /// The pod, or the workload whose pods aren't even made.
    pub object: String,
    /// The reason as Kubernetes names it.
    pub reason: String,
    /// Kubernetes' message.
    pub message: String,
}

impl Trouble {
    /// True where waiting doesn't help.
    pub fn is_final(&self) -> bool {
        self.reason != "Unschedulable"
    }

    /// As a failure, with what to do.
    pub fn failure(&self) -> Failure {
        let failure = Failure::new(
            Exit::PodsNotStarting,
            format!(
                "{} doesn't start ({}): {}",
                self.object, self.reason, self.message
            ),
        );
        match self.reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" => failure
                .fix("check that the nodes can pull the image; name another place with --image-registry and --image-tag")
                .fix("for a registry that asks for credentials install the chart with imagePullSecrets"),
            "ErrImageNeverPull" => failure
                .fix("load the image onto every node, or let it be pulled: --set image.pullPolicy=IfNotPresent"),
            "CrashLoopBackOff" | "RunContainerError" | "StartError" => failure.fix(format!(
                "see its last words: kubectl logs -n {} {} --previous",
                spillway_crds::NAMESPACE,
                self.object.rsplit(' ').next().unwrap_or_default()
            )),
            "CreateContainerConfigError" | "CreateContainerError" => {
                failure.fix("the node refuses the pod's settings; its kubelet's log says which")
            }
            "Unschedulable" => failure.fix("make room or a matching node, or set tolerations with the chart"),
            "FailedCreate" => failure
                .fix("if Pod Security refuses it: kubectl label namespace spillway-system pod-security.kubernetes.io/enforce=privileged --overwrite")
                .fix("if a quota refuses it: raise the quota of the namespace spillway-system"),
            _ => failure,
        }
    }
}

/// What keeps the pods of the workload `app` (label `app.kubernetes.io/name`) from running, if anything.
/// One crash is not yet trouble: an agent may start before what it needs.
pub async fn trouble(cluster: &Cluster, app: &str) -> Result<Option<Trouble>, Failure> {
    let api: Api<Pod> = cluster.ours();
    let selector = format!("app.kubernetes.io/name={app}");
    let pods = api
        .list(&ListParams::default().labels(&selector))
        .await
        .map_err(|err| Failure::kube("listing pods", &err))?;
    let image = template_image(cluster, app).await?;
    let current: Vec<&Pod> = pods
        .items
        .iter()
        .filter(|pod| is_current(pod, image.as_deref()))
        .collect();
    if let Some(found) = current.iter().find_map(|pod| of_pod(pod)) {
        return Ok(Some(found));
    }
    if current.is_empty() {
        return refused(cluster, app).await;
    }
    Ok(None)
}

/// The image that the workload named `app` asks for now.
async fn template_image(cluster: &Cluster, app: &str) -> Result<Option<String>, Failure> {
    let kind = if app == "spillway-node-agent" {
        "DaemonSet"
    } else {
        "Deployment"
    };
    let workload = reference("apps/v1", kind, Some(NAMESPACE), app);
    let found = cluster.get(cluster.api(&workload), app, kind).await?;
    Ok(found.and_then(|object| {
        let image = object.data.pointer("/spec/template/spec/containers/0/image")?;
        Some(image.as_str()?.to_owned())
    }))
}

/// Neither on its way out nor left over from the image before: its trouble may be what was just mended.
fn is_current(pod: &Pod, image: Option<&str>) -> bool {
    let own = pod
        .spec
        .as_ref()
        .and_then(|s| s.containers.first())
        .and_then(|c| c.image.as_deref());
    pod.metadata.deletion_timestamp.is_none() && (image.is_none() || own == image)
}

/// The event by which a controller says that its pods are refused.
async fn refused(cluster: &Cluster, app: &str) -> Result<Option<Trouble>, Failure> {
    let api: Api<Event> = cluster.ours();
    let events = api
        .list(&ListParams::default().fields("reason=FailedCreate"))
        .await
        .map_err(|err| Failure::kube("listing events", &err))?;
    let about = |e: &&Event| {
        let named = e
            .involved_object
            .name
            .as_deref()
            .is_some_and(|n| n.starts_with(app));
        let last = e
            .last_timestamp
            .as_ref()
            .map(|t| t.0)
            .or(e.event_time.as_ref().map(|t| t.0));
        named && last.is_none_or(|at| Timestamp::now().duration_since(at) < RECENT)
    };
    Ok(events.items.iter().rev().find(about).map(|event| Trouble {
        object: format!(
            "{} {}",
            event.involved_object.kind.clone().unwrap_or_default(),
            event.involved_object.name.clone().unwrap_or_default()
        ),
        reason: "FailedCreate".into(),
        message: event.message.clone().unwrap_or_default(),
    }))
}

/// What keeps one pod from running.
pub fn of_pod(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let on = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let object = match on {
        Some(node) => format!("on node {node}, pod {name}"),
        None => format!("pod {name}"),
    };
    let unschedulable = status.conditions.iter().flatten().find(|c| {
        c.type_ == "PodScheduled" && c.status == "False" && c.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unschedulable {
        return Some(Trouble {
            object,
            reason: "Unschedulable".into(),
            message: condition.message.clone().unwrap_or_default(),
        });
    }
    status.container_statuses.iter().flatten().find_map(|container| {
        let (reason, message) = of_container(container)?;
        Some(Trouble {
            object: object.clone(),
            reason,
            message,
        })
    })
}

fn of_container(container: &ContainerStatus) -> Option<(String, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone().unwrap_or_default();
    let last_words = container
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref())
        .map(|t| {
            let message = t.message.clone().unwrap_or_default();
            format!("exit code {} {}", t.exit_code, message.trim())
                .trim_end()
                .to_owned()
        });
    let bad = match reason.as_str() {
        "ContainerCreating" | "PodInitializing" | "" => false,
        "CrashLoopBackOff" => container.restart_count >= 2,
        _ => true,
    };
    bad.then(|| {
        (
            reason,
            last_words.or_else(|| waiting.message.clone()).unwrap_or_default(),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "callers build the value in place")]
    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "spillway-node-agent-x"},
            "spec": {"nodeName": "n1", "containers": []},
            "status": status,
        }))
        .expect("a pod")
    }

    fn waiting(reason: &str, restarts: i32) -> Pod {
        pod(json!({"containerStatuses": [{
            "name": "a", "image": "a", "imageID": "", "ready": false, "restartCount": restarts,
            "state": {"waiting": {"reason": reason, "message": "why"}},
        }]}))
    }

    #[test]
    fn a_pod_that_starts_is_no_trouble() {
        assert_eq!(of_pod(&waiting("ContainerCreating", 0)), None);
        assert_eq!(
            of_pod(&waiting("CrashLoopBackOff", 1)),
            None,
            "one crash may be bad timing"
        );
        assert_eq!(of_pod(&pod(json!({"phase": "Running"}))), None);
    }

    #[test]
    fn pods_of_the_image_before_are_not_blamed() {
        let pod = |more: serde_json::Value| -> Pod {
            let mut value =
                json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "hub:2"}]}});
            if !more.is_null() {
                value["metadata"]["deletionTimestamp"] = more;
            }
            serde_json::from_value(value).expect("a pod")
        };
        assert!(is_current(&pod(json!(null)), Some("hub:2")));
        assert!(!is_current(&pod(json!(null)), Some("hub:3")));
        assert!(!is_current(&pod(json!("2026-01-01T00:00:00Z")), Some("hub:2")));
    }

    #[test]
    fn trouble_names_the_pod_the_node_and_the_fix() {
        for (reason, fix) in [
            ("ImagePullBackOff", "--image-registry"),
            ("ErrImageNeverPull", "image.pullPolicy"),
            (
                "CrashLoopBackOff",
                "kubectl logs -n spillway-system spillway-node-agent-x --previous",
            ),
        ] {
            let failure = of_pod(&waiting(reason, 3)).expect(reason).failure();
            assert_eq!(failure.exit, Exit::PodsNotStarting);
            assert!(
                failure.what.contains("node n1") && failure.fix.join("\n").contains(fix),
                "{failure}"
            );
        }
    }

    #[test]
    fn no_room_may_pass() {
        let found = of_pod(&pod(json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes",
        }]})));
        assert!(!found.expect("trouble").is_final());
    }
}

//! Whose sandbox it is: the pod with its labels, from the watch's copy or, where that hasn't shown it yet, from
//! the API server.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::{Api, Client};
use spillway_cni::protocol::Attachment;
use spillway_core::node::inputs::Pod;

use crate::cluster::Cluster;
use crate::pods;

/// Longest time that the API server may take.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// What is known of a pod.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// It is this one.
    Pod(Pod),
    /// The API server has none of that name, or another one.
    Gone,
    /// The API server doesn't say.
    Unknown(String),
}

/// Where pods are looked up.
pub(super) struct Lookup {
    pub(super) cluster: Cluster,
    pub(super) client: Client,
}

fn is(pod: &Pod, attachment: &Attachment) -> bool {
    attachment.uid.is_empty() || pod.uid == attachment.uid
}

impl Lookup {
    /// From the watch's copy.
    pub(super) fn seen(&self, attachment: &Attachment) -> Option<Pod> {
        self.cluster
            .pod(&attachment.namespace, &attachment.pod)
            .filter(|pod| is(pod, attachment))
    }

    /// From the watch's copy, else from the API server.
    pub(super) async fn find(&self, attachment: &Attachment) -> Found {
        if let Some(pod) = self.seen(attachment) {
            return Found::Pod(pod);
        }
        let pods: Api<KubePod> = Api::namespaced(self.client.clone(), &attachment.namespace);
        match tokio::time::timeout(CALL_LIMIT, pods.get_opt(&attachment.pod)).await {
            Ok(Ok(Some(pod))) => {
                let pod = pods::reduce(&pod);
                if is(&pod, attachment) {
                    Found::Pod(pod)
                } else {
                    Found::Gone
                }
            }
            Ok(Ok(None)) => Found::Gone,
            Ok(Err(error)) => Found::Unknown(error.to_string()),
            Err(_) => Found::Unknown(format!("no answer within {CALL_LIMIT:?}")),
        }
    }
}

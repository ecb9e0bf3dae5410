//! `spillway failover drain` and `undrain`: a label on the Kubernetes node, and waiting until it has had its effect.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use spillway_crds::member::EgressNode;
use tokio::time::Instant;

use crate::args::{FailoverDrain, FailoverUndrain, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::ui::Ui;
use crate::{FIELD_MANAGER, wait};

/// A node with this label holds no egress IP while another can.
const CORDON_LABEL: &str = "spillway.io/cordon";

/// From the moment at which the node has given its last address away until all pods' nodes have heard of it: they
/// probe ten times a second.
const HEARD: Duration = Duration::from_secs(1);

/// Moves everything away from a node.
pub async fn drain(target: &Target, drain: &FailoverDrain, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let name = drain.node.as_str();
    let nodes: Api<EgressNode> = Api::all(cluster.client.clone());
    // Before anything is changed: a wrong name, or another cluster than was meant.
    egress_node(&cluster, &nodes, name).await?;
    label(&cluster, name, Some("true")).await?;
    ui.say(format!("node {name} is cordoned for egress"));
    let deadline = Instant::now() + drain.timeout;
    let mut left = Vec::new();
    let empty = async || {
        let node = egress_node(&cluster, &nodes, name).await?;
        left = node
            .status
            .unwrap_or_default()
            .held
            .into_iter()
            .map(|h| h.address)
            .collect();
        Ok(left.is_empty().then_some(()))
    };
    let waited = wait::until(deadline, empty, || Failure::new(Exit::TimedOut, String::new())).await;
    match waited {
        Ok(()) => {
            tokio::time::sleep(HEARD).await;
            ui.say(format!("node {name} answers for no egress IP, and no pod's traffic goes through it"));
            Ok(())
        }
        Err(failure) if failure.exit == Exit::TimedOut => Err(Failure::new(
            Exit::TimedOut,
            format!("node {name} still answers for {}", left.join(", ")),
        )
        .fix("see whether another node of the gateway is ready: spillway failover status, in the hub's cluster")
        .fix("see whether this member is connected to the hub, which has to tell everybody: spillway status")
        .fix(format!(
            "the node stays cordoned, and gives them away as soon as another can take them; to take that back: spillway failover undrain {name}"
        ))),
        Err(failure) => Err(failure),
    }
}

/// Lets a node take its place again.
pub async fn undrain(target: &Target, undrain: &FailoverUndrain, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    label(&cluster, &undrain.node, None).await?;
    ui.say(format!("node {} takes part in its gateways again", undrain.node));
    Ok(())
}

async fn egress_node(cluster: &Cluster, nodes: &Api<EgressNode>, name: &str) -> Result<EgressNode, Failure> {
    cluster
        .get(nodes.clone(), name, "EgressNode")
        .await?
        .ok_or_else(|| {
            Failure::new(
                Exit::NotFound,
                format!("{} has no node {name} in a federation", cluster.name),
            )
            .fix("name the cluster that the node is in with --kubeconfig or --context; kubectl get egressnodes lists its nodes")
        })
}

async fn label(cluster: &Cluster, name: &str, value: Option<&str>) -> Result<(), Failure> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let patch = json!({"metadata": {"labels": {CORDON_LABEL: value}}});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    match nodes.patch_metadata(name, &params, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(Failure::new(
            Exit::NotFound,
            format!("{} has no node {name}", cluster.name),
        )
        .fix("kubectl get nodes lists them")),
        Err(err) => Err(Failure::kube(&format!("labelling node {name}"), &err)),
    }
}

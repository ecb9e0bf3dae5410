//! A new node.

use anyhow::{Result, ensure};
use serde_json::json;
use spillway_crds::STARTUP_TAINT;
use spillway_e2e::federation::{Federation, OUTSIDE};

use super::CROWD;

const EIP: &str = "203.0.113.15";
const NODE: &str = "b-n1";
const TAG: &str = "first-on-a-new-node";

/// A node registers with the startup taint while it has no agent: no pod is scheduled there. Once its agent holds pods
/// the taint goes, and they come.
///
/// Without the taint they start at once. (That the plugin is there already, of the node's life before, doesn't matter.)
pub(crate) async fn a_new_node_gets_no_pod_before_its_agent(fed: &Federation) -> Result<()> {
    let story = fed.story("newnode").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    story.programmed("bank").await?;
    let cluster = fed.member_of(NODE)?;
    let mark = fed.outside_mark()?;
    let down = fed.keep_node_agents_down(&[NODE]).await?;
    let before = async {
        fed.register_anew(NODE).await?;
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "first", "namespace": story.namespace(), "labels": {"app": "billing"}},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": NODE},
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "probe",
                    "image": spillway_e2e::image::PROBE,
                    "imagePullPolicy": "Never",
                    "command": ["probe", "watch", "udp", OUTSIDE, "--interval", "20ms", "--tag", TAG],
                }],
            },
        });
        cluster
            .kubectl_with_input(&["apply", "-f", "-"], &pod.to_string())
            .await?;
        let scheduled = [
            "-n",
            story.namespace(),
            "get",
            "pod",
            "first",
            "-o",
            r#"jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}"#,
        ];
        spillway_e2e::eventually(CROWD, "the scheduler keeps the pod for the taint", || async {
            let message = cluster.kubectl(&scheduled).await?;
            // It says no more which taint it is.
            ensure!(message.contains("had untolerated taint"), "{message:?}");
            Ok(())
        })
        .await
    };
    let before = before.await;
    let taints = fed.taints(NODE).await;
    down.release().await?;
    before?;
    let taints = taints?;
    ensure!(taints.contains(STARTUP_TAINT), "{taints:?}");
    spillway_e2e::eventually(CROWD, "the taint goes and the pod sends", || async {
        let taints = fed.taints(NODE).await?;
        ensure!(!taints.contains(STARTUP_TAINT), "{taints}");
        let sources = fed.outside_sources_since(mark, TAG)?;
        ensure!(sources == [EIP], "{sources:?}");
        Ok(())
    })
    .await?;
    let sources = fed.outside_sources_since(mark, TAG)?;
    ensure!(sources == [EIP], "{sources:?}");
    story.end().await
}

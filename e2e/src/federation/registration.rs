//! A node that registers with its cluster anew, as a machine does that was set up again under its old name.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use spillway_crds::STARTUP_TAINT;

use super::{Federation, PATIENCE};
use crate::scenario::eventually;

const KUBELET: &str = "/etc/kubernetes/kubelet.yaml";

impl Federation {
    /// Deletes the `Node` object and has the node's kubelet register it again, with the startup taint. Returns once it is
    /// Ready.
    pub async fn register_anew(&self, node: &str) -> Result<()> {
        let cluster = self.member_of(node)?;
        let before: Value =
            serde_json::from_str(&cluster.kubectl(&["get", "node", node, "-o", "json"]).await?)?;
        let taint = json!([{"key": STARTUP_TAINT, "effect": "NoSchedule"}]);
        let machine = self.node(node)?;
        let with_taint = format!("sed -i '0,/{{/s|{{|{{\"registerWithTaints\": {taint},|' {KUBELET}");
        machine.exec(&["sh", "-c", &with_taint]).await?.success()?;
        cluster.kubectl(&["delete", "node", node]).await?;
        machine.kill("kubelet")?;
        let after = eventually(PATIENCE, &format!("{node} registers with its taint"), || async {
            let text = cluster.kubectl(&["get", "node", node, "-o", "json"]).await?;
            let after: Value = serde_json::from_str(&text)?;
            ensure!(
                after["metadata"]["uid"] != before["metadata"]["uid"],
                "it is still the old one"
            );
            Ok(after)
        })
        .await?;
        // For the next time that it starts.
        let without = format!("sed -i 's/\"registerWithTaints\": [^]]*],//' {KUBELET}");
        machine.exec(&["sh", "-c", &without]).await?.success()?;
        ensure!(
            after["spec"]["taints"].to_string().contains(STARTUP_TAINT),
            "it registered without the taint: {}",
            after["spec"]
        );
        let furniture = json!({
            "metadata": {"labels": before["metadata"]["labels"]},
            "spec": {"podCIDR": before["spec"]["podCIDR"], "podCIDRs": before["spec"]["podCIDRs"]},
        });
        cluster
            .kubectl(&[
                "patch",
                "node",
                node,
                "--type",
                "merge",
                "-p",
                &furniture.to_string(),
            ])
            .await?;
        let ready = format!("node/{node}");
        cluster
            .kubectl(&["wait", "--for=condition=Ready", &ready, "--timeout=60s"])
            .await
            .map(drop)
    }

    /// Keys of a node's taints.
    pub async fn taints(&self, node: &str) -> Result<String> {
        let keys = "jsonpath={.spec.taints[*].key}";
        self.member_of(node)?
            .kubectl(&["get", "node", node, "-o", keys])
            .await
    }
}

//! The CNI plugin on the nodes, and node agents that are kept from running.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use spillway_crds::NAMESPACE;

use super::{Federation, PATIENCE};
use crate::scenario::eventually;

const NODE_AGENT: &str = "spillway-node-agent";
const PLUGIN: &str = "spillway-cni";

/// Prints the chain that the runtime uses.
const CHAIN: &str = "cat \"$(ls /etc/cni/net.d/*.conf* | head -1)\"";

/// Prints what there is of the plugin on a node.
pub(super) const PLUGIN_TRACE: &str = "grep -l spillway-cni /etc/cni/net.d/* 2>/dev/null; \
    ls /opt/cni/bin/spillway-cni /var/lib/spillway/* /run/spillway/* 2>/dev/null; \
    nft list tables | grep spillway; true";

/// Nodes without an agent, until they are let have one.
pub struct Down<'a> {
    federation: &'a Federation,
    nodes: Vec<String>,
}

impl Federation {
    /// Takes the agents of some nodes of one member away, and keeps them from coming back, also when the node is
    /// switched off and on. To be ended by [`Down::release`] whatever happened meanwhile.
    pub async fn keep_node_agents_down(&self, nodes: &[&str]) -> Result<Down<'_>> {
        let cluster = self.member_of(nodes.first().context("no node")?)?;
        let not_there = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": nodes}]}]}}});
        // The other nodes' agents are left as they are.
        let patch = json!({"spec": {
            "updateStrategy": {"type": "OnDelete", "rollingUpdate": null},
            "template": {"spec": {"affinity": not_there}},
        }});
        cluster
            .kubectl(&[
                "-n",
                NAMESPACE,
                "patch",
                "daemonset",
                NODE_AGENT,
                "-p",
                &patch.to_string(),
            ])
            .await?;
        for node in nodes {
            let machine = self.node(node)?;
            eventually(PATIENCE, &format!("no agent is left on {node}"), || async {
                // Sooner than its end by the DaemonSet's controller.
                _ = machine.kill(NODE_AGENT);
                let pods = self.agent_pods(node).await?;
                ensure!(pods.trim().is_empty(), "{pods}");
                Ok(())
            })
            .await?;
        }
        Ok(Down {
            federation: self,
            nodes: nodes.iter().map(|n| (*n).to_owned()).collect(),
        })
    }

    /// The agent's pods on a node: a line each, with the time at which it is to be deleted and whether it is ready.
    async fn agent_pods(&self, node: &str) -> Result<String> {
        let field = format!("spec.nodeName={node}");
        let path = r#"jsonpath={range .items[*]}{.metadata.name}{.metadata.deletionTimestamp} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}"#;
        let label = format!("app.kubernetes.io/name={NODE_AGENT}");
        self.member_of(node)?
            .kubectl(&[
                "-n",
                NAMESPACE,
                "get",
                "pod",
                "-l",
                &label,
                "--field-selector",
                &field,
                "-o",
                path,
            ])
            .await
    }

    async fn node_agent_ready(&self, node: &str, but_not: &str) -> Result<()> {
        eventually(PATIENCE, &format!("an agent on {node} is ready"), || async {
            let pods = self.agent_pods(node).await?;
            let ready = |l: &str| l.ends_with(" True") && (but_not.is_empty() || !l.starts_with(but_not));
            ensure!(pods.lines().any(ready), "{pods:?}");
            Ok(())
        })
        .await
    }

    /// Replaces a node's agent by a fresh pod, which kubelet starts without any pause, and waits until it is ready.
    pub async fn replace_node_agent(&self, node: &str) -> Result<()> {
        let pods = self.agent_pods(node).await?;
        let name = pods.split_whitespace().next().context("there is no agent")?;
        let delete = [
            "-n",
            NAMESPACE,
            "delete",
            "pod",
            name,
            "--grace-period=0",
            "--force",
            "--wait=false",
        ];
        self.member_of(node)?.kubectl(&delete).await?;
        self.node_agent_ready(node, name).await
    }

    /// The chain of plugins that a node's runtime uses, as text.
    pub async fn cni_chain(&self, node: &str) -> Result<String> {
        let output = self.node(node)?.exec(&["sh", "-c", CHAIN]).await?;
        output.success()
    }

    /// Waits until a node's pods pass our plugin.
    pub async fn cni_chained(&self, node: &str) -> Result<()> {
        eventually(PATIENCE, &format!("the plugin is in {node}'s chain"), || async {
            let chain = self.cni_chain(node).await?;
            ensure!(chain.contains(PLUGIN), "{chain}");
            Ok(())
        })
        .await
    }

    /// Waits until a node's agent says how it keeps first packets in; gives what else it says.
    pub async fn first_packets_become(&self, node: &str, wanted: &str) -> Result<String> {
        let what = format!("first packets on {node} are kept by {wanted}");
        let path = r#"jsonpath={.status.firstPackets} {.status.conditions[?(@.type=="Programmed")].message}"#;
        let cluster = self.member_of(node)?;
        eventually(PATIENCE, &what, || async {
            let said = cluster.kubectl(&["get", "egressnode", node, "-o", path]).await?;
            let (how, message) = said.split_once(' ').with_context(|| said.clone())?;
            ensure!(how == wanted, "{said}");
            Ok(message.to_owned())
        })
        .await
    }

    /// What a node's guard has dropped so far; none where there is no guard.
    pub async fn dropped_by_the_guard(&self, node: &str) -> Result<Option<u64>> {
        let list = ["nft", "list", "chain", "inet", "spillway", "unknown"];
        let output = self.node(node)?.exec(&list).await?;
        if output.code != 0 {
            return Ok(None);
        }
        let words: Vec<&str> = output.stdout.split_whitespace().collect();
        let counts = words.windows(2).filter(|pair| pair[0] == "packets");
        Ok(Some(counts.filter_map(|pair| pair[1].parse::<u64>().ok()).sum()))
    }

    /// Waits until a node has its guard, or none.
    pub async fn guarded(&self, node: &str, wanted: bool) -> Result<()> {
        let what = format!("{node} has {} guard", if wanted { "its" } else { "no" });
        eventually(PATIENCE, &what, || async {
            let guarded = self.dropped_by_the_guard(node).await?.is_some();
            ensure!(guarded == wanted, "it hasn't come to that");
            Ok(())
        })
        .await
    }

    /// Runs a command that rewrites a node's CNI configuration, as the CNI's own agent would; gives how long it took
    /// until our plugin was the last of the chain again.
    pub async fn cni_rewritten(&self, node: &str, command: &str) -> Result<Duration> {
        // On the node, so that no exec lies between the two.
        let script = format!(
            "{command}; begin=$(date +%s%N); for i in $(seq 2000); do f=$(ls /etc/cni/net.d/*.conf* | head -1); \
             if grep -q spillway-cni \"$f\"; then echo $(($(date +%s%N) - begin)); exit 0; fi; done; \
             cat /etc/cni/net.d/*; exit 1"
        );
        let said = self.node(node)?.exec(&["sh", "-c", &script]).await?.success()?;
        Ok(Duration::from_nanos(
            said.trim().parse().with_context(|| said.clone())?,
        ))
    }

    /// Waits until no sandbox on the node has the address, and makes it the next one that the CNI gives out.
    pub async fn next_free(&self, node: &str, address: IpAddr) -> Result<()> {
        let path = format!("/var/lib/cni/networks/arena/{address}");
        eventually(PATIENCE, &format!("{address} is free on {node}"), || async {
            let there = self.node(node)?.exec(&["test", "-e", &path]).await?.code == 0;
            ensure!(!there, "it is reserved");
            Ok(())
        })
        .await?;
        let IpAddr::V4(v4) = address else {
            anyhow::bail!("only IPv4 addresses are looked for")
        };
        // host-local goes round from the one that it gave out last, and reads that without any newline.
        let before = std::net::Ipv4Addr::from(u32::from(v4) - 1);
        let write = format!("printf %s {before} > /var/lib/cni/networks/arena/last_reserved_ip.0");
        self.node(node)?
            .exec(&["sh", "-c", &write])
            .await?
            .success()
            .map(drop)
    }
}

impl Down<'_> {
    /// Lets them run again, and waits until they do.
    pub async fn release(self) -> Result<()> {
        let cluster = self.federation.member_of(&self.nodes[0])?;
        let patch = json!({"spec": {
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%"}},
            "template": {"spec": {"affinity": null}},
        }});
        cluster
            .kubectl(&[
                "-n",
                NAMESPACE,
                "patch",
                "daemonset",
                NODE_AGENT,
                "-p",
                &patch.to_string(),
            ])
            .await?;
        for node in &self.nodes {
            self.federation.node_agent_ready(node, "").await?;
        }
        Ok(())
    }
}

//! Daemons that are stopped, killed and started again.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use spillway_crds::NAMESPACE;

use super::hub::condition;
use super::{Federation, PATIENCE};
use crate::scenario::{Node, eventually};

const NODE_AGENT: &str = "spillway-node-agent";
const MEMBER_AGENT: &str = "spillway-member-agent";

/// A node agent that is stopped (SIGSTOP) until it is thawed, or until this value is dropped.
pub struct Frozen {
    node: Node,
}

impl Frozen {
    /// Lets it run again.
    pub fn thaw(self) -> Result<()> {
        self.node.signal(NODE_AGENT, Signal::SIGCONT)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // A second SIGCONT does nothing.
        let _gone_with_its_node = self.node.signal(NODE_AGENT, Signal::SIGCONT);
    }
}

impl Federation {
    /// Stops a node's agent without ending it.
    pub fn freeze_node_agent(&self, node: &str) -> Result<Frozen> {
        let node = self.node(node)?;
        node.signal(NODE_AGENT, Signal::SIGSTOP)?;
        Ok(Frozen { node })
    }

    /// Kills a node's agent and waits until its successor is ready.
    pub async fn restart_node_agent(&self, node: &str) -> Result<()> {
        let before = self.agent_restarts(node, NODE_AGENT).await?;
        self.node(node)?.kill(NODE_AGENT)?;
        self.restarted(node, NODE_AGENT, &before).await
    }

    /// Replaces all node agents of a member one after the other, as an upgrade does; returns when the last is ready.
    pub async fn roll_node_agents(&self, member: &str) -> Result<()> {
        let cluster = self.cluster(member)?;
        let daemonset = format!("daemonset/{NODE_AGENT}");
        for step in [&["restart"][..], &["status", "--timeout=90s"]] {
            let head = ["-n", NAMESPACE, "rollout", step[0], daemonset.as_str()];
            let line: Vec<&str> = head.into_iter().chain(step[1..].iter().copied()).collect();
            cluster.kubectl(&line).await?;
        }
        Ok(())
    }

    /// Kills a member's agent and waits until its successor is ready.
    pub async fn restart_member_agent(&self, member: &str) -> Result<()> {
        let cluster = self.cluster(member)?;
        let pods = cluster
            .kubectl(&[
                "-n",
                NAMESPACE,
                "get",
                "pods",
                "-l",
                "app.kubernetes.io/name=spillway-member-agent",
                "-o",
                "jsonpath={.items[*].spec.nodeName}",
            ])
            .await?;
        let node = pods
            .split_whitespace()
            .next()
            .context("the member agent is on no node")?
            .to_owned();
        let before = self.agent_restarts(&node, MEMBER_AGENT).await?;
        self.node(&node)?.kill(MEMBER_AGENT)?;
        self.restarted(&node, MEMBER_AGENT, &before).await
    }

    /// (pod, restarts, ready) of a daemon on a node.
    async fn agent_restarts(&self, node: &str, name: &str) -> Result<(String, u64, bool)> {
        let cluster = self.member_of(node)?;
        let selector = format!("app.kubernetes.io/name={name}");
        let field = format!("spec.nodeName={node}");
        let text = cluster
            .kubectl(&[
                "-n",
                NAMESPACE,
                "get",
                "pods",
                "-l",
                &selector,
                "--field-selector",
                &field,
                "-o",
                "json",
            ])
            .await?;
        let pods: serde_json::Value = serde_json::from_str(&text)?;
        let pod = &pods["items"][0];
        let name = pod["metadata"]["name"]
            .as_str()
            .with_context(|| format!("no {name} on {node}"))?;
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"]
            .as_u64()
            .unwrap_or(0);
        Ok((
            name.to_owned(),
            restarts,
            condition(pod, "Ready").is_some_and(|c| c.0 == "True"),
        ))
    }

    async fn restarted(&self, node: &str, name: &str, before: &(String, u64, bool)) -> Result<()> {
        eventually(PATIENCE * 3, &format!("{name} on {node} runs again"), || async {
            let now = self.agent_restarts(node, name).await?;
            ensure!(
                (&now.0, now.1) != (&before.0, before.1),
                "it hasn't restarted yet"
            );
            ensure!(now.2, "it isn't ready");
            Ok(())
        })
        .await
    }

    /// Power off, power on, and everything on the node ready again.
    pub async fn reboot(&self, node: &str) -> Result<()> {
        let outage = self.power_outage(node).await?;
        outage.begin().await?;
        outage.end().await
    }

    /// A power outage of a node that is to begin.
    pub async fn power_outage(&self, node: &str) -> Result<Outage<'_>> {
        Ok(Outage {
            federation: self,
            node: self.node(node)?,
            before: self.agent_restarts(node, NODE_AGENT).await?,
        })
    }
}

/// A node's power outage.
pub struct Outage<'a> {
    federation: &'a Federation,
    node: Node,
    before: (String, u64, bool),
}

impl Outage<'_> {
    /// Cuts the power.
    pub async fn begin(&self) -> Result<()> {
        self.node.power_off().await
    }

    /// Gives it back, and waits until the node's agent is ready.
    pub async fn end(&self) -> Result<()> {
        self.node.power_on().await?;
        self.over().await
    }

    /// Waits until the node's agent is ready again, whoever switched the node on.
    pub async fn over(&self) -> Result<()> {
        self.federation
            .restarted(self.node.name(), NODE_AGENT, &self.before)
            .await
    }
}

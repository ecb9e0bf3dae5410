//! Processes and nodes die and come back.

use anyhow::Result;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE};

/// Every daemon is killed in turn while a pod sends; nothing is ever seen from another address.
pub(crate) async fn each_daemon_killed_and_restarted(fed: &Federation) -> Result<()> {
    let story = fed.story("kills").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.16",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.16")).await?;
    story.programmed("bank").await?;
    let watch = pod.watch(OUTSIDE)?;

    fed.restart_node_agent(pod.node()).await?;
    fed.restart_node_agent("a-n2").await?;
    fed.restart_member_agent("a").await?;
    fed.restart_member_agent("b").await?;
    let leader = fed.hub_leader().await?;
    fed.kill_hub_replica(&leader).await?;

    fed.connected("a").await?;
    fed.connected("b").await?;
    watch.only_ever_from("203.0.113.16")?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.17",
        )
        .await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.17")).await?;
    story.end().await
}

/// A node that comes back from a reboot has an empty kernel; its agent fills it before pods rely on it.
pub(crate) async fn a_source_node_and_the_gateway_rebooted(fed: &Federation) -> Result<()> {
    let story = fed.story("reboot").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.16",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.16")).await?;
    let node = pod.node().to_owned();

    fed.reboot(&node).await?;
    let pod = story.pod_on("b", "after", "app=billing", &node).await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.16")).await?;

    fed.reboot("a-n2").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.16")).await?;
    story.end().await
}

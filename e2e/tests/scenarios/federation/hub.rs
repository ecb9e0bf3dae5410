//! The hub is away, or half of it.

use anyhow::Result;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE};

/// The hub is scaled to nothing; pods come, go and change on the nodes in use, and agents restart.
pub(crate) async fn pods_come_and_go_while_the_hub_is_down(fed: &Federation) -> Result<()> {
    let story = fed.story("hub-down").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.14",
        )
        .await?;
    let before = story.pod("b", "before", "app=billing").await?;
    before.leaves_from(OUTSIDE, Egress::Ip("203.0.113.14")).await?;
    story.programmed("bank").await?;

    fed.scale_hub(0).await?;
    before.leaves_from(OUTSIDE, Egress::Ip("203.0.113.14")).await?;
    for member in ["a", "b"] {
        let during = story.pod(member, "during", "app=billing").await?;
        during.leaves_from(OUTSIDE, Egress::Ip("203.0.113.14")).await?;
    }
    before.label("app=other").await?;
    before.leaves_from(OUTSIDE, Egress::Node).await?;
    fed.restart_member_agent("b").await?;
    fed.restart_node_agent(before.node()).await?;
    let after = story.pod("b", "after-restart", "app=billing").await?;
    after.leaves_from(OUTSIDE, Egress::Ip("203.0.113.14")).await?;

    fed.scale_hub(2).await?;
    fed.connected("a").await?;
    fed.connected("b").await?;
    after.leaves_from(OUTSIDE, Egress::Ip("203.0.113.14")).await?;
    // The plan moves again.
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.15",
        )
        .await?;
    after.leaves_from(OUTSIDE, Egress::Ip("203.0.113.15")).await?;
    story.end().await
}

/// The Lease holder is killed; the other replica takes over and allocations stay what they were.
pub(crate) async fn the_leader_dies_and_the_other_replica_carries_on(fed: &Federation) -> Result<()> {
    let story = fed.story("lease").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.14",
        )
        .await?;
    let pod = story.pod("a", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.14")).await?;
    let before = fed.allocations().await?;
    let first = fed.hub_leader().await?;
    fed.kill_hub_replica(&first).await?;
    fed.hub_leader_other_than(&first).await?;
    anyhow::ensure!(
        fed.allocations().await? == before,
        "allocations moved with the Lease"
    );
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.15",
        )
        .await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.15")).await?;
    story.programmed("bank").await?;
    story.end().await
}

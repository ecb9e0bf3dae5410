//! Pods come, change and go; so do policies.

use anyhow::{Result, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, OUTSIDE_OTHER};

/// A pod is taken when its labels say so, and let go when they no longer do.
pub(crate) async fn added_relabelled_deleted(fed: &Federation) -> Result<()> {
    let story = fed.story("relabel").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.11",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.11")).await?;
    pod.label("app=reports").await?;
    pod.leaves_from(OUTSIDE, Egress::Node).await?;
    pod.label("app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.11")).await?;
    let address = pod.ip().to_string();
    let node = pod.node().to_owned();
    pod.delete().await?;
    fed.gone_from_kernel(&node, &address).await?;
    story.end().await
}

/// A pod that gets the address of a selected one that is gone leaves as if that had never been.
pub(crate) async fn an_address_reused_by_an_unselected_pod(fed: &Federation) -> Result<()> {
    let story = fed.story("reuse").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.11",
        )
        .await?;
    let first = story.pod("a", "billing", "app=billing").await?;
    first.leaves_from(OUTSIDE, Egress::Ip("203.0.113.11")).await?;
    let (address, node) = (first.ip(), first.node().to_owned());
    first.delete().await?;
    let second = story
        .pod_with_address("a", "innocent", "app=innocent", &node, address)
        .await?;
    ensure!(second.ip() == address, "the address was to be reused");
    second.leaves_from(OUTSIDE, Egress::Node).await?;
    story.end().await
}

/// Edits of the egress IP, of the destinations and of the selector take hold; deletion gives back.
pub(crate) async fn policy_edited_and_deleted(fed: &Federation) -> Result<()> {
    let story = fed.story("edit").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.11",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.11")).await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.12",
        )
        .await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.12")).await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.11/32",
            "frankfurt",
            "203.0.113.12",
        )
        .await?;
    pod.leaves_from(OUTSIDE, Egress::Node).await?;
    pod.leaves_from(OUTSIDE_OTHER, Egress::Ip("203.0.113.12")).await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "vienna", "203.0.113.20")
        .await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.20")).await?;
    story.delete_policy("bank").await?;
    pod.leaves_from(OUTSIDE, Egress::Node).await?;
    pod.leaves_from(OUTSIDE_OTHER, Egress::Node).await?;
    story.end().await
}

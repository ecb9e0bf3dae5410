//! When nothing happens, nothing is written.

use std::time::Duration;

use anyhow::Result;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE};

/// With policies and pods in place, no object changes, none is even asked to, and no kernel is told anything.
pub(crate) async fn nothing_is_written_at_rest(fed: &Federation) -> Result<()> {
    let story = fed.story("rest").await?;
    for (policy, label, gateway, ip) in [
        ("bank", "app=billing", "frankfurt", "203.0.113.13"),
        ("shop", "app=orders", "vienna", "203.0.113.23"),
    ] {
        story
            .policy(policy, label, "198.51.100.0/24", gateway, ip)
            .await?;
        for member in ["a", "b"] {
            let pod = story.pod(member, policy, label).await?;
            pod.leaves_from(OUTSIDE, Egress::Ip(ip)).await?;
        }
        story.programmed(policy).await?;
    }
    fed.stays_at_rest(Duration::from_secs(10)).await?;
    story.end().await
}

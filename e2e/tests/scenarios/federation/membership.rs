//! Joining and leaving, rightly and wrongly.

use anyhow::{Result, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE};

/// A join that can't work says why and what to do, and leaves the member as it was joined before.
pub(crate) async fn join_says_what_is_wrong(fed: &Federation) -> Result<()> {
    fed.leave("b").await?;
    let good = fed.token("b", &["region=eu"]).await?;

    let wrong_pin = good.with_pin(&format!("sha256:{}", "0".repeat(64)));
    fed.join_fails("b", &wrong_pin, &["pin"]).await?;
    let unreachable = good.with_endpoint("198.51.100.77:9443");
    fed.join_fails("b", &unreachable, &["198.51.100.77:9443", "reach"])
        .await?;
    let taken = fed.token("a", &[]).await?;
    fed.join_fails("b", &taken, &["another cluster has joined as a", "--rejoin"])
        .await?;
    let expired = fed.expired_token("b").await?;
    fed.join_fails("b", &expired, &["expired"]).await?;
    let unknown = good.with_forged_secret();
    fed.join_fails("b", &unknown, &["token"]).await?;
    fed.join_fails_without_rights("b", &good).await?;

    fed.join("b", &good).await?;
    fed.connected("b").await?;
    fed.leave("b").await?;
    fed.join_fails("b", &good, &["used"]).await?;
    let fresh = fed.token("b", &["region=eu"]).await?;
    fed.join("b", &fresh).await?;
    fed.connected("b").await
}

/// After `leave` neither the cluster nor its nodes' kernels hold anything of ours, and the hub has
/// forgotten the member; joining anew works.
pub(crate) async fn leave_leaves_no_trace_and_join_works_again(fed: &Federation) -> Result<()> {
    let story = fed.story("leave").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.19",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.19")).await?;

    fed.leave("b").await?;
    let trace = fed.trace_of_us("b").await?;
    ensure!(trace.is_empty(), "left behind in member b: {trace:#?}");
    ensure!(
        !fed.hub()
            .kubectl(&["get", "members", "-o", "name"])
            .await?
            .contains("/b"),
        "the hub still lists member b"
    );
    pod.leaves_from(OUTSIDE, Egress::Node).await?;
    // The other member's pods are none the wiser.
    let other = story.pod("a", "billing", "app=billing").await?;
    other.leaves_from(OUTSIDE, Egress::Ip("203.0.113.19")).await?;

    let token = fed.token("b", &["region=eu"]).await?;
    fed.join("b", &token).await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.19")).await?;
    story.end().await
}

//! The ways to install a member's agents.

use anyhow::{Result, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, Story};

const EGRESS_IP: &str = "203.0.113.19";

/// The printed command joins what is installed; a pod leaves with the egress IP.
async fn joins_and_steers(fed: &Federation, story: &Story<'_>) -> Result<()> {
    let token = fed.token("b", &["region=eu"]).await?;
    fed.join("b", &token).await?;
    fed.connected("b").await?;
    let pod = story.pod_named("b", "billing")?;
    pod.leaves_from(OUTSIDE, Egress::Ip(EGRESS_IP)).await
}

async fn no_trace(fed: &Federation, what: &str) -> Result<()> {
    let trace = fed.trace_of_us("b").await?;
    ensure!(trace.is_empty(), "{what} left behind: {trace:#?}");
    Ok(())
}

/// Helm and kustomize install what the join command installs, and it goes without a trace as well.
pub(crate) async fn installed_by_helm_and_by_kustomize(fed: &Federation) -> Result<()> {
    let story = fed.story("installers").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EGRESS_IP)
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(EGRESS_IP)).await?;
    fed.leave("b").await?;

    fed.helm_install("b").await?;
    joins_and_steers(fed, &story).await?;
    fed.leave("b").await?;
    pod.leaves_from(OUTSIDE, Egress::Node).await?;
    no_trace(fed, "helm").await?;
    let releases = fed.helm_releases("b").await?;
    ensure!(releases.is_empty(), "helm still lists {releases}");

    fed.kustomize_apply("b").await?;
    joins_and_steers(fed, &story).await?;
    fed.leave("b").await?;
    pod.leaves_from(OUTSIDE, Egress::Node).await?;
    no_trace(fed, "kustomize").await?;

    joins_and_steers(fed, &story).await?;
    story.end().await
}

//! Our own pods are nobody's workload.

use anyhow::{Result, ensure};
use spillway_e2e::eventually;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE};

/// A gateway that no node forms, and a policy that takes everything there.
const EVERYTHING_NOWHERE: &str = "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: nowhere}
spec:
  nodes: [{member: b, selector: {matchLabels: {no-node: has-this}}}]
  addresses: {ipv4: [203.0.113.41]}
---
apiVersion: spillway.io/v1alpha1
kind: FederatedClusterEgressPolicy
metadata: {name: everything}
spec:
  through: [{gateway: nowhere}]
  onUnavailable: Block
";

/// A policy that blocks every pod of every namespace doesn't cut the agents off from the hub: they can
/// connect anew, and so the policy can be taken back.
pub(crate) async fn a_policy_that_blocks_everything_spares_the_agents(fed: &Federation) -> Result<()> {
    let story = fed.story("everything").await?;
    let pod = story.pod("b", "app", "app=any").await?;
    pod.leaves_from(OUTSIDE, Egress::Node).await?;
    fed.apply_hub(EVERYTHING_NOWHERE).await?;
    eventually(PATIENCE, "the pod is blocked", || async {
        let seen = pod.source(OUTSIDE).await;
        ensure!(seen.is_err(), "it left as {seen:?}");
        Ok(())
    })
    .await?;

    // A new process has no connection that was there before.
    fed.restart_member_agent("b").await?;
    fed.hub().kubectl(&["delete", "fcep", "everything"]).await?;
    pod.leaves_from(OUTSIDE, Egress::Node).await?;
    fed.connected("b").await?;
    fed.hub().kubectl(&["delete", "egressgateway", "nowhere"]).await?;
    story.end().await
}

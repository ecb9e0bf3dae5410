//! Gateways that leave with their nodes' own addresses.

use anyhow::{Context as _, Result, ensure};
use spillway_e2e::eventually;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE, Story};

const GATEWAY: &str = "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: lender}
spec:
  nodes: [{member: a}]
  addresses: {nodeIP: true}
";

fn policy(through: &str) -> String {
    format!(
        "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: borrower}}
spec:
  pods: {{matchLabels: {{app: borrower}}}}
  to: {{cidrs: [198.51.100.0/24]}}
  through: [{{gateway: lender{through}}}]
"
    )
}

/// The node that carries the gateway, as the hub says, once the policy's status has its address.
async fn holder(fed: &Federation, story: &Story<'_>, not: &str) -> Result<(String, String)> {
    eventually(PATIENCE, "the hub says who lends", || async {
        let gateway = fed.hub_object(&["egressgateway", "lender"]).await?;
        let holder = gateway["status"]["holder"].as_str().context("no holder")?;
        let node = holder.strip_prefix("a/").context("of another member")?.to_owned();
        ensure!(node != not, "still {not}");
        let address = fed.node(&node)?.plan().ipv4.to_string();
        let policy = fed
            .hub_object(&["federatedegresspolicy", "-n", story.namespace(), "borrower"])
            .await?;
        let said = &policy["status"]["egress"][0]["egressIP"]["ipv4"];
        ensure!(*said == *address, "{said} instead of {address}");
        Ok((node, address))
    })
    .await
}

/// Pods of both members leave with the address of the gateway's node, with another one's when that one is drained, and there
/// is nothing that a policy could choose.
pub(crate) async fn nodes_lend_their_own_addresses(fed: &Federation) -> Result<()> {
    let story = fed.story("lent").await?;
    fed.apply_hub(GATEWAY).await?;
    story.apply(&policy("")).await?;
    story.programmed("borrower").await?;
    let (node, address) = holder(fed, &story, "").await?;
    let (near, far) = (
        story.pod("a", "borrower", "app=borrower").await?,
        story.pod("b", "borrower", "app=borrower").await?,
    );
    for pod in [&near, &far] {
        pod.leaves_from(OUTSIDE, Egress::Ip(&address)).await?;
    }

    fed.spillway_ok("a", &["failover", "drain", &node]).await?;
    let (other, address) = holder(fed, &story, &node).await?;
    for pod in [&near, &far] {
        pod.leaves_from(OUTSIDE, Egress::Ip(&address)).await?;
    }
    fed.spillway_ok("a", &["failover", "undrain", &node]).await?;
    let (_, address) = holder(fed, &story, &other).await?;
    far.leaves_from(OUTSIDE, Egress::Ip(&address)).await?;

    story.apply(&policy(", allocation: Pool")).await?;
    story
        .not_accepted("federatedegresspolicy", "borrower", "NoPool", "addresses.nodeIP")
        .await?;
    far.is_blocked(OUTSIDE).await?;
    story.end().await?;
    fed.cluster("hub")?
        .kubectl(&["delete", "egressgateway", "lender"])
        .await
        .map(drop)
}

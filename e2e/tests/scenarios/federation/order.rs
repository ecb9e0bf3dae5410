//! Which of several policies wins.

use anyhow::{Result, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, Story};

const FIRST: &str = "203.0.113.11";
const SECOND: &str = "203.0.113.12";

fn policy(name: &str, more: &str, to: &str, egress_ip: &str) -> String {
    format!(
        "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: {name}}}
spec:
  {more}
  to: {{cidrs: [{to}]}}
  through: [{{gateway: frankfurt, egressIP: {{ipv4: {egress_ip}}}}}]
"
    )
}

async fn effective(story: &Story<'_>, name: &str, status: &str, reason: &str, word: &str) -> Result<()> {
    let condition = ("Effective", status, reason);
    story.says("federatedegresspolicy", name, condition, word).await
}

/// Age, then priority, then the longer prefix decides, before and after the node's agent starts anew, and the policy
/// that lost says so. A policy for a fixed pod address takes that pod alone.
pub(crate) async fn of_two_policies_the_order_decides(fed: &Federation) -> Result<()> {
    let story = fed.story("order").await?;
    let billing = "pods: {matchLabels: {app: billing}}";
    let range = "198.51.100.0/24";
    story.apply(&policy("first", billing, range, FIRST)).await?;
    story.programmed("first").await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(FIRST)).await?;

    story.apply(&policy("second", billing, range, SECOND)).await?;
    story.programmed("second").await?;
    effective(&story, "second", "False", "Shadowed", "order/first").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(FIRST)).await?;

    let urgent = format!("{billing}\n  priority: 1");
    story.apply(&policy("second", &urgent, range, SECOND)).await?;
    effective(&story, "first", "False", "Shadowed", "order/second").await?;
    effective(&story, "second", "True", "Effective", "").await?;
    story.programmed("second").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(SECOND)).await?;
    let listed = fed
        .cluster("hub")?
        .kubectl(&["get", "federatedegresspolicies", "-n", "order"])
        .await?;
    ensure!(listed.contains("All by order/second"), "{listed}");
    fed.restart_node_agent(pod.node()).await?;
    fed.restart_member_agent("b").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(SECOND)).await?;

    story
        .apply(&policy("first", billing, "198.51.100.10/32", FIRST))
        .await?;
    effective(&story, "second", "True", "PartlyShadowed", "order/first").await?;
    story.programmed("first").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(FIRST)).await?;
    story.delete_policy("first").await?;
    story.delete_policy("second").await?;
    pod.leaves_from(OUTSIDE, Egress::Node).await?;

    let other = story.pod("b", "other", "app=billing").await?;
    let fixed = format!("sources: {{cidrs: [{}/32]}}", pod.ip());
    story.apply(&policy("fixed", &fixed, range, SECOND)).await?;
    story.programmed("fixed").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(SECOND)).await?;
    other.leaves_from(OUTSIDE, Egress::Node).await?;
    story.end().await
}

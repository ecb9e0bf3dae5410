//! What NetworkPolicy says about pods that an egress policy takes.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, OUTSIDE_OTHER, Story, StoryPod};

/// An egress IP of gateway pair.
const ADDRESS: &str = "203.0.113.33";

/// How long kube-router may take to follow an object.
const FOLLOWED: Duration = Duration::from_secs(30);

async fn egress_policy(story: &Story<'_>) -> Result<()> {
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "pair", ADDRESS)
        .await
}

/// Puts a NetworkPolicy called `rule` for the story's billing pods into a member.
async fn rule(fed: &Federation, story: &Story<'_>, member: &str, spec: &str) -> Result<()> {
    let namespace = story.namespace();
    fed.cluster(member)?
        .apply(&format!(
            "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: rule, namespace: {namespace}}}
spec: {{podSelector: {{matchLabels: {{app: billing}}}}, {spec}}}
"
        ))
        .await
        .map(drop)
}

async fn leaves(pod: &StoryPod<'_>, to: &str) -> Result<()> {
    pod.leaves_from_within(FOLLOWED, to, Egress::Ip(ADDRESS)).await
}

/// A rule that lets a pod send nowhere, then to one address, then no rule.
pub(crate) async fn denied_allowed_and_let_go(fed: &Federation) -> Result<()> {
    let story = fed.story("np-egress").await?;
    egress_policy(&story).await?;
    let pod = story.pod("a", "billing", "app=billing").await?;
    let other = story.pod("a", "other", "app=other").await?;
    leaves(&pod, OUTSIDE).await?;

    rule(fed, &story, "a", "policyTypes: [Egress]").await?;
    pod.is_blocked(OUTSIDE).await.context("denied altogether")?;
    pod.is_blocked(OUTSIDE_OTHER).await.context("denied altogether")?;
    other.leaves_from(OUTSIDE, Egress::Node).await?;

    let only = "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 198.51.100.11/32}}]}]";
    rule(fed, &story, "a", only).await?;
    leaves(&pod, OUTSIDE_OTHER)
        .await
        .context("allowed to this address")?;
    pod.is_blocked(OUTSIDE).await.context("allowed to another only")?;

    // A pod made while both the rule and the egress policy are there.
    let late = story.pod("a", "late", "app=billing").await?;
    leaves(&late, OUTSIDE_OTHER).await?;
    late.is_blocked(OUTSIDE).await?;

    fed.cluster("a")?
        .kubectl(&["-n", story.namespace(), "delete", "networkpolicy", "rule"])
        .await?;
    leaves(&pod, OUTSIDE).await.context("without a rule")?;
    leaves(&late, OUTSIDE).await.context("without a rule")?;
    story.end().await
}

/// Pods on gateway nodes may be closed to everybody: what only passes through the node is none of theirs.
pub(crate) async fn ingress_rules_on_gateway_nodes_are_of_no_account(fed: &Federation) -> Result<()> {
    let story = fed.story("np-ingress").await?;
    egress_policy(&story).await?;
    for node in ["b-n1", "b-n2"] {
        story
            .pod_on("b", &format!("on-{node}"), "app=billing", node)
            .await?;
    }
    rule(fed, &story, "b", "policyTypes: [Ingress, Egress]").await?;
    let closed = story.pod_named("b", "on-b-n1")?;
    closed
        .is_blocked(OUTSIDE)
        .await
        .context("the rule is in force on the gateway's node")?;
    let pod = story.pod("a", "billing", "app=billing").await?;
    leaves(&pod, OUTSIDE).await?;
    pod.sends_udp_from(OUTSIDE, ADDRESS).await?;
    pod.pings_from("198.51.100.10", ADDRESS).await?;
    story.end().await
}

/// The check that the others rely on can fail: with kube-router's "allowed" mark set on the pod's packets before it
/// looks at them, as a careless egress gateway could, they pass, and the check says so.
pub(crate) async fn the_check_fails_when_the_enforcer_is_bypassed(fed: &Federation) -> Result<()> {
    let story = fed.story("np-bypass").await?;
    egress_policy(&story).await?;
    let pod = story.pod("a", "billing", "app=billing").await?;
    leaves(&pod, OUTSIDE).await?;
    rule(fed, &story, "a", "policyTypes: [Egress]").await?;
    pod.is_blocked(OUTSIDE).await?;

    let node = fed.node(pod.node())?;
    let rules = format!(
        "add table ip bypass; add chain ip bypass pre {{ type filter hook forward priority -1; }}; \
         add rule ip bypass pre ip saddr {} meta mark set meta mark or 0x10000",
        pod.ip()
    );
    node.exec(&["nft", &rules]).await?.success()?;
    let seen = leaves(&pod, OUTSIDE).await;
    node.exec(&["nft", "delete table ip bypass"]).await?.success()?;
    if let Err(error) = seen {
        bail!("the pod stays blocked although nobody enforces anything: the check is worthless: {error:#}");
    }
    pod.is_blocked(OUTSIDE).await?;
    story.end().await
}

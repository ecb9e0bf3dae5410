//! No gateway node is left: `onUnavailable` rules.

use std::time::Duration;

use anyhow::Result;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, Story, StoryPod};

/// The only node of gateway frankfurt.
const GATEWAY: &str = "a-n2";

/// How long Kubernetes takes to call a silent node NotReady (40 s unless told otherwise), and we to follow.
const NOTICED: Duration = Duration::from_secs(150);

/// One pod whose policy blocks and one whose policy lets it leave as its node, through the same gateway.
struct Pair<'a> {
    blocking: StoryPod<'a>,
    lenient: StoryPod<'a>,
}

impl<'a> Pair<'a> {
    async fn new(story: &Story<'a>) -> Result<Self> {
        for (name, ip, on_unavailable) in [
            ("blocking", "203.0.113.13", "Block"),
            ("lenient", "203.0.113.14", "NodeIP"),
        ] {
            story
                .apply(&format!(
                    "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: {name}}}
spec:
  pods: {{matchLabels: {{app: {name}}}}}
  to: {{cidrs: [198.51.100.0/24]}}
  through: [{{gateway: frankfurt, egressIP: {{ipv4: {ip}}}}}]
  onUnavailable: {on_unavailable}
"
                ))
                .await?;
        }
        let pair = Self {
            blocking: story.pod("b", "blocking", "app=blocking").await?,
            lenient: story.pod("b", "lenient", "app=lenient").await?,
        };
        pair.leave_through_the_gateway().await?;
        Ok(pair)
    }

    async fn leave_through_the_gateway(&self) -> Result<()> {
        self.blocking
            .leaves_from_within(NOTICED, OUTSIDE, Egress::Ip("203.0.113.13"))
            .await?;
        self.lenient
            .leaves_from_within(NOTICED, OUTSIDE, Egress::Ip("203.0.113.14"))
            .await
    }

    /// Whatever happens meanwhile, nothing of the blocking pod is seen from another address.
    async fn leave_as_their_policies_say(&self, story: &Story<'_>) -> Result<()> {
        self.lenient
            .leaves_from_within(NOTICED, OUTSIDE, Egress::Node)
            .await?;
        self.blocking.is_blocked(OUTSIDE).await?;
        for policy in ["blocking", "lenient"] {
            story
                .says(
                    "federatedegresspolicy",
                    policy,
                    ("Programmed", "False", "NoReadyNode"),
                    "spec.onUnavailable",
                )
                .await?;
        }
        Ok(())
    }
}

/// The gateway's only node is cordoned for egress: with no other to go to, everything stays where it is. Without the
/// label that made it the gateway's there is none, until it has the label again.
pub(crate) async fn the_only_gateway_node_is_cordoned_and_deselected(fed: &Federation) -> Result<()> {
    let story = fed.story("cordon").await?;
    let pair = Pair::new(&story).await?;
    let watch = pair.blocking.watch(OUTSIDE)?;
    let gateways = fed.member_of(GATEWAY)?;
    let label = async |label: &str| {
        gateways
            .kubectl(&["label", "node", GATEWAY, "--overwrite", label])
            .await
            .map(drop)
    };
    label("spillway.io/cordon=true").await?;
    let outcome = async {
        fed.planned_as("frankfurt", GATEWAY, "Draining").await?;
        pair.leave_through_the_gateway().await?;
        label("egress=false").await?;
        pair.leave_as_their_policies_say(&story).await
    }
    .await;
    // Also after a failure: other scenarios use the gateway.
    label("spillway.io/cordon-").await?;
    label("egress=true").await?;
    outcome?;
    pair.leave_through_the_gateway().await?;
    watch.only_ever_from("203.0.113.13")?;
    story.end().await
}

/// The gateway's only node loses power. Until Kubernetes notices nothing leaves; then `onUnavailable` rules.
pub(crate) async fn the_only_gateway_node_is_switched_off(fed: &Federation) -> Result<()> {
    let story = fed.story("power").await?;
    let pair = Pair::new(&story).await?;
    let watch = pair.blocking.watch(OUTSIDE)?;
    let gateway = fed.node(GATEWAY)?;
    gateway.power_off().await?;
    let outcome = async {
        pair.blocking.is_blocked(OUTSIDE).await?;
        pair.leave_as_their_policies_say(&story).await
    }
    .await;
    gateway.power_on().await?;
    outcome?;
    pair.leave_through_the_gateway().await?;
    watch.only_ever_from("203.0.113.13")?;
    story.end().await
}

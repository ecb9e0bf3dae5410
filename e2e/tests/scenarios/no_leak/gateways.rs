//! The only gateway node is switched off.

use std::time::Duration;

use anyhow::{Result, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE};

use super::CROWD;

/// The only node of gateway frankfurt.
const GATEWAY: &str = "a-n2";
const NODE: &str = "b-n1";
const BLOCKING: &str = "203.0.113.13";
const LENIENT: &str = "203.0.113.14";

/// How long it may take until everybody knows, and until the node is back.
const NOTICED: Duration = Duration::from_secs(150);

/// Pods start while no gateway is left: of a policy that blocks nothing arrives at all; those of one that says
/// `NodeIP` leave from their node, and from the egress IP again once the gateway is back.
pub(crate) async fn no_gateway_node_is_there(fed: &Federation) -> Result<()> {
    let story = fed.story("nobody").await?;
    for (name, ip, on_unavailable) in [("blocking", BLOCKING, "Block"), ("lenient", LENIENT, "NodeIP")] {
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
    for policy in ["blocking", "lenient"] {
        story.programmed(policy).await?;
    }
    let node_address = fed.node(NODE)?.plan().ipv4.to_string();
    let observer = story.pod("b", "observer", "app=lenient").await?;
    observer.leaves_from(OUTSIDE, Egress::Ip(LENIENT)).await?;
    let gateway = fed.node(GATEWAY)?;
    gateway.power_off().await?;
    let outcome = async {
        let blocked = story.crowd("blocked", "app=blocking", 30, &[NODE], 5).await?;
        blocked.ended(CROWD).await?;
        let sources = blocked.arrivals()?.sources();
        ensure!(
            sources.is_empty(),
            "with no gateway left packets arrived from {sources:?}"
        );
        observer
            .leaves_from_within(NOTICED, OUTSIDE, Egress::Node)
            .await?;
        let fallback = story.crowd("fallback", "app=lenient", 10, &[NODE], 5).await?;
        fallback.ended(CROWD).await?;
        fallback
            .all_arrive_from(&node_address, Duration::from_secs(1))
            .await?;
        fallback.arrivals()?.only_from(&[&node_address])
    }
    .await;
    // Also after a failure: other scenarios use the gateway.
    gateway.power_on().await?;
    outcome?;
    observer
        .leaves_from_within(NOTICED, OUTSIDE, Egress::Ip(LENIENT))
        .await?;
    let returned = story.crowd("returned", "app=lenient", 5, &[NODE], 5).await?;
    let unblocked = story.crowd("unblocked", "app=blocking", 5, &[NODE], 5).await?;
    returned.ended(CROWD).await?;
    unblocked.ended(CROWD).await?;
    returned.all_arrive_from(LENIENT, Duration::from_secs(1)).await?;
    unblocked
        .all_arrive_from(BLOCKING, Duration::from_secs(1))
        .await?;
    returned.arrivals()?.only_from(&[LENIENT, BLOCKING])?;
    story.end().await
}

//! Further gateways in a policy's `through`.

use anyhow::{Context as _, Result};
use spillway_e2e::federation::Federation;

use super::ground::{Ground, PAIR, SPARE};

/// Every node of the first gateway is unreachable: new connections leave through the second with its egress IP, and
/// nothing ever with another. When the first is back they leave through it again.
pub(crate) async fn the_next_gateway_takes_over_and_hands_back(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-fallback", &[PAIR, SPARE]).await?;
    fed.arena().watch_sources()?;
    for node in PAIR.nodes {
        fed.node(node)?.cable(false)?;
    }
    let fallen = ground.leaves_through(SPARE).await.context("through the fallback");
    for node in PAIR.nodes {
        fed.node(node)?.cable(true)?;
    }
    fallen?;
    ground
        .leaves_through(PAIR)
        .await
        .context("back through the first")?;
    fed.nothing_came_but_from(&[PAIR.v4, PAIR.v6, SPARE.v4, SPARE.v6])?;
    ground.end().await
}

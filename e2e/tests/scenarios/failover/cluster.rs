//! A gateway whose nodes are in two clusters.

use anyhow::Result;
use spillway_e2e::federation::Federation;

use super::ground::{Ground, SPAN};

/// All machines of one of the two lose power, its API server among them; connections live on through the other.
pub(crate) async fn a_whole_cluster_of_the_gateway_is_switched_off(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-cluster", &[SPAN]).await?;
    let outages = [fed.power_outage("b-n1").await?, fed.power_outage("b-n2").await?];
    let cluster = fed.cluster("b")?;
    let off = ground
        .across("a whole cluster without power", async || {
            cluster.power_off().await?;
            fed.one_holder_of(SPAN.v4, &["c-n1"]).await.map(drop)
        })
        .await;
    let told = match off {
        Ok(_) => ground.status_says_one_of(&["c-n1"]).await,
        Err(error) => Err(error),
    };
    // Also after a failure: other scenarios use the cluster.
    let on = ground
        .across("its return", async || {
            cluster.power_on().await?;
            for outage in &outages {
                outage.over().await?;
            }
            fed.connected("b").await
        })
        .await;
    told?;
    on?;
    ground.end().await
}

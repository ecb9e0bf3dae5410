//! Nodes that leave on purpose: what they carry moves before they go.

use anyhow::{Context as _, Result, ensure};
use spillway_e2e::federation::{Federation, Outcome};

use super::ground::{Ground, PAIR};

/// Cordoned for egress, taken back, relabelled out of the gateway's selector, taken back: not a datagram is lost.
pub(crate) async fn cordoned_and_relabelled_nodes_lose_nothing(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-leave", &[PAIR]).await?;
    let cluster = fed.cluster("b")?;
    for (what, leave, stay) in [
        ("cordon", "spillway.io/cordon=true", "spillway.io/cordon-"),
        ("relabelling", "egress-", "egress=true"),
    ] {
        let holder = ground.holder().await?;
        let left = ground
            .across(what, async || {
                cluster.kubectl(&["label", "node", &holder, leave]).await?;
                ground.taken_over_from(&holder).await
            })
            .await;
        let back = ground
            .across(&format!("{what}, undone"), async || {
                cluster.kubectl(&["label", "node", &holder, stay]).await?;
                ground.holder().await.map(drop)
            })
            .await;
        nothing_lost(&left?).context(what)?;
        nothing_lost(&back?).with_context(|| format!("{what}, undone"))?;
    }
    ground.end().await
}

fn nothing_lost(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        let (lost, summary) = (outcome.report.lost(), outcome.report.summary());
        ensure!(lost == 0, "{lost} datagrams were lost: {summary}");
    }
    Ok(())
}

/// A rolling reboot of the whole gateway, each node back before the next goes; nobody is told beforehand.
pub(crate) async fn all_nodes_rebooted_in_turn(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-roll", &[PAIR]).await?;
    ground
        .across("a rolling reboot", async || {
            for node in PAIR.nodes {
                let outage = fed.power_outage(node).await?;
                outage.begin().await?;
                // A machine takes longer to boot than others take to notice. One that is back before is a router without
                // tables that the segment still sends replies to, and answers these itself.
                let noticed = ground.taken_over_from(node).await;
                outage.end().await?;
                noticed?;
                ground.leaves_through(PAIR).await?;
            }
            Ok(())
        })
        .await?;
    ground.end().await
}

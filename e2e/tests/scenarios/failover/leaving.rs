//! Nodes that leave on purpose: what they carry moves before they go.

use anyhow::{Context as _, Result, ensure};
use spillway_e2e::eventually;
use spillway_e2e::federation::{Federation, Outcome, PATIENCE};

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

/// Both egress IPs pinned to the node that doesn't hold them: not a datagram is lost. That node loses power: the other one
/// takes over, and gives them back. Unpinned they go where they were.
pub(crate) async fn a_pinned_address_moves_and_comes_back(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-pin", &[PAIR]).await?;
    let first = ground.holder().await?;
    let other = ground.others(&first)[0];
    let to = format!("b/{other}");
    let strange = fed
        .spillway("hub", &["failover", "pin", PAIR.v4, "a/a-n1"])
        .await?;
    ensure!(
        strange.code == 12 && strange.stderr.contains("a/a-n1 is no node of gateway pair"),
        "{strange:?}"
    );
    let moved = ground
        .across("a pin", async || {
            for address in [PAIR.v4, PAIR.v6] {
                fed.spillway_ok("hub", &["failover", "pin", address, &to]).await?;
            }
            ground.taken_over_from(&first).await
        })
        .await;
    nothing_lost(&moved?).context("a pin")?;
    says_of_its_pins(&ground, "True", "PinsHeld", "").await?;

    ground
        .across("the pinned node loses power", async || {
            let outage = fed.power_outage(other).await?;
            outage.begin().await?;
            let taken = ground.taken_over_from(other).await;
            outage.end().await?;
            taken
        })
        .await?;
    ground.taken_over_from(&first).await?;

    let back = ground
        .across("no pin any more", async || {
            for address in [PAIR.v4, PAIR.v6] {
                fed.spillway_ok("hub", &["failover", "unpin", address]).await?;
            }
            // The IPv6 one may have been the other node's by rank all along.
            eventually(PATIENCE, "the IPv4 egress IP is back", || async {
                let holder = ground.holder().await?;
                ensure!(holder == first, "{holder} holds it");
                Ok(())
            })
            .await
        })
        .await;
    nothing_lost(&back?).context("no pin any more")?;
    says_of_its_pins(&ground, "True", "NoPins", "").await?;
    ground.end().await
}

async fn says_of_its_pins(ground: &Ground<'_>, status: &str, reason: &str, word: &str) -> Result<()> {
    let condition = ("PinsHeld", status, reason);
    ground
        .story
        .says("egressgateway", PAIR.name, condition, word)
        .await
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

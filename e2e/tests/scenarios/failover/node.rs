//! One node of two fails, in every way.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use spillway_e2e::federation::Federation;
use spillway_e2e::wire::Direction;

use super::ground::{Ground, PAIR};

/// How often a flapping cable goes.
const FLAPS: u32 = 12;

/// How often its EIP may move meanwhile. Undamped it would move with every flap, and back.
const MOVES: usize = 4;

/// Power off, and on again while flows run.
pub(crate) async fn the_holder_loses_power(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-power", &[PAIR]).await?;
    let holder = ground.holder().await?;
    let outage = fed.power_outage(&holder).await?;
    let off = ground
        .across("power cut", async || {
            outage.begin().await?;
            ground.taken_over_from(&holder).await
        })
        .await;
    // Also after a failure: other scenarios use the node.
    let back = ground.across("power's return", async || outage.end().await).await;
    off?;
    back?;
    ground.end().await
}

/// Every process is stopped; the kernel goes on forwarding what it can.
pub(crate) async fn the_holder_hangs(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-hang", &[PAIR]).await?;
    let holder = ground.holder().await?;
    let node = fed.node(&holder)?;
    let hung = ground
        .across("a hung machine", async || {
            node.hang(true)?;
            ground.taken_over_from(&holder).await
        })
        .await;
    let awake = ground
        .across("its awakening", async || {
            node.hang(false)?;
            ground.holder().await.map(drop)
        })
        .await;
    hung?;
    awake?;
    ground.end().await
}

/// Nothing passes, or one direction only; then all is as before.
pub(crate) async fn cables_pulled_and_half_open(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-cable", &[PAIR]).await?;
    for fault in [None, Some(Direction::Receive), Some(Direction::Send)] {
        let holder = ground.holder().await?;
        let node = fed.node(&holder)?;
        let what = fault.map_or("a pulled cable".to_owned(), |direction| {
            format!("{direction:?} dropped")
        });
        let broken = ground
            .across(&what, async || {
                match fault {
                    None => node.cable(false)?,
                    direction => node.half_open(direction)?,
                }
                ground.taken_over_from(&holder).await
            })
            .await;
        let mended = ground
            .across(&format!("{what}, mended"), async || {
                node.half_open(None)?;
                node.cable(true)?;
                ground.holder().await.map(drop)
            })
            .await;
        broken?;
        mended?;
    }
    ground.end().await
}

/// A cable that comes and goes: connections live, and the egress IP doesn't move with it each time.
pub(crate) async fn a_flapping_cable_is_damped(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-flap", &[PAIR]).await?;
    let holder = ground.holder().await?;
    let node = fed.node(&holder)?;
    let mut moves = Vec::new();
    let outcome = ground
        .across("a flapping cable", async || {
            let flapping = node.flap(Duration::from_millis(1600), FLAPS);
            tokio::pin!(flapping);
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            loop {
                tokio::select! {
                    done = &mut flapping => {
                        done?;
                        break;
                    }
                    _ = ticks.tick() => {
                        let others = fed.holders_of(ground.gate.v4, &ground.others(&holder)).await?;
                        if moves.last() != Some(&others) {
                            moves.push(others);
                        }
                    }
                }
            }
            ground.holder().await.map(drop)
        })
        .await;
    node.cable(true)?;
    outcome?;
    let held: BTreeSet<_> = moves.iter().flatten().collect();
    eprintln!(
        "      the others' holdings changed {} times in {FLAPS} flaps",
        moves.len() - 1
    );
    ensure!(!held.is_empty(), "nobody ever took over");
    ensure!(moves.len() - 1 <= MOVES, "it moved with the cable: {moves:?}");
    ground.end().await.context("after flapping")
}

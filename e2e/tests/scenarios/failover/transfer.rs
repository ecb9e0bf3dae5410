//! Bulk, on a path that gets narrower meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use spillway_e2e::federation::Federation;
use spillway_e2e::probe::Throughput;

use super::ground::{Ground, PAIR};

/// When in a transfer the path gets narrower.
const SHRINKS_AFTER: Duration = Duration::from_millis(300);

/// Both directions, both families; in the middle the router says that it carries less. The probe compares every byte
/// with what was sent.
pub(crate) async fn a_gigabyte_both_ways_on_a_path_that_shrinks(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-bulk", &[PAIR]).await?;
    let arena = fed.arena();
    arena.watch_sources()?;
    let before = arena.too_big_sent()?;
    for (host, bytes) in [
        ("198.51.100.10", 1_000_000_000),
        ("[2001:db8:51::10]", 1_000_000_000),
    ] {
        for (verb, port) in [("send", 7002), ("recv", 7003)] {
            let target = format!("{host}:{port}");
            let moved = shrinking(fed, &ground, verb, &target, bytes).await;
            arena.set_path_mtu(None)?;
            moved.with_context(|| format!("{verb} {host}"))?;
        }
    }
    ensure!(
        arena.too_big_sent()? > before,
        "the router had nothing to say: the path was never too narrow"
    );
    fed.nothing_came_but_from(&[PAIR.v4, PAIR.v6])?;
    fed.no_connection_state_on(PAIR.nodes).await?;
    ground.end().await
}

/// One transfer, during which the path gets narrower.
async fn shrinking(
    fed: &Federation,
    ground: &Ground<'_>,
    verb: &str,
    target: &str,
    bytes: u64,
) -> Result<()> {
    let count = bytes.to_string();
    let command = ["probe", verb, target, "--bytes", &count];
    let transfer = ground.pods[0].pod().run(&command);
    let shrink = async {
        tokio::time::sleep(SHRINKS_AFTER).await;
        fed.arena().set_path_mtu(Some(1300))
    };
    let (said, done) = tokio::join!(transfer, shrink);
    done?;
    let result: Throughput = serde_json::from_str(&said?.success()?)?;
    eprintln!(
        "      {verb} {target}: {} bytes in {:.1} s",
        result.bytes, result.seconds
    );
    ensure!(result.bytes >= bytes, "{} bytes arrived", result.bytes);
    ensure!(
        result.seconds > SHRINKS_AFTER.as_secs_f64(),
        "it was over before the path shrank"
    );
    Ok(())
}

//! The CNI's own agent rewrites its configuration.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use spillway_e2e::federation::Federation;

use super::CROWD;

const EIP: &str = "203.0.113.15";
const NODE: &str = "b-n1";

/// How long a chain may be without our plugin on a busy machine. It takes some milliseconds.
const PUT_RIGHT: Duration = Duration::from_millis(500);

/// Overwritten, replaced, preceded by another file: each time the plugin is the last of the chain within moments, and
/// pods that start then don't leak. Then the file is as it was before, but for our entry.
pub(crate) async fn a_rewritten_chain_is_put_right(fed: &Federation) -> Result<()> {
    let story = fed.story("chain").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    story.programmed("bank").await?;
    fed.cni_chained(NODE).await?;
    let chained = fed.cni_chain(NODE).await?;
    let mut original: Value = serde_json::from_str(&chained)?;
    let plugins = original["plugins"].as_array_mut().expect("a list of plugins");
    let ours = plugins.pop();
    ensure!(
        ours.is_some_and(|p| p["type"] == "spillway-cni"),
        "it isn't the last: {chained}"
    );
    let file = "/etc/cni/net.d/10-arena.conflist";
    let first = "/etc/cni/net.d/05-other.conflist";
    let single = "/etc/cni/net.d/01-single.conf";
    let mut alone = original["plugins"][0].clone();
    alone["cniVersion"] = original["cniVersion"].clone();
    alone["name"] = original["name"].clone();
    let rewrites = [
        format!("echo '{original}' > {file}"),
        format!("echo '{original}' > /etc/cni/net.d/.new && mv /etc/cni/net.d/.new {file}"),
        format!("rm {file}; echo '{original:#}' > {file}"),
        format!("echo '{original}' > {first}"),
        format!("rm {first}; touch {file}"),
        format!("echo '{alone}' > {single}"),
    ];
    for rewrite in &rewrites {
        let took = fed.cni_rewritten(NODE, rewrite).await?;
        eprintln!("    chain put right after {took:?}");
        ensure!(took < PUT_RIGHT, "{took:?} after {rewrite}");
    }
    let crowd = story.crowd("crowd", "app=billing", 10, &[NODE], 5).await?;
    crowd.ended(CROWD).await?;
    crowd.arrivals()?.only_from(&[EIP])?;
    crowd.all_arrive_from(EIP, Duration::from_secs(1)).await?;
    let tidy = "rm /etc/cni/net.d/01-single.conflist; touch /etc/cni/net.d/10-arena.conflist";
    fed.cni_rewritten(NODE, tidy).await?;
    story.end().await
}

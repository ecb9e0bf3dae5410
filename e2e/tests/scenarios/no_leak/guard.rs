//! Where nothing can be chained, the guard.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use spillway_e2e::federation::Federation;

use super::CROWD;

const EIP: &str = "203.0.113.15";
const NODE: &str = "b-n1";
const FILE: &str = "/etc/cni/net.d/10-arena.conflist";

/// The node's network without our plugin, as its CNI wrote it.
async fn network(fed: &Federation) -> Result<String> {
    let mut network: Value = serde_json::from_str(&fed.cni_chain(NODE).await?)?;
    let plugins = network["plugins"].as_array_mut().context("a list of plugins")?;
    plugins.retain(|p| p["type"] != "spillway-cni");
    Ok(network.to_string())
}

/// The CNI's file has a byte in it that is no UTF-8: the runtime doesn't mind, the node agent can't chain. It says so, and
/// the guard holds what new pods send until the node knows them. Without an agent, it holds them for good.
///
/// With `cni.mode: Chain` the first packets of most pods arrive from the node's address.
pub(crate) async fn a_network_that_cant_be_chained_is_guarded(fed: &Federation) -> Result<()> {
    let story = fed.story("guarded").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    story.programmed("bank").await?;
    fed.cni_chained(NODE).await?;
    let network = network(fed).await?;
    let machine = fed.node(NODE)?;
    let node_address = machine.plan().ipv4.to_string();
    let rest = network.strip_prefix('{').context("an object")?;
    let odd = format!(
        "printf '{{\"comment\": \"\\377\",' > {FILE}.new && echo '{rest}' >> {FILE}.new && mv {FILE}.new {FILE}"
    );
    machine.exec(&["sh", "-c", &odd]).await?.success()?;
    let outcome = async {
        let why = fed.first_packets_become(NODE, "Guard").await?;
        ensure!(why.contains("10-arena.conflist"), "it doesn't say why: {why}");
        fed.guarded(NODE, true).await?;

        let selected = story.crowd("selected", "app=billing", 30, &[NODE], 200).await?;
        selected.ended(CROWD).await?;
        selected.arrivals()?.only_from(&[EIP])?;
        selected.all_arrive_from(EIP, CROWD).await?;
        let dropped = fed.dropped_by_the_guard(NODE).await?.unwrap_or_default();
        ensure!(dropped > 0, "nothing was sent too early, so this shows nothing");
        eprintln!("    the guard dropped {dropped} packets of 30 pods");
        let others = story.crowd("others", "app=other", 10, &[NODE], 200).await?;
        others.ended(CROWD).await?;
        others.arrivals()?.only_from(&[&node_address])?;
        others.all_arrive_from(&node_address, CROWD).await?;

        // An address changes hands, and nobody tells of it.
        let address = *others.addresses().await?.first().context("an address")?;
        fed.next_free(NODE, address).await?;
        let heir = story.crowd("heir", "app=billing", 1, &[NODE], 100).await?;
        heir.ended(CROWD).await?;
        ensure!(
            heir.addresses().await?.contains(&address),
            "the address was to be reused"
        );
        heir.arrivals()?.only_from(&[EIP])?;

        let frozen = fed.freeze_node_agent(NODE)?;
        let unseen = story.crowd("unseen", "app=billing", 10, &[NODE], 20).await?;
        unseen.ended(CROWD).await?;
        let sources = unseen.arrivals()?.sources();
        ensure!(
            sources.is_empty(),
            "without an agent packets arrived from {sources:?}"
        );
        frozen.thaw()
    }
    .await;
    // Also after a failure: others start pods here.
    let plain = format!("echo '{network}' > {FILE}.new && mv {FILE}.new {FILE}");
    machine.exec(&["sh", "-c", &plain]).await?.success()?;
    fed.cni_chained(NODE).await?;
    outcome?;
    fed.first_packets_become(NODE, "Chain").await?;
    fed.guarded(NODE, false).await?;
    story.end().await
}

/// The CNI's own agent writes its file again and again while pods start, so that many of them don't pass the plugin.
///
/// Without the guard some of them arrive from the node's address.
pub(crate) async fn pods_start_while_the_chain_is_rewritten(fed: &Federation) -> Result<()> {
    let story = fed.story("rewritten").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    story.programmed("bank").await?;
    fed.cni_chained(NODE).await?;
    let network = network(fed).await?;
    let crowd = async {
        // For so long that on a busy machine each is known before it ends.
        let crowd = story.crowd("crowd", "app=billing", 40, &[NODE], 300).await?;
        crowd.ended(CROWD).await?;
        crowd.arrivals()?.only_from(&[EIP])?;
        crowd.all_arrive_from(EIP, Duration::from_secs(1)).await
    };
    let outcome: Result<()> = tokio::select! {
        outcome = rewrite_for_ever(fed, &network) => outcome,
        outcome = crowd => outcome,
    };
    fed.cni_chained(NODE).await?;
    outcome?;
    fed.guarded(NODE, false).await?;
    story.end().await
}

/// As short commands, none of which is left behind.
async fn rewrite_for_ever(fed: &Federation, network: &str) -> Result<()> {
    let machine = fed.node(NODE)?;
    let rewrite = format!("echo '{network}' > {FILE}.new && mv {FILE}.new {FILE}");
    loop {
        machine.exec(&["sh", "-c", &rewrite]).await?.success()?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

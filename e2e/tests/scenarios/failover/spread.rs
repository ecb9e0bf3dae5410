//! A gateway of several nodes while nothing is wrong.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use spillway_e2e::eventually;
use spillway_e2e::federation::{Federation, PATIENCE};

use super::ground::{Ground, PAIR};

/// Packets that no probing explains: probes and answers are some tens a second.
const MANY: u64 = 1_000;

/// Every node of the gateway carries part of the flows out, and replies come back by the holders of the egress IPs
/// alone.
pub(crate) async fn flows_take_all_nodes_and_replies_the_holder(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "fo-spread", &[PAIR]).await?;
    let mut holders = BTreeSet::new();
    for address in [PAIR.v4, PAIR.v6] {
        holders.insert(fed.one_holder_of(address, PAIR.nodes).await?);
    }
    ground
        .across("no fault", async || {
            let before = passed(fed).await?;
            eventually(PATIENCE, "both nodes carry flows", || async {
                let now = passed(fed).await?;
                let since = |node: &str| {
                    let ((out, back), (out_before, back_before)) = (now[node], before[node]);
                    (out - out_before, back - back_before)
                };
                for node in PAIR.nodes {
                    let (out, back) = since(node);
                    ensure!(out > MANY, "{out} packets came to {node}");
                    ensure!(
                        !holders.contains(*node) || back > MANY,
                        "{back} replies went by {node}"
                    );
                }
                Ok(())
            })
            .await?;
            let now = passed(fed).await?;
            for node in PAIR.nodes.iter().filter(|node| !holders.contains(**node)) {
                let (back, carried) = (now[*node].1 - before[*node].1, now[*node].0 - before[*node].0);
                ensure!(
                    back < carried / 4,
                    "{back} replies went by {node}, which holds nothing"
                );
            }
            Ok(())
        })
        .await?;
    ground.end().await
}

/// Packets that came out of the tunnel and went into it so far, on each of the gateway's nodes.
async fn passed(fed: &Federation) -> Result<BTreeMap<&'static str, (u64, u64)>> {
    let mut passed = BTreeMap::new();
    for node in PAIR.nodes {
        let mut counts = [0; 2];
        for (count, name) in counts.iter_mut().zip(["rx_packets", "tx_packets"]) {
            let file = format!("/sys/class/net/spillway0/statistics/{name}");
            *count = fed
                .node(node)?
                .exec(&["cat", &file])
                .await?
                .success()?
                .trim()
                .parse()?;
        }
        passed.insert(*node, (counts[0], counts[1]));
    }
    Ok(passed)
}

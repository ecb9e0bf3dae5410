//! Pods start under a policy, in peace and while what programs them is disturbed.

use std::time::Duration;

use anyhow::{Context, Result};
use spillway_e2e::federation::{Federation, Story};

use super::CROWD;

/// Nodes that are no gateways.
pub(super) const SOURCES: [&str; 2] = ["a-n1", "b-n1"];
const EIP: &str = "203.0.113.15";

async fn begin<'a>(fed: &'a Federation, name: &str) -> Result<Story<'a>> {
    let story = fed.story(name).await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    story.programmed("bank").await?;
    Ok(story)
}

/// The very first packet of each has the egress IP.
///
/// With `cni.mode: Off` dozens of them arrive from their nodes' addresses.
pub(crate) async fn pods_start_under_a_policy(fed: &Federation) -> Result<()> {
    let story = begin(fed, "first").await?;
    for node in SOURCES {
        fed.cni_chained(node).await?;
    }
    let crowd = story.crowd("crowd", "app=billing", 60, &SOURCES, 5).await?;
    crowd.ended(CROWD).await?;
    crowd.arrivals()?.only_from(&[EIP])?;
    crowd.all_arrive_from(EIP, Duration::from_secs(1)).await?;
    story.end().await
}

/// The agents die again and again; pods wait for the next one.
pub(crate) async fn pods_start_while_the_node_agents_are_killed(fed: &Federation) -> Result<()> {
    let story = begin(fed, "killed").await?;
    let mut crowds = Vec::new();
    for n in 0..4 {
        for node in SOURCES {
            // Between two lives there is nothing to kill.
            _ = fed.node(node)?.kill("spillway-node-agent");
        }
        let name = format!("crowd{n}");
        crowds.push(story.crowd(&name, "app=billing", 10, &SOURCES, 5).await?);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    // Without the pauses that kubelet would make by now.
    for node in SOURCES {
        fed.replace_node_agent(node).await?;
    }
    for crowd in &crowds {
        crowd.ended(CROWD).await?;
        crowd.all_arrive_from(EIP, Duration::from_secs(1)).await?;
    }
    crowds.first().context("a crowd")?.arrivals()?.only_from(&[EIP])?;
    story.end().await
}

/// All agents are replaced, as by an upgrade: each new one writes plugin and tables as it wants them.
pub(crate) async fn pods_start_while_the_node_agents_are_upgraded(fed: &Federation) -> Result<()> {
    let story = begin(fed, "upgraded").await?;
    let crowd = async {
        let mut crowds = Vec::new();
        for n in 0..4 {
            let name = format!("crowd{n}");
            crowds.push(story.crowd(&name, "app=billing", 10, &SOURCES, 5).await?);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        anyhow::Ok(crowds)
    };
    let rolled = async { tokio::try_join!(fed.roll_node_agents("a"), fed.roll_node_agents("b")) };
    let (crowds, _) = tokio::try_join!(crowd, rolled)?;
    for crowd in &crowds {
        crowd.ended(CROWD).await?;
        crowd.all_arrive_from(EIP, Duration::from_secs(1)).await?;
    }
    crowds.first().context("a crowd")?.arrivals()?.only_from(&[EIP])?;
    story.end().await
}

/// Somebody deletes our table again and again.
pub(crate) async fn pods_start_while_the_table_is_deleted(fed: &Federation) -> Result<()> {
    let story = begin(fed, "flushed").await?;
    let crowd = story.crowd("crowd", "app=billing", 40, &SOURCES, 50).await?;
    tokio::select! {
        outcome = vandalise(fed, SOURCES[0]) => outcome?,
        outcome = vandalise(fed, SOURCES[1]) => outcome?,
        outcome = crowd.ended(CROWD) => outcome?,
    }
    crowd.arrivals()?.only_from(&[EIP])?;
    story.end().await
}

/// For ever.
async fn vandalise(fed: &Federation, node: &str) -> Result<()> {
    let machine = fed.node(node)?;
    loop {
        for deed in ["delete", "flush"] {
            // While it isn't there yet again, there is nothing to delete.
            machine.exec(&["nft", deed, "table", "inet", "spillway"]).await?;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
}

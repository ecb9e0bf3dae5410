//! A path that must be encrypted because it leads to another partition.

use std::time::Duration;

use anyhow::{Result, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE, Story, StoryPod};
use spillway_e2e::scenario::eventually;

const EIP: &str = "203.0.113.10";
/// UDP ports of the tunnel and of WireGuard.
const TUNNEL: u16 = 4_799;
const WIREGUARD: u16 = 5_713;

/// A pod of member b, in partition 2, that leaves through the gateway in partition 1.
async fn pod<'a>(story: &Story<'a>) -> Result<StoryPod<'a>> {
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;
    Ok(pod)
}

/// The hub's word on the path between b's node and the gateway, from both ends.
async fn both_ends_say(fed: &Federation, encrypted: u64, waiting: u64) -> Result<()> {
    let what = format!("both ends say that {encrypted} paths are encrypted and {waiting} wait");
    eventually(PATIENCE, &what, || async {
        for (member, node) in [("a", "a-n2"), ("b", "b-n1")] {
            let object = fed.hub_object(&["member", member]).await?;
            let nodes = object["status"]["nodes"].as_array().cloned().unwrap_or_default();
            let said = nodes.iter().find(|n| n["name"] == node).map(|n| &n["wireguard"]);
            let said = said.cloned().unwrap_or_default();
            let number = |field: &str| said[field].as_u64().unwrap_or(0);
            ensure!(
                (number("encrypted"), number("waiting")) == (encrypted, waiting),
                "{node} says {said}"
            );
            ensure!(
                said["implementation"].is_string(),
                "{node} doesn't say who encrypts"
            );
        }
        Ok(())
    })
    .await
}

pub(crate) async fn nothing_between_partitions_can_be_read(fed: &Federation) -> Result<()> {
    let story = fed.story("across").await?;
    let pod = pod(&story).await?;
    story.programmed("bank").await?;
    let other = story.pod("b", "reports", "app=reports").await?;
    let capture = fed.capture(2)?;
    let seen = pod.talk(OUTSIDE, "nobody-may-read-this", 50).await?;
    ensure!(seen.starts_with(EIP), "the server saw {seen}");
    pod.sends_udp_from(OUTSIDE, EIP).await?;
    // What no policy selects shows that the capture would have seen it.
    other.talk(OUTSIDE, "anybody-may-read-this", 5).await?;
    eventually(PATIENCE, "the capture has what it should have", || async {
        ensure!(capture.holds("anybody-may-read-this")?, "it hasn't yet");
        Ok(())
    })
    .await?;
    let captured = capture.stop()?;
    ensure!(
        !captured.holds("nobody-may-read-this"),
        "the payload can be read between the partitions"
    );
    ensure!(
        captured.udp_to(TUNNEL)? == 0,
        "the tunnel's own packets pass between them"
    );
    let packets = captured.udp_to(WIREGUARD)?;
    ensure!(packets > 100, "only {packets} packets of WireGuard");
    both_ends_say(fed, 1, 0).await?;
    story.end().await
}

/// With the agent stopped and the device down nobody repairs anything, and nothing leaves.
pub(crate) async fn the_path_is_taken_away(fed: &Federation) -> Result<()> {
    let story = fed.story("taken-away").await?;
    let pod = pod(&story).await?;
    let frozen = fed.freeze_node_agent(pod.node())?;
    let capture = fed.capture(2)?;
    let node = fed.node(pod.node())?;
    node.exec(&["ip", "link", "set", "spillway-wg", "down"])
        .await?
        .success()?;
    pod.is_blocked(OUTSIDE).await?;
    node.exec(&["ip", "rule", "del", "pref", "20000"])
        .await?
        .success()?;
    pod.is_blocked(OUTSIDE).await?;
    let captured = capture.stop()?;
    ensure!(
        captured.udp_to(TUNNEL)? == 0,
        "the tunnel's own packets pass in the clear"
    );
    frozen.thaw()?;
    pod.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;
    story.end().await
}

/// WireGuard in userspace ends with its agent, and the next one takes it up again.
pub(crate) async fn connections_outlive_the_agents(fed: &Federation) -> Result<()> {
    let story = fed.story("agents").await?;
    let pod = pod(&story).await?;
    let capture = fed.capture(2)?;
    for node in [pod.node(), "a-n2"] {
        let (seen, restarted) = futures::join!(
            pod.talk(OUTSIDE, "nobody-may-read-this", 500),
            fed.restart_node_agent(node)
        );
        restarted?;
        let seen = seen?;
        ensure!(seen.starts_with(EIP), "the server saw {seen}");
        pod.leaves_from_within(Duration::from_secs(20), OUTSIDE, Egress::Ip(EIP))
            .await?;
    }
    let captured = capture.stop()?;
    ensure!(
        !captured.holds("nobody-may-read-this"),
        "the payload could be read meanwhile"
    );
    ensure!(
        captured.udp_to(TUNNEL)? == 0,
        "the tunnel's own packets passed meanwhile"
    );
    both_ends_say(fed, 1, 0).await?;
    story.end().await
}

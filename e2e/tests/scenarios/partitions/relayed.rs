//! Three partitions, of which two can't be called: one side calls, or a relay passes on what both sides send to it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use spillway_e2e::eventually;
use spillway_e2e::federation::{Egress, Federation, Flows, Load, OUTSIDE, PATIENCE, Story, StoryPod};

/// Egress IPs of gateway frankfurt, in partition 1, and of gateway zurich, in partition 3.
const FRANKFURT: &str = "203.0.113.10";
const ZURICH: &str = "198.18.3.10";
/// UDP ports of the tunnel and of WireGuard.
const TUNNEL: u16 = 4_799;
const WIREGUARD: u16 = 5_713;
/// From one partition's handshakes to the next: an agent may have given up calling for a while.
const LONG: Duration = Duration::from_secs(120);

/// Little enough for WireGuard in userspace, twice at each end and not optimized, on a machine that does other things, too.
const LOAD: Load = Load {
    driven: 10,
    pushed: 10,
    udp: 1,
    icmp: 1,
    pace: Duration::from_millis(100),
};

/// Pods of every member that leave through the gateway of another partition.
struct Ground<'a> {
    story: Story<'a>,
    /// With the egress IP of each.
    pods: Vec<(StoryPod<'a>, &'static str)>,
}

impl<'a> Ground<'a> {
    async fn new(fed: &'a Federation, namespace: &str, pods: &[(&str, &str)]) -> Result<Self> {
        let story = fed.story(namespace).await?;
        for (name, gateway, egress) in [("near", "frankfurt", FRANKFURT), ("far", "zurich", ZURICH)] {
            let label = format!("app={name}");
            story
                .policy(name, &label, "198.51.100.0/24", gateway, egress)
                .await?;
        }
        let mut ground = Self {
            story,
            pods: Vec::new(),
        };
        for (member, app) in pods {
            let pod = ground.story.pod(member, app, &format!("app={app}")).await?;
            let egress = if *app == "near" { FRANKFURT } else { ZURICH };
            ground.pods.push((pod, egress));
        }
        ground.leave().await?;
        Ok(ground)
    }

    async fn leave(&self) -> Result<()> {
        for (pod, egress) in &self.pods {
            let way = pod.leaves_from_within(LONG, OUTSIDE, Egress::Ip(egress)).await;
            way.with_context(|| format!("from {} with {egress}", pod.node()))?;
        }
        Ok(())
    }

    /// Runs flows of all pods through `fault`: none breaks, and none is seen from elsewhere.
    async fn across(&self, fed: &Federation, fault: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        let flows = self
            .pods
            .iter()
            .map(|(pod, _)| pod.flows(&["198.51.100.10"], LOAD));
        let flows = futures::future::try_join_all(flows).await?;
        let done = async {
            fault().await?;
            self.leave().await?;
            // Every flow has to carry something after it, however long its retransmission timer has become meanwhile.
            tokio::time::sleep(Duration::from_secs(3)).await;
            anyhow::Ok(())
        }
        .await;
        let ended = futures::future::join_all(flows.into_iter().map(Flows::end)).await;
        done?;
        for ((pod, egress), outcome) in self.pods.iter().zip(ended) {
            let outcome = outcome?;
            let summary = outcome.report.summary();
            eprintln!("      {}: {summary}", pod.node());
            outcome.unbroken().context(summary)?;
            outcome.only_from(fed, &[*egress])?;
        }
        Ok(())
    }
}

/// What the hub says of the path between two members.
async fn path(fed: &Federation, from: &str, to: &str) -> Result<Value> {
    let object = fed.hub_object(&["member", from]).await?;
    let paths = object["status"]["paths"].as_array().cloned().unwrap_or_default();
    let found = paths.into_iter().find(|p| p["member"] == to);
    found.with_context(|| format!("the hub says nothing of {from} and {to}"))
}

async fn says(fed: &Federation, from: &str, to: &str, kind: &str) -> Result<Value> {
    let what = format!("the hub says that the path from {from} to {to} is {kind}");
    eventually(PATIENCE, &what, || async {
        let path = path(fed, from, to).await?;
        ensure!(path["kind"] == kind, "it says {path}");
        Ok(path)
    })
    .await
}

/// Packets that a node has relayed.
async fn relayed(fed: &Federation, node: &str) -> Result<u64> {
    let command = ["nft", "list", "chain", "inet", "spillway", "raw_wireguard"];
    let text = fed.node(node)?.exec(&command).await?.success()?;
    let line = text
        .lines()
        .find(|l| l.contains("@relay_to4"))
        .unwrap_or_default();
    let count = line
        .split("counter packets ")
        .nth(1)
        .and_then(|l| l.split(' ').next());
    count
        .with_context(|| format!("no counter in {text}"))?
        .parse()
        .context("a count")
}

/// The relay through which packets between b and c pass.
async fn relay_in_use(fed: &Federation) -> Result<&'static str> {
    let count = || async { anyhow::Ok([relayed(fed, "a-n1").await?, relayed(fed, "a-n2").await?]) };
    eventually(PATIENCE, "one of the relays passes packets on", || async {
        let before = count().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let after = count().await?;
        let grown: Vec<&str> = ["a-n1", "a-n2"]
            .into_iter()
            .enumerate()
            .filter(|(n, _)| after[*n] > before[*n])
            .map(|(_, name)| name)
            .collect();
        ensure!(grown.len() == 1, "{grown:?} do");
        Ok(grown[0])
    })
    .await
}

pub(crate) async fn every_pair_has_its_way(fed: &Federation) -> Result<()> {
    let ground = Ground::new(
        fed,
        "ways",
        &[
            ("a", "far"),
            ("b", "near"),
            ("b", "far"),
            ("c", "near"),
            ("c", "far"),
        ],
    )
    .await?;
    for (from, to, kind) in [("a", "b", "NAT"), ("a", "c", "NAT"), ("b", "a", "NAT")] {
        says(fed, from, to, kind).await?;
    }
    let path = says(fed, "b", "c", "Relay").await?;
    ensure!(
        path["through"].as_array().is_some_and(|t| t.len() == 2),
        "both nodes of a relay: {path}"
    );
    let wires = [1, 2, 3].map(|p| fed.capture_between(p));
    for (pod, egress) in &ground.pods {
        let seen = pod.talk(OUTSIDE, "nobody-may-read-this", 50).await?;
        ensure!(seen.starts_with(egress), "the server saw {seen}");
    }
    for (p, running) in (1..).zip(wires) {
        let captured = running?.stop()?;
        ensure!(
            !captured.holds("nobody-may-read-this"),
            "the payload can be read between partition {p} and the others"
        );
        ensure!(
            captured.udp_to(TUNNEL)? == 0,
            "the tunnel's own packets leave partition {p}"
        );
        let packets = captured.udp_to(WIREGUARD)?;
        ensure!(packets > 50, "partition {p}: only {packets} packets of WireGuard");
    }
    let status = fed.spillway("hub", &["status"]).await?.stdout;
    ensure!(status.contains("Relay") && status.contains("a/a-n1"), "{status}");
    ground.story.end().await
}

pub(crate) async fn a_nat_rebinds_and_nothing_breaks(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "rebound", &[("b", "near"), ("b", "far")]).await?;
    ground.across(fed, async || fed.hidden(true, None)).await?;
    ground.across(fed, async || fed.hidden(false, None)).await?;
    ground.story.end().await
}

pub(crate) async fn a_relay_dies_and_nothing_breaks(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "relay", &[("b", "far")]).await?;
    let relay = relay_in_use(fed).await?;
    let node = fed.node(relay)?;
    let outcome = ground.across(fed, async || node.cable(false)).await;
    node.cable(true)?;
    outcome.with_context(|| format!("while {relay} was cut off"))?;
    // It comes back in mid-connection, too.
    ground
        .across(fed, async || relay_in_use(fed).await.map(drop))
        .await?;
    ground.story.end().await
}

/// A node of partition 3 is given an endpoint: what was relayed goes directly, and back, without a connection lost.
pub(crate) async fn a_partition_opens_and_closes_and_nothing_breaks(fed: &Federation) -> Result<()> {
    let ground = Ground::new(fed, "opens", &[("b", "far")]).await?;
    let node = fed.node("c-n1")?;
    let address = node.plan().ipv4;
    let endpoint = format!("spillway.io/endpoint={address}:{WIREGUARD}");
    let cluster = fed.cluster("c")?;
    let opened = ground
        .across(fed, async || {
            fed.hidden(false, Some((address, WIREGUARD)))?;
            cluster.kubectl(&["annotate", "node", "c-n1", &endpoint]).await?;
            says(fed, "b", "c", "NAT").await?;
            eventually(PATIENCE, "nothing is relayed any more", || async {
                let count =
                    || async { anyhow::Ok([relayed(fed, "a-n1").await?, relayed(fed, "a-n2").await?]) };
                let before = count().await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                let after = count().await?;
                ensure!(before == after, "{before:?}, then {after:?}");
                Ok(())
            })
            .await
        })
        .await;
    let closed = ground
        .across(fed, async || {
            cluster
                .kubectl(&["annotate", "node", "c-n1", "spillway.io/endpoint-"])
                .await?;
            says(fed, "b", "c", "Relay").await?;
            relay_in_use(fed).await?;
            fed.hidden(false, None)
        })
        .await;
    fed.hidden(false, None)?;
    opened.context("while it opened")?;
    closed.context("while it closed")?;
    ground.story.end().await
}

//! Throughput, packets a second and processor time pod → gateway → server beside plain kernel VXLAN and masquerade, set
//! up by hand between the same two nodes.
//!
//! All nodes share this machine's processors and its one kernel, which forwards for a gateway in whatever context the
//! packet came along: processor time is therefore told for the whole way, and what differs between the two is ours.

use anyhow::{Context, Result};
use serde::Deserialize;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, StoryPod};
use spillway_e2e::probe::Flood;

use super::figures::{Figures, percentile};

/// Rounds; each measures both, one after the other, so that the machine's moods hit both.
const ROUNDS: usize = 7;
const SECONDS: &str = "3";
/// Of `/proc/stat`, a second; the same on every Linux since 2.6 that userspace sees.
const TICKS: f64 = 100.0;
/// What the policy takes, and what goes through the tunnel made by hand.
const OURS: &str = "198.51.100.10:7002";
const BY_HAND: &str = "198.51.100.11:7002";

#[derive(Deserialize)]
struct Transfer {
    bytes: u64,
    seconds: f64,
}

/// Both, in turn.
pub(crate) async fn against_plain_vxlan(federation: &Federation, figures: &mut Figures) -> Result<()> {
    let story = federation.story("bench-throughput").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.10/32",
            "frankfurt",
            "203.0.113.10",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.10")).await?;
    let tunnel = ByHand::set_up(federation, &pod).await?;
    let gateway = federation.node("a-n2")?.plan().ipv4.to_string();
    pod.leaves_from("198.51.100.11:7000", Egress::Ip(&gateway))
        .await
        .context("the tunnel made by hand")?;

    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (bytes_ours, bytes_by_hand) = (send(&pod, OURS).await?, send(&pod, BY_HAND).await?);
        let (packets_ours, packets_by_hand) = (flood(&pod, OURS).await?, flood(&pod, BY_HAND).await?);
        rounds.push([
            (bytes_ours.rate, bytes_by_hand.rate),
            (bytes_ours.cost, bytes_by_hand.cost),
            (packets_ours.rate, packets_by_hand.rate),
            (packets_ours.cost, packets_by_hand.cost),
        ]);
    }
    tunnel.remove(federation).await?;
    for (index, (name, unit)) in [
        ("throughput of one TCP connection", "Gbit/s"),
        ("processor time of its whole way", "s/Gbit"),
        ("datagrams of 64 bytes from one port", "1000/s"),
        ("processor time of their whole way", "µs each"),
    ]
    .into_iter()
    .enumerate()
    {
        let pairs: Vec<(f64, f64)> = rounds.iter().map(|round| round[index]).collect();
        let (ours, by_hand): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        let ratios: Vec<f64> = pairs.iter().map(|(ours, by_hand)| ours / by_hand).collect();
        figures.compare(
            &format!("{name}, median of {ROUNDS}"),
            percentile(&ours, 50),
            unit,
            "plain VXLAN + masquerade, same nodes",
            percentile(&by_hand, 50),
        );
        figures.add(
            &format!("{name}, median of the pairwise ratios"),
            percentile(&ratios, 50),
            "ratio",
        );
    }
    story.end().await
}

/// What one transfer came to.
struct Measured {
    /// Gbit, or thousands of datagrams, a second.
    rate: f64,
    /// Seconds of a processor a Gbit, or microseconds a datagram: all that this machine did meanwhile.
    cost: f64,
}

/// Seconds that this machine's processors were busy since it started.
fn busy() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq; the rest is other machines'.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    Ok(busy as f64 / TICKS)
}

/// UDP datagrams as fast as one core sends them.
async fn flood(pod: &StoryPod<'_>, to: &str) -> Result<Measured> {
    let before = busy()?;
    let length = format!("{SECONDS}s");
    let said = pod
        .pod()
        .run(&["probe", "flood", to, "--size", "64", "--time", &length])
        .await?
        .success()?;
    let spent = busy()? - before;
    let flood: Flood = serde_json::from_str(&said).with_context(|| format!("the probe said {said:?}"))?;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let (out, arrived) = (flood.sent as f64, flood.arrived as f64);
    Ok(Measured {
        rate: arrived / flood.seconds / 1e3,
        cost: spent / out * 1e6,
    })
}

async fn send(pod: &StoryPod<'_>, to: &str) -> Result<Measured> {
    let before = busy()?;
    let said = pod
        .pod()
        .run(&["probe", "send", to, "--seconds", SECONDS])
        .await?
        .success()?;
    let spent = busy()? - before;
    let transfer: Transfer =
        serde_json::from_str(&said).with_context(|| format!("the probe said {said:?}"))?;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let bits = transfer.bytes as f64 * 8.0;
    Ok(Measured {
        rate: bits / transfer.seconds / 1e9,
        cost: spent / (bits / 1e9),
    })
}

/// A VXLAN tunnel between b-n1 and a-n2, with one masquerade at its end.
struct ByHand {
    pod: String,
}

impl ByHand {
    async fn set_up(federation: &Federation, pod: &StoryPod<'_>) -> Result<Self> {
        let pod = pod.ip().to_string();
        let (source, gateway) = (federation.node("b-n1")?, federation.node("a-n2")?);
        let (from, to) = (source.plan().ipv4, gateway.plan().ipv4);
        let tunnel = |local: &dyn std::fmt::Display, remote: &dyn std::fmt::Display, host: u8| {
            format!(
                "ip link add plain0 type vxlan id 77 dstport 4977 local {local} remote {remote} nolearning && \
                 ip addr add 10.99.0.{host}/30 dev plain0 && ip link set plain0 mtu 1450 up && \
                 sysctl -qw net.ipv4.conf.plain0.rp_filter=2"
            )
        };
        // The pod's address stays on the way to the gateway: the node's own masquerade is told to let it be.
        let at_source = format!(
            "{} && ip route add default via 10.99.0.2 dev plain0 table 977 && \
             ip rule add pref 50 from {pod} to 198.51.100.11 lookup 977 && \
             for t in $(nft list tables | awk '/masq/ {{print $2 \"/\" $3}}'); do \
               c=$(nft list table ${{t%/*}} ${{t#*/}} | awk '/chain/ {{print $2; exit}}'); \
               nft insert rule ${{t%/*}} ${{t#*/}} $c oifname plain0 return; done",
            tunnel(&from, &to, 1)
        );
        let at_gateway = format!(
            "{} && ip route add {pod}/32 via 10.99.0.1 dev plain0 && \
             nft add table ip plain && \
             nft 'add chain ip plain post {{ type nat hook postrouting priority 90; }}' && \
             nft add rule ip plain post ip saddr {pod} oifname eth0 masquerade",
            tunnel(&to, &from, 2)
        );
        source.exec(&["sh", "-c", &at_source]).await?.success()?;
        gateway.exec(&["sh", "-c", &at_gateway]).await?.success()?;
        Ok(Self { pod })
    }

    async fn remove(self, federation: &Federation) -> Result<()> {
        let at_source = format!("ip rule del pref 50 from {}; ip link del plain0", self.pod);
        federation
            .node("b-n1")?
            .exec(&["sh", "-c", &at_source])
            .await?
            .success()?;
        let at_gateway = "nft delete table ip plain; ip link del plain0";
        federation
            .node("a-n2")?
            .exec(&["sh", "-c", at_gateway])
            .await?
            .success()
            .map(drop)
    }
}

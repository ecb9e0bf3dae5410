//! Port slices under demand.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use spillway_crds::hub::{EgressGateway, PortRange};
use spillway_e2e::eventually;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE, StoryPod};
use spillway_e2e::probe::Attempt;

const GATEWAY: &str = "frankfurt";
const EIP: &str = "203.0.113.18";

/// A node fills its slice, each flow from a port of its own to one destination. The slice grows before it is full: no flow
/// goes without an answer meanwhile, none leaves by a port that isn't granted, and afterwards the new ports are used.
pub(crate) async fn a_slice_grows_before_it_runs_out(fed: &Federation) -> Result<()> {
    let story = fed.story("slices").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", GATEWAY, EIP)
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;
    let first = granted(fed, pod.node()).await?;
    // Conntrack keeps a flow of one datagram and its answer for 30 s, so some bursts fill the slice.
    let burst = size(&first) / 2;
    ensure!(
        flows(&pod, burst).await?.iter().all(|port| within(&first, *port)),
        "a flow left by a port outside of {first:?}"
    );
    let grown = eventually(PATIENCE, "the slice has grown", || async {
        flows(&pod, burst).await?;
        let now = granted(fed, pod.node()).await?;
        ensure!(
            size(&now) >= 2 * size(&first),
            "it was {first:?} and is {now:?}, full as it is"
        );
        Ok(now)
    })
    .await?;
    eventually(PATIENCE, "new ports are used", || async {
        let used = flows(&pod, 200).await?;
        let strange = used.iter().find(|port| !within(&grown, **port));
        ensure!(strange.is_none(), "{strange:?} is none of {grown:?}");
        ensure!(
            used.iter().any(|port| !within(&first, *port)),
            "all of 200 flows left by the ports of before, {first:?}"
        );
        Ok(())
    })
    .await?;
    story.end().await
}

/// Ports of the node that new connections may use, as recorded on the hub.
async fn granted(fed: &Federation, node: &str) -> Result<Vec<PortRange>> {
    let object = fed.hub_object(&["egressgateway", GATEWAY]).await?;
    let gateway: EgressGateway = serde_json::from_value(object)?;
    let slices = gateway.status.unwrap_or_default().slices;
    let mut of_address = slices.iter().filter(|s| s.address == EIP).flat_map(|s| &s.slices);
    let slice = of_address
        .find(|s| s.node == node)
        .with_context(|| format!("{node} has no ports of {EIP}"))?;
    Ok(slice.ports.clone())
}

fn size(ranges: &[PortRange]) -> u32 {
    ranges.iter().map(|r| u32::from(r.last - r.first) + 1).sum()
}

fn within(ranges: &[PortRange], port: u16) -> bool {
    ranges.iter().any(|r| (r.first..=r.last).contains(&port))
}

/// One datagram each from `count` sockets, one after the other; the ports that the server outside saw. All are answered, and
/// come from the egress IP.
async fn flows(pod: &StoryPod<'_>, count: u32) -> Result<Vec<u16>> {
    let eip: IpAddr = EIP.parse()?;
    let said = pod
        .pod()
        .run(&[
            "probe",
            "watch",
            "udp",
            OUTSIDE,
            "--interval",
            "100us",
            "--timeout",
            "1s",
            "--count",
            &count.to_string(),
            "--tag",
            "slices",
            "--json",
        ])
        .await?
        .success()?;
    let mut ports = Vec::new();
    for line in said.lines() {
        let attempt: Attempt = serde_json::from_str(line)?;
        let source = attempt.src.with_context(|| format!("no answer: {attempt:?}"))?;
        ensure!(source.ip() == eip, "a flow left from {source}");
        ports.push(source.port());
    }
    ensure!(ports.len() == count as usize, "{} of {count} flows", ports.len());
    Ok(ports)
}

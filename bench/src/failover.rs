//! How long flows are silent across each fault of a gateway, and what is lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use spillway_e2e::federation::{Egress, Federation, Load, OUTSIDE, OUTSIDE_V6, Story, StoryPod};
use spillway_e2e::probe::{FlowKind, FlowsReport};
use spillway_e2e::wire::Direction;

use super::figures::Figures;

const SERVERS: [&str; 2] = ["198.51.100.10", "2001:db8:51::10"];
const GATEWAY: [&str; 2] = ["b-n1", "b-n2"];
const V4: &str = "203.0.113.30";
const V6: &str = "2001:db8:113::30";

/// To each of two servers, from each of two pods.
const LOAD: Load = Load {
    driven: 5,
    pushed: 5,
    udp: 3,
    icmp: 1,
    pace: Duration::from_millis(10),
};

/// What flows do undisturbed between faults, and how long they are watched without any.
const CALM: Duration = Duration::from_secs(2);

/// How long a take-over or a return may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(90);

/// What happens to the node that holds the egress IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    PowerOff,
    Hang,
    Cable,
    HalfOpen(Direction),
    Cordon,
}

impl Fault {
    const ALL: [Self; 7] = [
        Self::None,
        Self::PowerOff,
        Self::Hang,
        Self::Cable,
        Self::HalfOpen(Direction::Receive),
        Self::HalfOpen(Direction::Send),
        Self::Cordon,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::None => "no fault, for comparison",
            Self::PowerOff => "gateway node powered off",
            Self::Hang => "gateway node hung",
            Self::Cable => "gateway node's cable pulled",
            Self::HalfOpen(Direction::Receive) => "gateway node receives nothing",
            Self::HalfOpen(Direction::Send) => "gateway node's packets vanish",
            Self::Cordon => "gateway node cordoned",
        }
    }
}

/// All faults, `runs` times each.
#[expect(clippy::print_stderr, reason = "progress")]
pub(crate) async fn gaps(federation: &Federation, runs: usize, figures: &mut Figures) -> Result<()> {
    let story = federation.story("bench-failover").await?;
    story
        .apply(&format!(
            "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: bank}}
spec:
  pods: {{matchLabels: {{app: billing}}}}
  to: {{cidrs: [198.51.100.0/24, '2001:db8:51::/64']}}
  through: [{{gateway: pair, egressIP: {{ipv4: {V4}, ipv6: '{V6}'}}}}]
"
        ))
        .await?;
    let pods = [on(&story, "a-n1").await?, on(&story, "a-n2").await?];
    for fault in Fault::ALL {
        eprintln!("{}, {runs} times", fault.name());
        fault_by_fault(federation, &pods, fault, runs, figures)
            .await
            .with_context(|| fault.name())?;
    }
    story.end().await
}

async fn on<'a>(story: &Story<'a>, node: &str) -> Result<StoryPod<'a>> {
    let pod = story
        .pod_on("a", &format!("on-{node}"), "app=billing", node)
        .await?;
    pod.leaves_from_within(PATIENCE, OUTSIDE, Egress::Ip(V4)).await?;
    pod.leaves_from_within(PATIENCE, OUTSIDE_V6, Egress::Ip(V6))
        .await?;
    Ok(pod)
}

async fn fault_by_fault(
    federation: &Federation,
    pods: &[StoryPod<'_>],
    fault: Fault,
    runs: usize,
    figures: &mut Figures,
) -> Result<()> {
    let mut flows = Vec::new();
    for pod in pods {
        flows.push(pod.flows(&SERVERS, LOAD).await?);
    }
    let mut windows = Vec::new();
    for run in 1..=runs {
        let from = Timestamp::now().as_millisecond();
        strike(federation, pods, fault)
            .await
            .with_context(|| format!("run {run}"))?;
        windows.push((from, Timestamp::now().as_millisecond()));
    }
    let mut reports = Vec::new();
    for flow in flows {
        reports.push(flow.end().await?.report);
    }
    for (kind, label) in [
        (FlowKind::Udp, "UDP flow"),
        (FlowKind::Driven, "client-driven TCP connection"),
        (FlowKind::Pushed, "server-fed TCP connection"),
    ] {
        let longest: Vec<f64> = windows
            .iter()
            .map(|window| worst(&reports, kind, *window))
            .collect();
        let title = format!("longest gap of any 10 ms-paced {label}, {}", fault.name());
        figures.percentiles(&title, &longest, "ms", None);
    }
    let lost: usize = reports.iter().map(|report| report.broken().len()).sum();
    let held: usize = reports
        .iter()
        .map(|r| r.of(FlowKind::Driven).count() + r.of(FlowKind::Pushed).count())
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    figures.add(
        &format!("of {held} TCP connections lost in {runs} runs, {}", fault.name()),
        lost as f64,
        "connections",
    );
    Ok(())
}

/// The longest gap of any flow that began in the window, or just before it: a gap is dated by its last record.
fn worst(reports: &[FlowsReport], kind: FlowKind, (from, until): (i64, i64)) -> f64 {
    reports
        .iter()
        .filter_map(|report| report.longest_between(kind, from - 20, until))
        .map(|gap| gap.ms)
        .fold(0.0, f64::max)
}

/// One fault, until the other node carries everything and new connections work; then all as before.
async fn strike(federation: &Federation, pods: &[StoryPod<'_>], fault: Fault) -> Result<()> {
    if fault == Fault::None {
        tokio::time::sleep(CALM).await;
        return Ok(());
    }
    let holder = federation.one_holder_of(V4, &GATEWAY).await?;
    let node = federation.node(&holder)?;
    let cluster = federation.member_of(&holder)?;
    let outage = federation.power_outage(&holder).await?;
    match fault {
        Fault::None => {}
        Fault::PowerOff => outage.begin().await?,
        Fault::Hang => node.hang(true)?,
        Fault::Cable => node.cable(false)?,
        Fault::HalfOpen(direction) => node.half_open(Some(direction))?,
        Fault::Cordon => label(cluster, &holder, "spillway.io/cordon=true").await?,
    }
    let others: Vec<&str> = GATEWAY.into_iter().filter(|other| *other != holder).collect();
    let taken = async {
        federation.one_holder_of(V4, &others).await?;
        all_leave(pods).await
    }
    .await;
    match fault {
        Fault::None => {}
        Fault::PowerOff => outage.end().await?,
        Fault::Hang => node.hang(false)?,
        Fault::Cable => node.cable(true)?,
        Fault::HalfOpen(_) => node.half_open(None)?,
        Fault::Cordon => label(cluster, &holder, "spillway.io/cordon-").await?,
    }
    taken?;
    federation.one_holder_of(V4, &GATEWAY).await?;
    all_leave(pods).await?;
    // Damping would make the next fault another one than the first.
    tokio::time::sleep(CALM).await;
    Ok(())
}

async fn all_leave(pods: &[StoryPod<'_>]) -> Result<()> {
    for pod in pods {
        pod.leaves_from_within(PATIENCE, OUTSIDE, Egress::Ip(V4)).await?;
        pod.leaves_from_within(PATIENCE, OUTSIDE_V6, Egress::Ip(V6))
            .await?;
    }
    Ok(())
}

async fn label(cluster: &spillway_e2e::Cluster, node: &str, label: &str) -> Result<()> {
    let said = cluster.kubectl(&["label", "node", node, label]).await?;
    ensure!(said.contains("labeled"), "kubectl said {said:?}");
    Ok(())
}

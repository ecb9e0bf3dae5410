//! Many long-lived flows at once, each byte of them checked, through whatever happens on the way.
//!
//! ```text
//! run ── tcp       driven: client → server → client     pushed: server → client
//!     ├─ datagram  UDP from one port, ICMP echo with one identifier
//!     │   └ line   records that can't be changed, lost or displaced unnoticed · report: counts and gaps
//! serve            the server's side of the TCP ones
//! ```
//! Hundreds of connections that each wake a hundred times a second: one thread of tasks, unlike the rest of the probe.

mod datagram;
mod line;
mod report;
mod serve;
mod tcp;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};

pub use report::{FlowKind, FlowReport, FlowsReport, Gap};
pub(crate) use serve::serve;

use super::{ECHO_PORT, FLOW_PORT};

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Servers; each gets all of the flows below.
    pub(crate) to: Vec<IpAddr>,
    /// Added to every port.
    pub(crate) shift: u16,
    /// Connections on which the client sends.
    pub(crate) driven: u32,
    /// Connections on which the server sends.
    pub(crate) pushed: u32,
    /// Datagram flows.
    pub(crate) udp: u32,
    /// Echo request flows.
    pub(crate) icmp: u32,
    /// From one record of a flow to its next.
    pub(crate) pace: Duration,
    /// Text for the server's log.
    pub(crate) tag: String,
    /// Gaps shorter than this aren't listed.
    pub(crate) gap: Duration,
    /// How long until every flow must have had its first record.
    pub(crate) timeout: Duration,
    /// How long the last records may take to arrive after the end.
    pub(crate) drain: Duration,
}

/// One flow, as its task gets it.
struct Flow {
    plan: Rc<Plan>,
    kind: FlowKind,
    to: SocketAddr,
    /// Tells its records from all others'.
    seed: u32,
    /// Its place in the report.
    index: usize,
    /// Told once, after the first record.
    ready: mpsc::UnboundedSender<usize>,
    /// Turns true when it is time to end.
    stop: watch::Receiver<bool>,
}

impl Plan {
    fn kinds(&self) -> impl Iterator<Item = FlowKind> {
        [
            (FlowKind::Driven, self.driven),
            (FlowKind::Pushed, self.pushed),
            (FlowKind::Udp, self.udp),
            (FlowKind::Icmp, self.icmp),
        ]
        .into_iter()
        .flat_map(|(kind, count)| (0..count).map(move |_| kind))
    }

    fn target(&self, kind: FlowKind, to: IpAddr) -> SocketAddr {
        let port = match kind {
            FlowKind::Driven | FlowKind::Pushed => FLOW_PORT + self.shift,
            FlowKind::Udp => ECHO_PORT + self.shift,
            FlowKind::Icmp => 0,
        };
        SocketAddr::new(to, port)
    }
}

/// Starts all flows, calls `up` with their number once each had its first record, and ends them when `until` does.
///
/// # Errors
/// When a flow doesn't come up. One that breaks later is no error but a line of the report.
pub(crate) async fn run(
    plan: Plan,
    up: impl FnOnce(usize) -> anyhow::Result<()>,
    until: impl Future<Output = ()>,
) -> anyhow::Result<FlowsReport> {
    LocalSet::new().run_until(run_local(plan, up, until)).await
}

async fn run_local(
    plan: Plan,
    up: impl FnOnce(usize) -> anyhow::Result<()>,
    until: impl Future<Output = ()>,
) -> anyhow::Result<FlowsReport> {
    let plan = Rc::new(plan);
    let (ready, mut is_ready) = mpsc::unbounded_channel();
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut count = 0;
    for to in &plan.to {
        for kind in plan.kinds() {
            let flow = Flow {
                kind,
                to: plan.target(kind, *to),
                seed: std::process::id() << 12 ^ u32::try_from(count)?,
                index: count,
                ready: ready.clone(),
                stop: stopped.clone(),
                plan: Rc::clone(&plan),
            };
            // Not all in the same millisecond, now and in every period after.
            let offset = plan.pace / 16 * (u32::try_from(count % 16)?);
            count += 1;
            tasks.spawn_local(async move {
                tokio::time::sleep(offset).await;
                let index = flow.index;
                let report = match flow.kind {
                    FlowKind::Driven => tcp::driven(flow).await,
                    FlowKind::Pushed => tcp::pushed(flow).await,
                    FlowKind::Udp | FlowKind::Icmp => datagram::datagrams(flow).await,
                };
                (index, report)
            });
        }
    }
    drop(ready);
    let deadline = tokio::time::Instant::now() + plan.timeout;
    let mut reports = Vec::new();
    for waiting in (1..=count).rev() {
        tokio::select! {
            Some(_index) = is_ready.recv() => {}
            Some(ended) = tasks.join_next() => {
                let (_, report) = ended.context("a flow's task died")?;
                bail!(
                    "a {:?} flow to {} did not come up: {}",
                    report.kind,
                    report.to,
                    report.broken.as_deref().unwrap_or("it ended at once")
                );
            }
            () = tokio::time::sleep_until(deadline) => {
                bail!("{waiting} of {count} flows had no record within {:?}", plan.timeout);
            }
        }
    }
    let started = Instant::now();
    up(count)?;
    until.await;
    let seconds = report::milliseconds(started.elapsed()).round() / 1000.0;
    // All receivers may be gone: every flow broke.
    let _nobody_listens = stop.send(true);
    while let Some(ended) = tasks.join_next().await {
        reports.push(ended.context("a flow's task died")?);
    }
    reports.sort_by_key(|(index, _)| *index);
    Ok(FlowsReport {
        flows: reports.into_iter().map(|(_, report)| report).collect(),
        seconds,
    })
}

#[cfg(test)]
mod tests;

//! Long-lived flows out of pods, while things happen.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::{Federation, StoryPod};
use crate::probe::{FLOW_PORT, FlowReport, FlowsReport, Protocol};
use crate::scenario::Mark;

/// How long all flows of a pod may take to come up, and a report to be written: longer than the probe itself allows.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many flows a pod holds, to each of its servers.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// TCP connections on which the pod sends.
    pub driven: u32,
    /// TCP connections on which the server sends.
    pub pushed: u32,
    /// Datagram flows.
    pub udp: u32,
    /// Echo request flows.
    pub icmp: u32,
    /// From one record of a flow to its next.
    pub pace: Duration,
}

/// Flows that run until they are told to end.
pub struct Flows {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    tag: String,
    mark: Mark,
}

impl StoryPod<'_> {
    /// Starts flows to each server; returns when every one had its first record.
    pub async fn flows(&self, to: &[&str], load: Load) -> Result<Flows> {
        let tag = format!("{}-{}-flows", self.pod().namespace(), self.pod().name());
        let mark = self.federation().outside_mark()?;
        let numbers = [load.driven, load.pushed, load.udp, load.icmp].map(|n| n.to_string());
        let pace = format!("{}us", load.pace.as_micros());
        let mut command = vec!["probe", "flows"];
        command.extend(to);
        for (flag, value) in ["--driven", "--pushed", "--udp", "--icmp"].iter().zip(&numbers) {
            command.extend([*flag, value]);
        }
        command.extend(["--pace", &pace, "--tag", &tag]);
        let mut process = Command::from(self.pod().command(&command)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start flows")?;
        let mut lines = BufReader::new(process.stdout.take().context("the probe has no output")?).lines();
        let first = timeout(PATIENCE, lines.next_line())
            .await
            .context("flows don't come up")??;
        match first {
            Some(line) if line.starts_with("READY") => Ok(Flows {
                process,
                lines,
                tag,
                mark,
            }),
            _ => bail!("flows of {}: {}", self.pod().name(), said(&mut process).await),
        }
    }
}

async fn said(process: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut stderr) = process.stderr.take() {
        let _as_much_as_there_is = timeout(PATIENCE, stderr.read_to_string(&mut text)).await;
    }
    text.trim().to_owned()
}

impl Flows {
    /// Ends them, and says what became of each.
    pub async fn end(mut self) -> Result<Outcome> {
        let pid = self.process.id().context("the flows' process is gone")?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM).context("end flows")?;
        let line = timeout(PATIENCE, self.lines.next_line())
            .await
            .context("flows don't end")??;
        let Some(line) = line else {
            bail!("flows: {}", said(&mut self.process).await);
        };
        self.process.wait().await?;
        Ok(Outcome {
            report: serde_json::from_str(&line).context("the flows' report")?,
            tag: self.tag,
            mark: self.mark,
        })
    }
}

/// What became of a pod's flows, and where the outside server's record of them begins.
#[derive(Debug)]
pub struct Outcome {
    /// The client's report.
    pub report: FlowsReport,
    tag: String,
    mark: Mark,
}

impl Outcome {
    /// No TCP connection broke, and all of its bytes came, right and in order, at both ends.
    pub fn unbroken(&self) -> Result<()> {
        let broken = self.report.broken();
        ensure!(
            broken.is_empty(),
            "{} of {} flows broke: {:#?}",
            broken.len(),
            self.report.flows.len(),
            broken.iter().take(3).map(|flow| brief(flow)).collect::<Vec<_>>()
        );
        let silent = self.report.flows.iter().find(|flow| flow.received == 0);
        ensure!(silent.is_none(), "a flow carried nothing: {silent:?}");
        Ok(())
    }

    /// Every flow was seen from one of `addresses` and nowhere else, and each connection was opened once.
    pub fn only_from(&self, federation: &Federation, addresses: &[&str]) -> Result<()> {
        let wanted: BTreeSet<IpAddr> = addresses.iter().map(|a| a.parse()).collect::<Result<_, _>>()?;
        let told: BTreeSet<IpAddr> = self
            .report
            .flows
            .iter()
            .flat_map(|flow| flow.sources.iter().map(std::net::SocketAddr::ip))
            .collect();
        ensure!(told.is_subset(&wanted), "flows were seen from {told:?}");
        let moved = self.report.flows.iter().find(|flow| flow.sources.len() > 1);
        ensure!(moved.is_none(), "a flow was seen from several ports: {moved:?}");
        let noted = federation.arena().outside().tagged_since(self.mark, &self.tag)?;
        let strange: BTreeSet<_> = noted
            .iter()
            .filter(|record| !wanted.contains(&record.src))
            .map(|record| (record.proto, record.src.to_string()))
            .map(|(proto, src)| format!("{proto:?} from {src}"))
            .collect();
        ensure!(strange.is_empty(), "the outside server noted {strange:?}");
        let wrong = noted.iter().find(|record| record.payload.starts_with("wrong "));
        ensure!(
            wrong.is_none(),
            "the server got other bytes than were sent: {wrong:?}"
        );
        let opened = noted
            .iter()
            .filter(|r| r.proto == Protocol::Tcp && r.dport == FLOW_PORT)
            .count();
        let held = self
            .report
            .flows
            .iter()
            .filter(|flow| flow.to.port() == FLOW_PORT)
            .count();
        ensure!(
            opened == held,
            "{held} connections were held, and {opened} opened"
        );
        Ok(())
    }
}

fn brief(flow: &FlowReport) -> String {
    format!(
        "{:?} {:?} -> {} seen as {:?}: {} sent, {} received, {}",
        flow.kind,
        flow.from,
        flow.to,
        flow.sources,
        flow.sent,
        flow.received,
        flow.broken.as_deref().unwrap_or("bytes are missing")
    )
}

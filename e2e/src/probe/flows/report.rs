//! What became of flows.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// More gaps than this are no longer listed; the longest is told in any case.
const LISTED: usize = 5000;

/// How a flow sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowKind {
    /// A TCP connection; the client sends, the server echoes.
    Driven,
    /// A TCP connection; the server sends, the client only listens.
    Pushed,
    /// Datagrams from one source port, each answered.
    Udp,
    /// Echo requests with one identifier.
    Icmp,
}

/// A time without any record.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// When the record before it arrived, in Unix milliseconds.
    pub at: i64,
    /// From that record to the next, in milliseconds.
    pub ms: f64,
}

/// What became of one flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowReport {
    /// How it sent.
    pub kind: FlowKind,
    /// Where to; port 0 for ICMP.
    pub to: SocketAddr,
    /// The client's own end, as the client sees it; port 0 for ICMP.
    pub from: Option<SocketAddr>,
    /// As whom the server saw the client; none for ICMP, where only its log tells.
    pub sources: BTreeSet<SocketAddr>,
    /// Records that went out: the client's, or the server's own count where the server sends (0 until it has told).
    pub sent: u64,
    /// Records that came back, or came, each byte of them right.
    pub received: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Records that never came. Of a TCP connection that didn't break it is 0, or something is very wrong.
    pub lost: u64,
    /// Datagrams or replies that came more than once.
    #[serde(default)]
    pub repeated: u64,
    /// Why the connection is no more, or what was wrong with its bytes; for datagrams the first error.
    pub broken: Option<String>,
    /// The longest time without a record, the one from the last to the end included.
    pub longest: Option<Gap>,
    /// All that were at least as long as asked for, in order.
    pub gaps: Vec<Gap>,
}

/// What became of all flows of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowsReport {
    /// Each flow, in the order in which they were asked for.
    pub flows: Vec<FlowReport>,
    /// From the first record of all flows to the end.
    pub seconds: f64,
}

impl FlowsReport {
    /// The flows of a kind.
    pub fn of(&self, kind: FlowKind) -> impl Iterator<Item = &FlowReport> {
        self.flows.iter().filter(move |flow| flow.kind == kind)
    }

    /// TCP connections that broke, or whose bytes were wrong or missing.
    pub fn broken(&self) -> Vec<&FlowReport> {
        let tcp = |kind| matches!(kind, FlowKind::Driven | FlowKind::Pushed);
        self.flows
            .iter()
            .filter(|flow| tcp(flow.kind) && (flow.broken.is_some() || flow.lost > 0))
            .collect()
    }

    /// Datagrams and echo replies that never came.
    pub fn lost(&self) -> u64 {
        [FlowKind::Udp, FlowKind::Icmp]
            .into_iter()
            .flat_map(|kind| self.of(kind))
            .map(|flow| flow.lost)
            .sum()
    }

    /// The longest gap of any flow of a kind.
    pub fn longest(&self, kind: FlowKind) -> Option<Gap> {
        self.of(kind)
            .filter_map(|flow| flow.longest)
            .max_by(|a, b| a.ms.total_cmp(&b.ms))
    }

    /// The longest gap of a kind that began at or after one moment and before the other, in Unix milliseconds.
    pub fn longest_between(&self, kind: FlowKind, from: i64, until: i64) -> Option<Gap> {
        self.of(kind)
            .flat_map(|flow| &flow.gaps)
            .filter(|gap| (from..until).contains(&gap.at))
            .copied()
            .max_by(|a, b| a.ms.total_cmp(&b.ms))
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let ms = |kind| self.longest(kind).map_or(0.0, |gap| gap.ms);
        let tcp = self.of(FlowKind::Driven).count() + self.of(FlowKind::Pushed).count();
        format!(
            "{} of {tcp} connections lost; longest gap {:.0} ms driven, {:.0} ms pushed, {:.0} ms UDP, {:.0} ms ICMP; \
             {} of {} datagrams lost; {:.1} s",
            self.broken().len(),
            ms(FlowKind::Driven),
            ms(FlowKind::Pushed),
            ms(FlowKind::Udp),
            ms(FlowKind::Icmp),
            self.lost(),
            [FlowKind::Udp, FlowKind::Icmp]
                .into_iter()
                .flat_map(|kind| self.of(kind))
                .map(|flow| flow.sent)
                .sum::<u64>(),
            self.seconds
        )
    }
}

/// To the microsecond, so that a report reads back as it was written.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Measures the times between records.
#[derive(Debug)]
pub(super) struct Meter {
    /// Shortest gap that is listed.
    threshold: Duration,
    last: Option<(Instant, i64)>,
    longest: Option<Gap>,
    gaps: Vec<Gap>,
}

impl Meter {
    pub(super) fn new(threshold: Duration) -> Self {
        Self {
            threshold,
            last: None,
            longest: None,
            gaps: Vec::new(),
        }
    }

    /// Whether no record came yet.
    pub(super) fn is_new(&self) -> bool {
        self.last.is_none()
    }

    /// A record came, or the end did.
    pub(super) fn note(&mut self, now: Instant) {
        let stamp = Timestamp::now().as_millisecond();
        if let Some((before, at)) = self.last.replace((now, stamp)) {
            let length = now.saturating_duration_since(before);
            let gap = Gap {
                at,
                ms: milliseconds(length),
            };
            if self.longest.is_none_or(|longest| gap.ms > longest.ms) {
                self.longest = Some(gap);
            }
            if length >= self.threshold && self.gaps.len() < LISTED {
                self.gaps.push(gap);
            }
        }
    }

    /// The longest gap and all listed ones.
    pub(super) fn finish(self) -> (Option<Gap>, Vec<Gap>) {
        (self.longest, self.gaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_measured_between_records_and_short_ones_not_listed() {
        let mut meter = Meter::new(Duration::from_millis(50));
        let start = Instant::now();
        assert!(meter.is_new());
        for ms in [0, 10, 20, 320, 330, 390] {
            meter.note(start + Duration::from_millis(ms));
        }
        let (longest, gaps) = meter.finish();
        assert!((longest.unwrap().ms - 300.0).abs() < 0.001);
        assert_eq!(
            gaps.iter()
                .map(|gap| format!("{:.0}", gap.ms))
                .collect::<Vec<_>>(),
            ["300", "60"]
        );
    }
}

//! All sources together.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use spillway_crds::ConditionType;
use spillway_crds::condition::Verdict;
use spillway_crds::member::{ClusterNetworkSpec, RangeSource, SourceState, SourceStatus, StrayPod};

use super::found::{Found, parse};

/// Most ranges that one source may list.
const MAX_RANGES: usize = 4096;
/// Longest message of a source, in characters.
const MAX_MESSAGE: usize = 1024;

/// How reading a source went.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reading {
    /// Nobody knows yet.
    Pending,
    /// The cluster has no such thing.
    NotThere,
    /// The agent may not read it.
    Forbidden(String),
    /// It can't be read at all.
    Failed(String),
    /// It was read.
    Read(Found),
}

/// What [`combine`] decides.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// The ranges.
    pub spec: ClusterNetworkSpec,
    /// What each source gave, sorted.
    pub sources: Vec<SourceStatus>,
}

/// Puts the sources together. `None` while one is pending: written without it, a range that was known before the
/// agent's restart would be gone for a moment. A source that failed, or of which a part can't be used, keeps what it
/// gave before; one that isn't there any more gives nothing.
pub fn combine(previous: Option<&ClusterNetworkSpec>, readings: BTreeMap<&str, Reading>) -> Option<Outcome> {
    let mut outcome = Outcome::default();
    for (source, reading) in readings {
        let before = || -> BTreeSet<IpNet> {
            let sources = previous.iter().flat_map(|p| &p.sources);
            sources
                .filter(|s| s.source == source)
                .flat_map(|s| s.cidrs.iter().filter_map(|c| parse(c)))
                .collect()
        };
        let (state, mut ranges, mut message) = match reading {
            Reading::Pending => return None,
            Reading::NotThere => (SourceState::NotThere, BTreeSet::new(), String::new()),
            Reading::Forbidden(why) => (SourceState::Forbidden, before(), why),
            Reading::Failed(why) => (SourceState::Failed, before(), why),
            Reading::Read(found) if found.faults.is_empty() => {
                (SourceState::Read, found.ranges, String::new())
            }
            Reading::Read(found) => {
                let ranges = found.ranges.union(&before()).copied().collect();
                (SourceState::Faulty, ranges, found.faults.join("; "))
            }
        };
        if let Some(dropped) = bound(&mut ranges) {
            message = format!("{dropped} ranges are left out, as there is room for {MAX_RANGES}; {message}");
        }
        outcome.sources.push(SourceStatus {
            source: source.into(),
            state: if message.is_empty() || state != SourceState::Read {
                state
            } else {
                SourceState::Faulty
            },
            ranges: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
            message: message.chars().take(MAX_MESSAGE).collect(),
        });
        if !ranges.is_empty() {
            outcome.spec.sources.push(RangeSource {
                source: source.into(),
                cidrs: ranges.iter().map(ToString::to_string).collect(),
            });
        }
    }
    Some(outcome)
}

/// Neighbouring ranges are merged only where there are too many to list one by one. Answers how many are still too
/// many and were dropped.
fn bound(ranges: &mut BTreeSet<IpNet>) -> Option<usize> {
    if ranges.len() <= MAX_RANGES {
        return None;
    }
    let mut merged = IpNet::aggregate(&ranges.iter().copied().collect());
    merged.sort_unstable();
    let over = merged.len().saturating_sub(MAX_RANGES);
    merged.truncate(MAX_RANGES);
    *ranges = merged.into_iter().collect();
    (over > 0).then_some(over)
}

/// The condition `RangesComplete`. `strays` are pods by the node that tells of them.
pub fn verdict(sources: &[SourceStatus], strays: &[(&str, &StrayPod)]) -> Verdict {
    const FIX: &str = "give the range by hand in localRanges of the member's chart, or with \
                       `spillway join --set localRanges={CIDR}`";
    let kind = ConditionType::RangesComplete;
    let cut = |message: String| message.chars().take(4000).collect::<String>();
    if let Some((node, stray)) = strays.first() {
        let more = match strays.len() - 1 {
            0 => String::new(),
            n => format!(" ({n} more like it)"),
        };
        let message = format!(
            "pod {}/{} on node {node} has the address {}, which is in no known range of this cluster{more}: policies \
             take packets to it for egress; {FIX}",
            stray.namespace, stray.name, stray.address
        );
        return Verdict::no(kind, "RangesIncomplete", cut(message));
    }
    let trouble = |state| {
        sources
            .iter()
            .filter(move |s| s.state == state)
            .collect::<Vec<_>>()
    };
    for (state, reason, what) in [
        (SourceState::Faulty, "SourceFaulty", "not all of it can be used"),
        (SourceState::Failed, "SourceFailed", "it can't be read"),
        (
            SourceState::Forbidden,
            "SourceForbidden",
            "the agent may not read it",
        ),
    ] {
        let troubled = trouble(state);
        if let Some(first) = troubled.first() {
            let others: Vec<&str> = troubled.iter().skip(1).map(|s| s.source.as_str()).collect();
            let others = if others.is_empty() {
                String::new()
            } else {
                format!(" (and {})", others.join(", "))
            };
            let message = format!(
                "{}: {what}: {}{others}. Ranges that it gave before stay; if one is missing, {FIX}",
                first.source, first.message
            );
            return Verdict::no(kind, reason, cut(message));
        }
    }
    let (read, ranges) = sources
        .iter()
        .filter(|s| s.ranges > 0)
        .fold((0, 0), |(n, r), s| (n + 1, r + s.ranges));
    Verdict::yes(kind, "Complete", format!("{ranges} ranges from {read} sources"))
}

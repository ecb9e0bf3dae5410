//! What becomes of packets to some addresses: one verdict for all of them, or one by protocol and port.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::interval::Family;
use crate::ports::{PROTOCOLS, PortClaim, number};

/// What becomes of packets to some addresses.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub enum Outcome<V> {
    /// Whatever their protocol and port.
    Any(V),
    /// By protocol and port. Shared, since many addresses have the same.
    ByPort(Arc<ByPort<V>>),
}

/// Verdicts by protocol and port. Where there is none, packets are left alone.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ByPort<V> {
    /// Ranges whose verdict isn't `rest`, sorted and disjoint, neighbours of one verdict merged. Never empty.
    pub ports: Vec<(PortSpan, Option<V>)>,
    /// That of everything else, protocols without ports included.
    pub rest: Option<V>,
}

impl<V> ByPort<V> {
    /// Whether some packets are left alone.
    pub fn leaves_alone(&self) -> bool {
        self.rest.is_none() || self.ports.iter().any(|(_, verdict)| verdict.is_none())
    }
}

/// A range of destination ports of one protocol.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct PortSpan {
    /// The protocol's number.
    pub protocol: u8,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl PortSpan {
    fn overlaps(self, other: Self) -> bool {
        self.protocol == other.protocol && self.first <= other.last && other.first <= self.last
    }
}

/// A policy's claim on ports of some addresses.
pub(super) struct Contender<'c, V> {
    /// Of the prefix around the addresses: the least goes first.
    pub(super) shortness: u8,
    /// The policy's place in the order of all.
    pub(super) rank: usize,
    pub(super) ports: &'c [PortClaim],
    pub(super) verdict: Option<V>,
}

impl<V: Copy + Eq> Outcome<V> {
    /// What the claims of `contenders` come to in packets of `family`, where `rest` is the verdict on all that they don't
    /// claim. Of claims on one port that with the longest prefix wins, then that on the fewest ports, then the first in
    /// the order. `None` where everything is left alone.
    pub(super) fn of(contenders: &[Contender<'_, V>], rest: Option<V>, family: Family) -> Option<Self> {
        let mut ports: Vec<(PortSpan, Option<V>)> = Vec::new();
        for protocol in PROTOCOLS {
            let mut events = Vec::new();
            for (place, contender) in contenders.iter().enumerate() {
                let claims = contender.ports.iter().enumerate();
                for (serial, claim) in claims.filter(|(_, c)| c.protocol == protocol) {
                    let key = (contender.shortness, claim.width(), contender.rank, place, serial);
                    events.push((u32::from(claim.first), true, key));
                    events.push((u32::from(claim.last) + 1, false, key));
                }
            }
            events.sort_unstable();
            let mut open = BTreeSet::new();
            let mut events = events.into_iter().peekable();
            while let Some((at, ..)) = events.peek().copied() {
                while let Some((_, starts, key)) = events.next_if(|(next, ..)| *next == at) {
                    if starts {
                        open.insert(key);
                    } else {
                        open.remove(&key);
                    }
                }
                let (Some((.., place, _)), Some((next, ..))) = (open.first(), events.peek()) else {
                    continue;
                };
                let verdict = contenders[*place].verdict;
                let port = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
                let span = PortSpan {
                    protocol: number(protocol, family),
                    first: port(at),
                    last: port(next - 1),
                };
                push(&mut ports, span, verdict, rest);
            }
        }
        Self::new(ports, rest)
    }

    fn new(mut ports: Vec<(PortSpan, Option<V>)>, rest: Option<V>) -> Option<Self> {
        if ports.is_empty() {
            return rest.map(Self::Any);
        }
        ports.sort_unstable_by_key(|(span, _)| *span);
        Some(Self::ByPort(Arc::new(ByPort { ports, rest })))
    }

    /// The verdict on packets of this protocol to this port; 0 where the protocol has no ports.
    pub fn on(&self, protocol: u8, port: u16) -> Option<V> {
        match self {
            Self::Any(verdict) => Some(*verdict),
            Self::ByPort(by_port) => {
                let mut found = by_port.ports.iter();
                let holds = |s: &PortSpan| s.protocol == protocol && s.first <= port && port <= s.last;
                found
                    .find(|(span, _)| holds(span))
                    .map_or(by_port.rest, |(_, verdict)| *verdict)
            }
        }
    }

    /// Every verdict in it, some of them several times.
    pub fn verdicts(&self) -> impl Iterator<Item = V> {
        let (any, by_port) = match self {
            Self::Any(verdict) => (Some(*verdict), None),
            Self::ByPort(by_port) => (by_port.rest, Some(&by_port.ports)),
        };
        let ports = by_port.into_iter().flatten().filter_map(|(_, verdict)| *verdict);
        any.into_iter().chain(ports)
    }

    /// The same with other verdicts.
    pub fn map<W: Copy + Eq>(&self, change: impl Fn(V) -> W) -> Option<Outcome<W>> {
        match self {
            Self::Any(verdict) => Some(Outcome::Any(change(*verdict))),
            Self::ByPort(by_port) => {
                let rest = by_port.rest.map(&change);
                let mut ports = Vec::new();
                for (span, verdict) in &by_port.ports {
                    push(&mut ports, *span, verdict.map(&change), rest);
                }
                Outcome::new(ports, rest)
            }
        }
    }

    /// The verdicts in it on packets that `other` has one on.
    pub fn within<W>(&self, other: &Outcome<W>) -> Vec<V> {
        let Outcome::ByPort(other) = other else {
            return self.verdicts().collect();
        };
        let Self::ByPort(by_port) = self else {
            return self.verdicts().collect();
        };
        // All that `other` leaves alone is between its ranges, so that of these only those with a verdict count.
        if other.rest.is_some() {
            return self.verdicts().collect();
        }
        let mut out = Vec::new();
        for (span, _) in other.ports.iter().filter(|(_, verdict)| verdict.is_some()) {
            let mut covered = 0_u32;
            for (mine, verdict) in by_port.ports.iter().filter(|(mine, _)| mine.overlaps(*span)) {
                covered += u32::from(mine.last.min(span.last)) - u32::from(mine.first.max(span.first)) + 1;
                out.extend(*verdict);
            }
            if covered <= u32::from(span.last) - u32::from(span.first) {
                out.extend(by_port.rest);
            }
        }
        out
    }
}

/// Adds a range behind all that are there of its protocol.
fn push<V: Copy + Eq>(
    ports: &mut Vec<(PortSpan, Option<V>)>,
    span: PortSpan,
    verdict: Option<V>,
    rest: Option<V>,
) {
    if verdict == rest {
        return;
    }
    match ports.last_mut() {
        Some((top, v))
            if *v == verdict
                && top.protocol == span.protocol
                && u32::from(top.last) + 1 == u32::from(span.first) =>
        {
            top.last = span.last;
        }
        _ => ports.push((span, verdict)),
    }
}

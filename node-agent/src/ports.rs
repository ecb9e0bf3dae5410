//! How full this node's port slices are, and which of those that are to go are empty.
//!
//! ```text
//!  agent ── shares in the kernel ──► every 5 s: Kernel::port_use ──► Book ──► status, where a level changed
//! ```
//!
//! A port serves one connection a destination, so the destination with most of them decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use spillway_core::node::inputs::NodeInputs;
use spillway_crds::hub::{PortLevel, PortRange, PortUse, Translation};
use spillway_dataplane::{Kernel, PortCount};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::observed::{self, Observed};

/// How often connections are counted.
pub(crate) const PERIOD: Duration = Duration::from_secs(5);

/// How long a slice must be hardly used to count as idle.
const IDLE_AFTER: Duration = Duration::from_mins(10);

/// Percent of the ports in use from which a level holds, and below which it holds no longer.
const HIGH: (u64, u64) = (75, 60);
const FULL: (u64, u64) = (95, 85);
/// Percent below which a slice is hardly used, and from which it isn't idle any more.
const IDLE: (u64, u64) = (10, 25);

/// What this node has of one egress IP.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Share {
    /// Ranges for new connections.
    ports: Vec<PortRange>,
    /// Ranges that only older connections have.
    draining: Vec<PortRange>,
}

impl Share {
    /// Ports for new connections.
    fn usable(&self) -> u64 {
        let size = |range: &PortRange| u64::from(range.last.saturating_sub(range.first)) + 1;
        self.ports.iter().map(size).sum()
    }
}

/// What this node has of all egress IPs.
pub(crate) type Shares = BTreeMap<IpAddr, Share>;

/// The shares that `inputs` give their node.
pub(crate) fn shares(inputs: &NodeInputs) -> Shares {
    let mut out = Shares::new();
    let Some(plan) = &inputs.plan else { return out };
    let stateless = |g: &&_| {
        let gateway: &spillway_crds::member::PlannedGatewaySpec = g;
        gateway.translation == Translation::SourceNode
    };
    for slices in plan.gateways.iter().filter(stateless).flat_map(|g| &g.slices) {
        let Ok(address) = slices.address.parse() else {
            continue;
        };
        let own =
            |s: &&spillway_crds::hub::PortSlice| s.member == plan.member.member && s.node == inputs.node;
        for slice in slices.slices.iter().filter(own) {
            let share: &mut Share = out.entry(address).or_default();
            share.ports.extend(&slice.ports);
            share.draining.extend(&slice.draining);
        }
    }
    out
}

/// What was found of one egress IP so far.
#[derive(Clone, Debug, Default)]
struct Gauge {
    level: PortLevel,
    /// Since when it has hardly been used.
    quiet_since: Option<Instant>,
    /// Draining ranges in which the last count found nothing.
    empty: BTreeSet<PortRange>,
}

impl Gauge {
    /// Takes a count of `busiest` connections over `usable` ports.
    fn measure(&mut self, busiest: u32, usable: u64, now: Instant) {
        let percent = (u64::from(busiest) * 100).checked_div(usable).unwrap_or_default();
        let was = self.level;
        let holds = |(from, until): (u64, u64), level| percent >= from || (was >= level && percent >= until);
        let quiet = percent < IDLE.0 || (was == PortLevel::Idle && percent < IDLE.1);
        self.quiet_since = quiet.then(|| self.quiet_since.unwrap_or(now));
        let long = |since: Instant| now.duration_since(since) >= IDLE_AFTER;
        self.level = if holds(FULL, PortLevel::Full) {
            PortLevel::Full
        } else if holds(HIGH, PortLevel::High) {
            PortLevel::High
        } else if self.quiet_since.is_some_and(long) {
            PortLevel::Idle
        } else {
            PortLevel::Normal
        };
    }
}

/// All gauges.
#[derive(Debug, Default)]
struct Book(BTreeMap<IpAddr, Gauge>);

impl Book {
    /// Takes the counts of `shares`, in their order, with the ranges for new connections first.
    fn enter(&mut self, shares: &Shares, counts: &[PortCount], now: Instant) -> Vec<PortUse> {
        self.0.retain(|address, _| shares.contains_key(address));
        let entry = |((address, share), count): ((&IpAddr, &Share), &PortCount)| {
            let gauge = self.0.entry(*address).or_default();
            let usable = share.usable();
            gauge.measure(count.busiest, usable, now);
            let connections = count.connections.iter().skip(share.ports.len());
            let empty: BTreeSet<PortRange> = share
                .draining
                .iter()
                .zip(connections)
                .filter(|(_, connections)| **connections == 0)
                .map(|(range, _)| *range)
                .collect();
            // A connection may have been on its way into the kernel's table while that was read the first time.
            let vacated = empty.intersection(&gauge.empty).copied().collect();
            gauge.empty = empty;
            PortUse {
                address: address.to_string(),
                level: gauge.level,
                measured: u16::try_from(usable).unwrap_or(u16::MAX),
                vacated,
            }
        };
        shares.iter().zip(counts).map(entry).collect()
    }
}

/// What metrics say of these counts.
fn gauges(shares: &Shares, counts: &[PortCount]) -> Vec<observed::PortUse> {
    let gauge = |((address, share), count): ((&IpAddr, &Share), &PortCount)| observed::PortUse {
        address: *address,
        granted: share.usable(),
        used: count.busiest,
    };
    shares.iter().zip(counts).map(gauge).collect()
}

/// Counts for ever, every `period`. Nothing is said before the first count; then what changes.
pub(crate) async fn count<K: Kernel>(
    kernel: K,
    period: Duration,
    mut shares: watch::Receiver<Shares>,
    said: watch::Sender<Option<Vec<PortUse>>>,
    observed: Observed,
) {
    let mut book = Book::default();
    loop {
        // What is counted stands in the kernel already: only older connections are left in what drains.
        let now = shares.borrow_and_update().clone();
        let asked: Vec<(IpAddr, Vec<PortRange>)> = now
            .iter()
            .map(|(address, share)| (*address, [&share.ports[..], &share.draining].concat()))
            .collect();
        let counts = if asked.is_empty() {
            Ok(Vec::new())
        } else {
            kernel.port_use(&asked).await
        };
        match counts {
            Ok(counts) => {
                observed.counted(gauges(&now, &counts));
                let report = Some(book.enter(&now, &counts, Instant::now()));
                said.send_if_modified(|old| {
                    let changed = *old != report;
                    *old = report;
                    changed
                });
            }
            Err(error) => tracing::warn!(%error, "the use of port slices can't be counted"),
        }
        let again = async {
            if now.is_empty() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(period).await;
        };
        tokio::select! {
            event = shares.changed() => if event.is_err() { return },
            () = again => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spillway_core::node::fixtures;
    use spillway_dataplane::RecordingKernel;

    use super::*;

    fn level(gauge: &mut Gauge, busiest: u32, now: Instant) -> PortLevel {
        gauge.measure(busiest, 1000, now);
        gauge.level
    }

    #[test]
    fn a_level_holds_until_it_is_clearly_left() {
        use PortLevel::{Full, High, Normal};
        let now = Instant::now();
        let mut gauge = Gauge::default();
        for (busiest, expected) in [
            (740, Normal),
            (750, High),
            (610, High),
            (590, Normal),
            (960, Full),
            (860, Full),
            (840, High),
            (950, Full),
            (500, Normal),
        ] {
            assert_eq!(level(&mut gauge, busiest, now), expected, "{busiest} of 1000");
        }
        gauge.measure(5, 0, now);
        assert_eq!(gauge.level, Normal, "without a port nothing is scarce yet");
    }

    #[test]
    fn idle_is_who_was_so_for_long() {
        use PortLevel::{Idle, Normal};
        let begin = Instant::now();
        let at = |minutes| begin + Duration::from_mins(minutes);
        let mut gauge = Gauge::default();
        for (minute, busiest, expected) in [
            (0, 5, Normal),
            (9, 5, Normal),
            (10, 150, Normal),
            (11, 5, Normal),
            (20, 5, Normal),
            (21, 99, Idle),
            (22, 240, Idle),
            (23, 250, Normal),
            (24, 99, Normal),
        ] {
            assert_eq!(
                level(&mut gauge, busiest, at(minute)),
                expected,
                "minute {minute}"
            );
        }
    }

    #[test]
    fn a_range_is_vacated_when_it_was_twice_found_empty() {
        let range = |first| PortRange {
            first,
            last: first + 63,
        };
        let address: IpAddr = "203.0.113.10".parse().expect("address");
        let share = Share {
            ports: vec![range(1024)],
            draining: vec![range(2048), range(4096)],
        };
        let shares: Shares = [(address, share)].into();
        let mut book = Book::default();
        let mut vacated = |connections: [u32; 3]| {
            let counts = [PortCount {
                connections: connections.to_vec(),
                busiest: 0,
            }];
            book.enter(&shares, &counts, Instant::now())[0].vacated.clone()
        };
        assert_eq!(vacated([9, 1, 0]), []);
        assert_eq!(vacated([9, 0, 0]), [range(4096)]);
        assert_eq!(vacated([9, 0, 1]), [range(2048)], "somebody came back");
        assert_eq!(vacated([0, 0, 0]), [range(2048)]);
        assert_eq!(vacated([0, 0, 0]), [range(2048), range(4096)]);
    }

    #[test]
    fn shares_are_this_nodes_own() {
        let shares = shares(&fixtures::stateless_both());
        let own = PortRange {
            first: 16384,
            last: 32767,
        };
        assert_eq!(shares.len(), 2);
        assert!(shares.values().all(|s| s.ports == [own] && s.draining.is_empty()));
        assert!(
            super::shares(&fixtures::both()).is_empty(),
            "a gateway that translates"
        );
    }

    #[tokio::test]
    async fn only_changes_are_said() {
        let kernel = Arc::new(RecordingKernel::default());
        let (shares, of) = watch::channel(Shares::new());
        let (said, mut hear) = watch::channel(None);
        let observed = Observed::new(&mut spillway_telemetry::Book::default());
        tokio::spawn(count(
            kernel.clone(),
            Duration::from_millis(1),
            of,
            said,
            observed,
        ));
        hear.changed().await.expect("said");
        assert_eq!(*hear.borrow_and_update(), Some(Vec::new()), "nothing to count");
        let range = PortRange {
            first: 1024,
            last: 2023,
        };
        let share = Share {
            ports: vec![range],
            draining: Vec::new(),
        };
        let busiest = |busiest| {
            kernel.set_port_use(vec![PortCount {
                connections: vec![busiest],
                busiest,
            }]);
        };
        busiest(10);
        shares.send_replace([("203.0.113.10".parse().expect("address"), share)].into());
        hear.changed().await.expect("said");
        let level = |said: &Option<Vec<PortUse>>| said.as_ref().map(|u| u[0].level);
        assert_eq!(level(&hear.borrow_and_update()), Some(PortLevel::Normal));
        busiest(800);
        hear.changed().await.expect("said");
        assert_eq!(
            level(&hear.borrow_and_update()),
            Some(PortLevel::High),
            "the next thing said, after many counts of the same"
        );
    }
}

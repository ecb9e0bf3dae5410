//! What this agent measures. Counting is done where things happen; what is a state is noted as a value that costs
//! nothing to keep, and becomes metrics when somebody scrapes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spillway_core::node::drops::{DropReason, dropping};
use spillway_core::node::gateways::Liveness;
use spillway_core::node::state::DesiredState;
use spillway_crds::member::NodeRef;
use spillway_dataplane::nft::stamp;
use spillway_dataplane::{Changes, Kernel, RuleCount};
use spillway_telemetry::Book;
use spillway_telemetry::node::{NodeMetrics, REPAIRS};

/// One egress IP's ports on this node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PortUse {
    pub(crate) address: IpAddr,
    /// Ports for new connections.
    pub(crate) granted: u64,
    /// Of these, taken towards the destination that takes most.
    pub(crate) used: u32,
}

/// States, as they are now.
#[derive(Debug, Default)]
struct Shown {
    /// What the kernel was last told and took.
    desired: Option<Arc<DesiredState>>,
    plan_current: bool,
    ports: Vec<PortUse>,
    probed: BTreeSet<NodeRef>,
    liveness: Liveness,
    drops: Drops,
}

/// The metrics and what fills them. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) metrics: NodeMetrics,
    shown: Arc<Mutex<Shown>>,
}

impl Observed {
    /// Declares the metrics in `book`.
    pub(crate) fn new(book: &mut Book) -> Self {
        Self {
            metrics: NodeMetrics::new(book),
            shown: Arc::default(),
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel was brought from one state to the next, or compared.
    pub(crate) fn applied(&self, took: Duration, changed: bool, cut: usize) {
        self.metrics.apply.observe(took.as_secs_f64());
        let result = if changed { "changed" } else { "unchanged" };
        self.metrics.applies.inc([result]);
        self.metrics.cut.inc_by(u64::try_from(cut).unwrap_or_default());
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.metrics.applied_at.set(now.map_or(0.0, |n| n.as_secs_f64()));
    }

    /// The kernel refused.
    pub(crate) fn refused(&self, took: Duration) {
        self.metrics.apply.observe(took.as_secs_f64());
        self.metrics.applies.inc(["failed"]);
    }

    /// What the kernel has, as far as is known.
    pub(crate) fn holds(&self, desired: Option<Arc<DesiredState>>, plan_current: bool) {
        let mut shown = self.shown();
        shown.desired = desired;
        shown.plan_current = plan_current;
    }

    /// Others had changed what is ours.
    pub(crate) fn repaired(&self, found: &Changes) {
        for change in found {
            self.metrics.repairs.inc([kind(&change.object)]);
        }
    }

    /// Ports were counted.
    pub(crate) fn counted(&self, ports: Vec<PortUse>) {
        self.shown().ports = ports;
    }

    /// The prober's opinion has changed.
    pub(crate) fn judged(&self, probed: BTreeSet<NodeRef>, liveness: Liveness) {
        let mut shown = self.shown();
        shown.probed = probed;
        shown.liveness = liveness;
    }

    /// Brings the states up to date. The kernel's counters are read here and nowhere else.
    pub(crate) async fn refresh(&self, kernel: &impl Kernel) {
        match kernel.counts().await {
            Ok(counts) => self.dropped(&counts),
            Err(error) => tracing::debug!(%error, "the kernel's counters can't be read"),
        }
        let shown = self.shown();
        let metrics = &self.metrics;
        metrics.plan_current.set(f64::from(u8::from(shown.plan_current)));
        let desired = shown.desired.as_deref();
        metrics
            .selected
            .set(count(desired.map_or(0, |d| d.flows.pods.len())));
        let mut held: BTreeMap<&String, usize> = BTreeMap::new();
        for gateway in desired.iter().flat_map(|d| d.held.values()) {
            *held.entry(gateway).or_default() += 1;
        }
        metrics
            .held
            .replace(held.into_iter().map(|(gateway, n)| ([gateway.clone()], count(n))));
        let ports = shown.ports.iter().flat_map(|p| {
            let granted = u32::try_from(p.granted).unwrap_or(u32::MAX);
            [("granted", granted), ("used", p.used)]
                .map(|(state, n)| ([p.address.to_string(), state.to_owned()], f64::from(n)))
        });
        metrics.ports.replace(ports);
        let known = [
            ("alive", &shown.liveness.alive),
            ("dead", &shown.liveness.dead),
            ("retiring", &shown.liveness.retiring),
        ];
        let judged = |node: &&NodeRef| known.iter().any(|(_, set)| set.contains(*node));
        let unknown = shown.probed.iter().filter(|n| !judged(n)).count();
        let of_probed = |set: &BTreeSet<NodeRef>| set.intersection(&shown.probed).count();
        let peers = known.map(|(state, set)| (state, of_probed(set)));
        let peers = peers.into_iter().chain([("unknown", unknown)]);
        metrics
            .peers
            .replace(peers.map(|(state, n)| ([state.to_owned()], count(n))));
    }

    fn dropped(&self, counts: &[RuleCount]) {
        let mut shown = self.shown();
        let Shown { desired, drops, .. } = &mut *shown;
        let Some(desired) = desired.as_deref() else {
            return;
        };
        for (reason, [packets, bytes]) in drops.since(desired, counts) {
            self.metrics.dropped.add([reason.as_str()], packets);
            self.metrics.dropped_bytes.add([reason.as_str()], bytes);
        }
    }
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

/// The kind of a changed object: its first word, where that is one that is known.
fn kind(object: &str) -> &'static str {
    let word = object.split(' ').next().unwrap_or_default();
    REPAIRS.into_iter().find(|k| *k == word).unwrap_or("other")
}

/// A rule: family, table, chain, stamp.
type Place = [String; 4];

/// What the kernel's counters, of packets and of bytes, said last. A rule that was written anew counts from 0 again; what it had counted since
/// the last look is lost.
#[derive(Debug, Default)]
struct Drops(BTreeMap<Place, [u64; 2]>);

impl Drops {
    /// What was dropped since the last look, by the reasons of the rules in `desired`.
    fn since(&mut self, desired: &DesiredState, counts: &[RuleCount]) -> BTreeMap<DropReason, [u64; 2]> {
        let reasons: BTreeMap<Place, DropReason> = dropping(desired)
            .map(|d| {
                let place = [&d.table.family, &d.table.table, d.chain].map(str::to_owned);
                let [family, table, chain] = place;
                ([family, table, chain, stamp(d.rule)], d.reason)
            })
            .collect();
        let mut now: BTreeMap<Place, [u64; 2]> = BTreeMap::new();
        for count in counts {
            let RuleCount {
                family,
                table,
                chain,
                stamp,
                packets,
                bytes,
            } = count;
            let place = [family, table, chain, stamp].map(Clone::clone);
            let [all, size] = now.entry(place).or_default();
            *all += packets;
            *size += bytes;
        }
        let mut out: BTreeMap<DropReason, [u64; 2]> = BTreeMap::new();
        for (place, counted) in &now {
            let Some(reason) = reasons.get(place) else {
                continue;
            };
            let before = self.0.get(place).copied().unwrap_or_default();
            let anew = counted[0] < before[0];
            let sums = out.entry(*reason).or_default();
            for (sum, (now, before)) in sums.iter_mut().zip(counted.iter().zip(before)) {
                *sum += if anew { *now } else { now.saturating_sub(before) };
            }
        }
        self.0 = now;
        out
    }
}

#[cfg(test)]
mod tests {
    use spillway_core::node::{compile, fixtures};
    use spillway_crds::hub::Bandwidth;
    use spillway_dataplane::RecordingKernel;
    use spillway_telemetry::{Health, Metrics, routes, text};

    use super::*;

    /// The counters of the first rule that drops for each reason.
    fn counts(desired: &DesiredState, packets: u64) -> Vec<RuleCount> {
        let mut seen = BTreeSet::new();
        dropping(desired)
            .filter(|d| seen.insert(d.reason))
            .map(|d| RuleCount {
                family: d.table.family.clone(),
                table: d.table.table.clone(),
                chain: d.chain.into(),
                stamp: stamp(d.rule),
                packets,
                bytes: packets * 100,
            })
            .collect()
    }

    #[test]
    fn a_counter_that_began_anew_is_no_step_back() {
        let desired = compile(&fixtures::stateless_both());
        let mut drops = Drops::default();
        let mut blocked = |packets| drops.since(&desired, &counts(&desired, packets))[&DropReason::Blocked];
        assert_eq!(blocked(10), [10, 1_000], "counted before this agent began");
        assert_eq!(blocked(12), [2, 200]);
        assert_eq!(blocked(12), [0, 0]);
        assert_eq!(blocked(5), [5, 500], "the rule was written anew");
    }

    #[test]
    fn kinds_of_repairs_are_the_words_of_show() {
        assert_eq!(kind("element pods4 { 10.0.0.1 }"), "element");
        assert_eq!(kind("route 203.0.113.10/32 dev spillway0 table 254"), "route");
        assert_eq!(kind("net/ipv4/conf/spillway0/rp_filter = 2"), "other");
    }

    /// All that a large node says, read back: what each metric promises of its series holds.
    #[tokio::test]
    async fn a_scrape_says_what_there_is_and_its_series_are_bounded() {
        let mut book = Book::default();
        let observed = Observed::new(&mut book);
        let kernel = Arc::new(RecordingKernel::default());
        let mut inputs = fixtures::stateless_both();
        inputs.plan.as_mut().expect("a plan").policies[0].bandwidth = Some(Bandwidth {
            rate: "50M".into(),
            burst: None,
        });
        let mut desired = compile(&inputs);
        for n in 0..5_000_u32 {
            let address = IpAddr::from(u32::to_be_bytes(0xcb00_0000 + n));
            desired.held.insert(address, format!("g{}", n % 3));
        }
        kernel.set_counts(counts(&desired, 7));
        let pods = desired.flows.pods.len();
        observed.holds(Some(Arc::new(desired)), true);
        observed.applied(Duration::from_millis(3), true, 2);
        observed.refused(Duration::from_millis(1));
        let ports = (0..5_000_u32).map(|n| PortUse {
            address: IpAddr::from(u32::to_be_bytes(0xcb00_0000 + n)),
            granted: 32_768,
            used: 5,
        });
        observed.counted(ports.collect());
        let [a, b, c] = ["a", "b", "c"].map(|n| NodeRef::new("m", n));
        let liveness = Liveness {
            alive: [a.clone()].into(),
            dead: [b.clone()].into(),
            ..Liveness::default()
        };
        observed.judged([a, b, c].into(), liveness);

        let seen = observed.clone();
        let metrics = Metrics::new(book, move || {
            let (observed, kernel) = (seen.clone(), kernel.clone());
            async move { observed.refresh(&kernel).await }
        });
        let listener = spillway_telemetry::bind("127.0.0.1:0".parse().expect("address"))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("address");
        tokio::spawn(spillway_telemetry::serve(
            listener,
            routes(Health::new(), metrics),
        ));
        let scraped = spillway_telemetry::get(address, "/metrics")
            .await
            .expect("metrics");
        let read = text::parse(&scraped).expect("well-formed");

        for reason in DropReason::ALL {
            let name = "spillway_node_dropped_packets_total";
            assert_eq!(
                read.value(name, &[("reason", reason.as_str())]),
                Some(7.0),
                "{reason:?}"
            );
            let name = "spillway_node_dropped_bytes_total";
            assert_eq!(read.value(name, &[("reason", reason.as_str())]), Some(700.0));
        }
        assert_eq!(
            read.value("spillway_node_applies_total", &[("result", "failed")]),
            Some(1.0)
        );
        assert_eq!(read.value("spillway_node_connections_cut_total", &[]), Some(2.0));
        assert_eq!(read.value("spillway_node_plan_current", &[]), Some(1.0));
        assert_eq!(
            read.value("spillway_node_selected_addresses", &[]),
            Some(count(pods))
        );
        for state in ["alive", "dead", "unknown"] {
            assert_eq!(
                read.value("spillway_node_peers", &[("state", state)]),
                Some(1.0),
                "{state}"
            );
        }
        assert_eq!(read.samples("spillway_node_held_egress_ips").count(), 4);
        assert_eq!(read.samples("spillway_node_egress_ip_ports").count(), 2_048);
        assert!(read.all().len() < 2_400, "{} series", read.all().len());
    }
}

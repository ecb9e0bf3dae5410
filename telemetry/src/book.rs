//! Declaring metrics. What is declared is registered and documented in one.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// A counter without labels.
pub type LiveCounter = Counter<u64>;
/// A gauge without labels.
pub type LiveGauge = Gauge<f64, AtomicU64>;
/// A histogram without labels.
pub type LiveHistogram = Histogram;

type Labels = Vec<(&'static str, String)>;

/// What the reference says of a metric.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// As it is scraped.
    pub(crate) name: &'static str,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub(crate) kind: &'static str,
    /// In words, without a full stop.
    pub(crate) help: &'static str,
    /// Names of its labels.
    pub(crate) labels: Vec<&'static str>,
    /// What bounds the number of its series; empty where there is one.
    pub(crate) bound: String,
}

/// Everything that one daemon measures.
#[derive(Debug, Default)]
pub struct Book {
    registry: Registry,
    entries: Vec<Entry>,
}

impl Book {
    fn enter(
        &mut self,
        (name, kind, help): (&'static str, &'static str, &'static str),
        labels: &[&'static str],
        bound: String,
        metric: impl Metric,
    ) {
        // The encoder adds the suffixes that OpenMetrics demands of counters and infos.
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let registered = name.strip_suffix(suffix).unwrap_or(name);
        self.registry.register(registered, help, metric);
        self.entries.push(Entry {
            name,
            kind,
            help,
            labels: labels.to_vec(),
            bound,
        });
    }

    /// A counter; its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> LiveCounter {
        let metric = LiveCounter::default();
        self.enter((name, "counter", help), &[], String::new(), metric.clone());
        metric
    }

    /// A counter for each of `known`, which are there from the start: what never happened is 0, not missing.
    pub fn counters<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        known: impl IntoIterator<Item = [&'static str; N]>,
    ) -> Counters<N> {
        let metric = Counters {
            labels,
            family: Family::default(),
        };
        let mut count = 0;
        for values in known {
            count += 1;
            drop(metric.family.get_or_create(&metric.key(values)));
        }
        let bound = format!("{count} series");
        self.enter((name, "counter", help), &labels, bound, metric.family.clone());
        metric
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> LiveGauge {
        let metric = LiveGauge::default();
        self.enter((name, "gauge", help), &[], String::new(), metric.clone());
        metric
    }

    /// A gauge with labels, of at most `limit` series; `bound` says in words what they are one of each of.
    pub fn gauges<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        (limit, bound): (usize, &'static str),
    ) -> Gauges<N> {
        let metric = Gauges {
            name,
            labels,
            limit,
            family: Family::default(),
        };
        let bound = format!("{bound}; {limit} series at most");
        self.enter((name, "gauge", help), &labels, bound, metric.family.clone());
        metric
    }

    /// A histogram with these upper bounds of its buckets.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, buckets: &[f64]) -> LiveHistogram {
        let metric = Histogram::new(buckets.iter().copied());
        let bound = format!("{} buckets", buckets.len() + 1);
        self.enter((name, "histogram", help), &[], bound, metric.clone());
        metric
    }

    /// Registers what isn't one of the above.
    pub(crate) fn other(
        &mut self,
        said: (&'static str, &'static str, &'static str),
        labels: &[&'static str],
        metric: impl Metric,
    ) {
        self.enter(said, labels, String::new(), metric);
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// All of it as OpenMetrics text.
    pub(crate) fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a String never fails.
        _ = encode(&mut out, &self.registry);
        out
    }
}

/// Counters that differ in labels whose values only code can name.
#[derive(Clone, Debug)]
pub struct Counters<const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels, Counter<u64>>,
}

impl<const N: usize> Counters<N> {
    fn key(&self, values: [&'static str; N]) -> Labels {
        let pairs = self.labels.iter().zip(values);
        pairs.map(|(name, value)| (*name, value.to_owned())).collect()
    }

    /// Counts one.
    pub fn inc(&self, values: [&'static str; N]) {
        self.add(values, 1);
    }

    /// Counts `count`.
    pub fn add(&self, values: [&'static str; N], count: u64) {
        self.family.get_or_create(&self.key(values)).inc_by(count);
    }
}

/// Gauges that are replaced as a whole.
#[derive(Clone, Debug)]
pub struct Gauges<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
    limit: usize,
    family: Family<Labels, LiveGauge>,
}

impl<const N: usize> Gauges<N> {
    /// Says what there is now; what there was before and isn't among `all` is gone.
    pub fn replace(&self, all: impl IntoIterator<Item = ([String; N], f64)>) {
        self.family.clear();
        for (place, (values, value)) in all.into_iter().enumerate() {
            if place >= self.limit {
                tracing::debug!(
                    metric = self.name,
                    limit = self.limit,
                    "more series than the limit: the rest is left out"
                );
                return;
            }
            let key: Labels = self.labels.iter().copied().zip(values).collect();
            self.family.get_or_create(&key).set(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text;

    #[test]
    fn a_gauge_that_is_replaced_keeps_nothing_and_ends_at_its_limit() {
        let mut book = Book::default();
        let gauges = book.gauges("x_things", "Things", ["thing"], (3, "one a thing"));
        let things = |from: u32, to: u32| (from..to).map(|n| ([n.to_string()], f64::from(n)));
        gauges.replace(things(0, 3));
        gauges.replace(things(1, 9));
        let read = text::parse(&book.encode()).expect("a well-formed text");
        let values: Vec<f64> = read.samples("x_things").map(|s| s.value).collect();
        assert_eq!(values.len(), 3, "{values:?}");
        assert_eq!(read.value("x_things", &[("thing", "0")]), None);
        assert_eq!(read.value("x_things", &[("thing", "3")]), Some(3.0));
    }

    #[test]
    fn what_never_happened_is_zero() {
        let mut book = Book::default();
        let counters = book.counters("x_total", "X", ["why"], [["a"], ["b"]]);
        counters.add(["b"], 2);
        let read = text::parse(&book.encode()).expect("a well-formed text");
        assert_eq!(read.value("x_total", &[("why", "a")]), Some(0.0));
        assert_eq!(read.value("x_total", &[("why", "b")]), Some(2.0));
    }
}

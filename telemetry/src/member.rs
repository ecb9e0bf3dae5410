//! What a member agent measures.

use crate::book::{Book, Counters, Gauges, LiveCounter, LiveGauge, LiveHistogram};

/// From one object to a plan of thousands.
const APPLIED: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Why there is no connection.
pub const DISCONNECTS: [&str; 10] = [
    "unreachable",
    "not_our_hub",
    "not_accepted",
    "revoked",
    "stale_hub",
    "expired",
    "bad_identity",
    "closed",
    "silent",
    "renewed",
];

/// What is done to objects of the plan.
pub const WRITES: [&str; 2] = ["apply", "delete"];

/// How far nodes are.
pub const NODES: [&str; 2] = ["current", "behind"];

/// The metrics.
#[derive(Clone, Debug)]
pub struct MemberMetrics {
    /// 1 while the stream to the hub is up.
    pub connected: LiveGauge,
    /// `reason`.
    pub disconnects: Counters<1>,
    /// When the plan in place was stored.
    pub plan_stored: LiveGauge,
    /// Objects of the plan in place.
    pub plan_resources: LiveGauge,
    /// 1 where the digest of what is in place is the one its head announces.
    pub plan_matches: LiveGauge,
    /// Plans stored.
    pub plans_applied: LiveCounter,
    /// Plans refused.
    pub plans_refused: LiveCounter,
    /// Storing one plan.
    pub apply: LiveHistogram,
    /// `operation`.
    pub writes: Counters<1>,
    /// `state`: this cluster's nodes.
    pub nodes: Gauges<1>,
    /// End of the certificate.
    pub certificate_expiry: LiveGauge,
    /// Certificates got.
    pub renewals: LiveCounter,
}

impl MemberMetrics {
    /// Declares them.
    pub fn new(book: &mut Book) -> Self {
        Self {
            connected: book.gauge("spillway_member_connected", "1 while the stream to the hub is up"),
            disconnects: book.counters(
                "spillway_member_disconnects_total",
                "How often the connection to the hub ended or couldn't be made, by reason",
                ["reason"],
                DISCONNECTS.map(|r| [r]),
            ),
            plan_stored: book.gauge(
                "spillway_member_plan_stored_timestamp_seconds",
                "When the plan in place came, or this agent found it; 0 without a plan",
            ),
            plan_resources: book.gauge("spillway_member_plan_resources", "Objects of the plan in place"),
            plan_matches: book.gauge(
                "spillway_member_plan_matches",
                "1 where the objects in place add up to the digest that the plan's head announces",
            ),
            plans_applied: book.counter(
                "spillway_member_plans_applied_total",
                "Plans of the hub that were stored",
            ),
            plans_refused: book.counter(
                "spillway_member_plans_refused_total",
                "Plans of the hub that this cluster didn't take; the one before stays",
            ),
            apply: book.histogram(
                "spillway_member_plan_apply_seconds",
                "Time that storing one plan took",
                &APPLIED,
            ),
            writes: book.counters(
                "spillway_member_plan_writes_total",
                "Writes of plan objects to this cluster's API server, repairs included",
                ["operation"],
                WRITES.map(|o| [o]),
            ),
            nodes: book.gauges(
                "spillway_member_nodes",
                "Nodes of this cluster that are Ready, by whether their kernel has the plan in place",
                ["state"],
                (2, "current, behind"),
            ),
            certificate_expiry: book.gauge(
                "spillway_member_certificate_expiry_timestamp_seconds",
                "When the certificate ends; renewed at half of its 24 h. 0 without one",
            ),
            renewals: book.counter(
                "spillway_member_certificate_renewals_total",
                "Certificates that were renewed",
            ),
        }
    }
}

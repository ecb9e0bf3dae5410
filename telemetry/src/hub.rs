//! What a hub replica measures.

use crate::book::{Book, Counters, Gauges, LiveCounter, LiveGauge, LiveHistogram};

/// From a few milliseconds to the minutes that a slow member takes.
const ACKNOWLEDGED: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];
/// From a small federation to the largest.
const RECONCILED: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Why a member's stream ended, or never began.
pub const LINK_ENDS: [&str; 9] = [
    "left",
    "closed",
    "replaced",
    "silent",
    "revoked",
    "expired",
    "stale_hub",
    "shutdown",
    "protocol",
];

/// Kinds of connections of which there may be so many.
pub const CROWDS: [&str; 3] = ["handshake", "stranger", "member"];

/// How an enrolment ended.
pub const ENROLMENTS: [&str; 8] = [
    "enrolled",
    "token_unknown",
    "token_used",
    "token_expired",
    "token_for_other_member",
    "name_taken",
    "invalid",
    "unavailable",
];

/// How a reconcile round ended.
pub const ROUNDS: [&str; 4] = ["settled", "recorded", "stuck", "held"];

/// Members, gateways and policies by one condition.
pub const OBJECTS: [&str; 3] = ["member", "gateway", "policy"];

/// The metrics.
#[derive(Clone, Debug)]
pub struct HubMetrics {
    /// 1 where this replica writes.
    pub leader: LiveGauge,
    /// Streams that this replica serves.
    pub streams: LiveGauge,
    /// `member`: 1 where it has a stream to any replica.
    pub member_connected: Gauges<1>,
    /// `member`: 1 where it holds, and all its nodes have programmed, the plan that it acknowledged last.
    pub member_programmed: Gauges<1>,
    /// `gateway`: nodes that can carry it.
    pub gateway_ready_nodes: Gauges<1>,
    /// `kind`, `condition`, `status`: how many objects.
    pub objects: Gauges<3>,
    /// Objects that hold all plans because this hub can't read them.
    pub unreadable_objects: LiveGauge,
    /// Members whose plan waits for an allocation to be recorded.
    pub plans_waiting: LiveGauge,
    /// Plans published.
    pub plans_published: LiveCounter,
    /// Updates handed to members' streams.
    pub plans_sent: LiveCounter,
    /// Plans acknowledged.
    pub plans_acknowledged: LiveCounter,
    /// Plans refused.
    pub plans_refused: LiveCounter,
    /// From published to acknowledged.
    pub acknowledge: LiveHistogram,
    /// One reconcile round.
    pub reconcile: LiveHistogram,
    /// `result`.
    pub reconciles: Counters<1>,
    /// `reason`.
    pub link_ends: Counters<1>,
    /// Connections that didn't get through the TLS handshake.
    pub handshakes_failed: LiveCounter,
    /// `kind`.
    pub displaced: Counters<1>,
    /// `result`.
    pub enrolments: Counters<1>,
    /// Certificates renewed.
    pub renewals: LiveCounter,
}

impl HubMetrics {
    /// Declares them.
    pub fn new(book: &mut Book) -> Self {
        let members = (4_096, "one a member");
        Self {
            leader: book.gauge("spillway_hub_leader", "1 on the replica that allocates and writes statuses"),
            streams: book.gauge("spillway_hub_streams", "Members whose stream this replica serves"),
            member_connected: book.gauges(
                "spillway_hub_member_connected",
                "1 where the member has a stream to a replica, by its `Connected` condition",
                ["member"],
                members,
            ),
            member_programmed: book.gauges(
                "spillway_hub_member_plan_programmed",
                "1 where the plan that the member acknowledged last is in the kernels of all its nodes",
                ["member"],
                members,
            ),
            gateway_ready_nodes: book.gauges(
                "spillway_hub_gateway_ready_nodes",
                "Nodes of the gateway that can carry it",
                ["gateway"],
                (4_096, "one a gateway"),
            ),
            objects: book.gauges(
                "spillway_hub_objects",
                "Members, gateways and policies by what a condition of theirs says",
                ["kind", "condition", "status"],
                (64, "one a kind, condition and status"),
            ),
            unreadable_objects: book.gauge(
                "spillway_hub_unreadable_objects",
                "Objects that this replica can't read and that hold all plans (reason `PlanHeld`)",
            ),
            plans_waiting: book.gauge(
                "spillway_hub_plans_waiting",
                "Members whose newest plan waits until its numbers are recorded",
            ),
            plans_published: book.counter(
                "spillway_hub_plans_published_total",
                "Plans of members that changed",
            ),
            plans_sent: book.counter(
                "spillway_hub_plan_updates_sent_total",
                "Plan updates put on members' streams; a slow member skips plans",
            ),
            plans_acknowledged: book.counter(
                "spillway_hub_plans_acknowledged_total",
                "Plans that members said they hold, also on connecting",
            ),
            plans_refused: book.counter(
                "spillway_hub_plans_refused_total",
                "Plans that members refused; they keep the one before",
            ),
            acknowledge: book.histogram(
                "spillway_hub_plan_acknowledge_seconds",
                "Time from when a plan was published to when its member, connected all the while, acknowledged it",
                &ACKNOWLEDGED,
            ),
            reconcile: book.histogram(
                "spillway_hub_reconcile_seconds",
                "Time that one round of resolving everything took",
                &RECONCILED,
            ),
            reconciles: book.counters(
                "spillway_hub_reconciles_total",
                "Rounds by how they ended: nothing left to do, numbers recorded, to be tried again, plans held",
                ["result"],
                ROUNDS.map(|r| [r]),
            ),
            link_ends: book.counters(
                "spillway_hub_stream_ends_total",
                "Members' streams that ended or weren't accepted, by reason",
                ["reason"],
                LINK_ENDS.map(|r| [r]),
            ),
            handshakes_failed: book.counter(
                "spillway_hub_handshakes_failed_total",
                "Connections to the members' port that didn't get through TLS",
            ),
            displaced: book.counters(
                "spillway_hub_connections_displaced_total",
                "Connections to the members' port that were closed for newer ones, as there were too many: in the TLS handshake, without a certificate, of one member",
                ["kind"],
                CROWDS.map(|c| [c]),
            ),
            enrolments: book.counters(
                "spillway_hub_enrolments_total",
                "Requests to join by their outcome",
                ["result"],
                ENROLMENTS.map(|r| [r]),
            ),
            renewals: book.counter(
                "spillway_hub_certificate_renewals_total",
                "Certificates of members that were renewed",
            ),
        }
    }
}

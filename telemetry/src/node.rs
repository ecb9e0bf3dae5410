//! What a node agent measures.

use crate::book::{Book, Counters, Gauges, LiveCounter, LiveGauge, LiveHistogram};

/// From one netlink message to a table of ten thousand pods.
const APPLIED: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// From an element in the kernel to the longest wait of a pod.
const HELD: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0,
];

/// How an apply ended.
pub const APPLIES: [&str; 3] = ["changed", "unchanged", "failed"];

/// What of ours others changed in the kernel: the first word of what `show` prints.
pub const REPAIRS: [&str; 11] = [
    "table",
    "chain",
    "set",
    "element",
    "device",
    "forwarding",
    "neighbour",
    "route",
    "rule",
    "proxy",
    "other",
];

/// Why this node took an egress IP.
pub const TAKEOVERS: [&str; 8] = [
    "rank", "plan", "dead", "gone", "draining", "retiring", "back", "pinned",
];

/// What is known of probed nodes.
pub const PEERS: [&str; 4] = ["alive", "dead", "retiring", "unknown"];

/// What the CNI plugin asks, and how it was answered.
pub const CNI: [&str; 3] = ["programmed", "unselected", "refused"];

/// The metrics.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    /// One apply with the cut of flows that follows.
    pub apply: LiveHistogram,
    /// `result`.
    pub applies: Counters<1>,
    /// When an apply last succeeded.
    pub applied_at: LiveGauge,
    /// 1 where the kernel has the plan that the API server shows.
    pub plan_current: LiveGauge,
    /// Selected addresses of pods.
    pub selected: LiveGauge,
    /// Connections cut.
    pub cut: LiveCounter,
    /// `kind`.
    pub repairs: Counters<1>,
    /// `reason`.
    pub dropped: Counters<1>,
    /// `reason`.
    pub dropped_bytes: Counters<1>,
    /// `egress_ip`, `state`.
    pub ports: Gauges<2>,
    /// `gateway`.
    pub held: Gauges<1>,
    /// `reason`.
    pub takeovers: Counters<1>,
    /// `state`.
    pub peers: Gauges<1>,
    /// Probes sent.
    pub probes: LiveCounter,
    /// Probes that nobody answered.
    pub probes_lost: LiveCounter,
    /// How long pods waited.
    pub cni_held: LiveHistogram,
    /// `result`.
    pub cni: Counters<1>,
    /// Pods waiting now.
    pub cni_waiting: LiveGauge,
}

impl NodeMetrics {
    /// Declares them.
    pub fn new(book: &mut Book) -> Self {
        Self {
            apply: book.histogram(
                "spillway_node_apply_seconds",
                "Time to bring the kernel from one state to the next, flows that left otherwise cut",
                &APPLIED,
            ),
            applies: book.counters(
                "spillway_node_applies_total",
                "How often the kernel was compared with what it should hold, by whether that changed it",
                ["result"],
                APPLIES.map(|r| [r]),
            ),
            applied_at: book.gauge(
                "spillway_node_last_apply_timestamp_seconds",
                "When the kernel was last found, or brought, as it should be; at least once a minute",
            ),
            plan_current: book.gauge(
                "spillway_node_plan_current",
                "1 where the kernel has the plan that the API server shows; 0 also without a plan",
            ),
            selected: book.gauge(
                "spillway_node_selected_addresses",
                "Addresses of this node's pods that a policy selects",
            ),
            cut: book.counter(
                "spillway_node_connections_cut_total",
                "Connections that were cut because they had left another way",
            ),
            repairs: book.counters(
                "spillway_node_repairs_total",
                "Objects of ours in the kernel that others had changed, by kind",
                ["kind"],
                REPAIRS.map(|k| [k]),
            ),
            dropped: book.counters(
                "spillway_node_dropped_packets_total",
                "Packets that the kernel dropped, by reason; its own counters, which outlive the agent",
                ["reason"],
                spillway_core::node::drops::DropReason::ALL.map(|r| [r.as_str()]),
            ),
            dropped_bytes: book.counters(
                "spillway_node_dropped_bytes_total",
                "Bytes of the packets that the kernel dropped, from the IP header on, by reason",
                ["reason"],
                spillway_core::node::drops::DropReason::ALL.map(|r| [r.as_str()]),
            ),
            ports: book.gauges(
                "spillway_node_egress_ip_ports",
                "This node's ports of an egress IP: granted, and used towards the destination that uses most",
                ["egress_ip", "state"],
                (2_048, "two an egress IP that this node's pods leave with"),
            ),
            held: book.gauges(
                "spillway_node_held_egress_ips",
                "Egress IPs that this node answers for",
                ["gateway"],
                (1_024, "one a gateway of this node"),
            ),
            takeovers: book.counters(
                "spillway_node_takeovers_total",
                "Egress IPs that this node took, by why they moved",
                ["reason"],
                TAKEOVERS.map(|r| [r]),
            ),
            peers: book.gauges(
                "spillway_node_peers",
                "Gateways' nodes that this node probes, by what it thinks of them",
                ["state"],
                (4, "alive, dead, retiring, unknown"),
            ),
            probes: book.counter("spillway_node_probes_total", "Probes sent to gateways' nodes"),
            probes_lost: book.counter(
                "spillway_node_probes_lost_total",
                "Probes that were overtaken by the next one before an answer came",
            ),
            cni_held: book.histogram(
                "spillway_node_cni_add_seconds",
                "How long a pod waited for its network until this node had programmed it, or it was refused",
                &HELD,
            ),
            cni: book.counters(
                "spillway_node_cni_adds_total",
                "Pods that asked to start: programmed, selected by no policy, refused (kubelet tries again)",
                ["result"],
                CNI.map(|r| [r]),
            ),
            cni_waiting: book.gauge("spillway_node_cni_waiting", "Pods that are being held now"),
        }
    }
}

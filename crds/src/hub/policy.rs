//! `FederatedEgressPolicy` and `FederatedClusterEgressPolicy`: who, to where, through which gateways,
//! with which egress IP.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::AddressPair;
use crate::condition::Condition;
use crate::selector::LabelSelector;

/// Pods of one namespace, in every selected member, to some destinations, leave through a gateway
/// with a fixed egress IP. The policy's namespace is the pods' namespace.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.io",
    version = "v1alpha1",
    kind = "FederatedEgressPolicy",
    plural = "federatedegresspolicies",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    status = "PolicyStatus",
    shortname = "fep",
    category = "spillway",
    doc = "Pods of this namespace, in every selected member, leave through a gateway with a fixed egress IP.",
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Programmed')].status"
    ),
    printcolumn(name = "Gateway", type_ = "string", json_path = ".status.egress[0].gateway"),
    printcolumn(
        name = "Egress-IP",
        type_ = "string",
        json_path = ".status.egress[0].egressIP.ipv4"
    ),
    printcolumn(name = "Members", type_ = "string", json_path = ".status.members"),
    printcolumn(name = "Shadowed", type_ = "string", json_path = ".status.shadowed"),
    printcolumn(
        name = "Priority",
        type_ = "integer",
        json_path = ".spec.priority",
        priority = "1"
    ),
    printcolumn(
        name = "Bandwidth",
        type_ = "string",
        json_path = ".spec.bandwidth.rate",
        priority = "1"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].reason",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct FederatedEgressPolicySpec {
    /// Members whose pods the policy concerns, by the labels of the `Member` objects; empty selects all.
    #[serde(default)]
    pub members: LabelSelector,
    /// Pods by label; empty selects every pod of the namespace.
    #[serde(default)]
    pub pods: LabelSelector,
    /// Addresses that the pods have; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Sources>,
    /// Destinations.
    #[serde(default)]
    pub to: Destinations,
    /// Which policy wins where several select a pod and claim a destination by prefixes of one length and by equally many
    /// ports: the one with the higher number, then the older one, then the first by namespace and name. A longer prefix,
    /// then fewer ports win whatever stands here.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(range(min = -65536, max = 65536))]
    pub priority: i32,
    /// Gateways in order of preference: the first that has a ready node carries the traffic.
    #[schemars(length(min = 1, max = 8))]
    pub through: Vec<Through>,
    /// How much the policy's pods may send, on each node by itself; absent: as much as they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// What happens to the pods' packets while no gateway of `through` is available.
    #[serde(default)]
    pub on_unavailable: OnUnavailable,
}

/// Pods of selected namespaces, in every selected member, to some destinations, leave through a
/// gateway with a fixed egress IP.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.io",
    version = "v1alpha1",
    kind = "FederatedClusterEgressPolicy",
    plural = "federatedclusteregresspolicies",
    derive = "PartialEq",
    derive = "Default",
    status = "PolicyStatus",
    shortname = "fcep",
    category = "spillway",
    doc = "Pods of the selected namespaces, in every selected member, leave through a gateway with a fixed egress IP.",
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Programmed')].status"
    ),
    printcolumn(name = "Gateway", type_ = "string", json_path = ".status.egress[0].gateway"),
    printcolumn(
        name = "Egress-IP",
        type_ = "string",
        json_path = ".status.egress[0].egressIP.ipv4"
    ),
    printcolumn(name = "Members", type_ = "string", json_path = ".status.members"),
    printcolumn(name = "Shadowed", type_ = "string", json_path = ".status.shadowed"),
    printcolumn(
        name = "Priority",
        type_ = "integer",
        json_path = ".spec.priority",
        priority = "1"
    ),
    printcolumn(
        name = "Bandwidth",
        type_ = "string",
        json_path = ".spec.bandwidth.rate",
        priority = "1"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].reason",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct FederatedClusterEgressPolicySpec {
    /// Members whose pods the policy concerns, by the labels of the `Member` objects; empty selects all.
    #[serde(default)]
    pub members: LabelSelector,
    /// Namespaces by label; empty selects all. The pods of Spillway's own namespace are never selected.
    #[serde(default)]
    pub namespaces: LabelSelector,
    /// Pods by label; empty selects every pod of the selected namespaces.
    #[serde(default)]
    pub pods: LabelSelector,
    /// Addresses that the pods have; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Sources>,
    /// Destinations.
    #[serde(default)]
    pub to: Destinations,
    /// Which policy wins where several select a pod and claim a destination by prefixes of one length and by equally many
    /// ports: the one with the higher number, then the older one, then the first by namespace and name. A longer prefix,
    /// then fewer ports win whatever stands here.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(range(min = -65536, max = 65536))]
    pub priority: i32,
    /// Gateways in order of preference: the first that has a ready node carries the traffic.
    #[schemars(length(min = 1, max = 8))]
    pub through: Vec<Through>,
    /// How much the policy's pods may send, on each node by itself; absent: as much as they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// What happens to the pods' packets while no gateway of `through` is available.
    #[serde(default)]
    pub on_unavailable: OnUnavailable,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Addresses of a policy's pods, as a fixed address or range that a CNI gives them. Narrows what the other fields
/// select; an address that no pod has selects nothing.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.cidrs.all(c, isCIDR(c))").message("each entry of sources.cidrs is a CIDR such as 10.244.3.0/24; a single address is written with /32 or /128"),
    validation = Rule::new("self.cidrs.all(c, !isCIDR(c) || cidr(c).masked() == cidr(c))").message("an entry of sources.cidrs has host bits set; write the network's address, such as 10.244.3.0/24")
)]
pub struct Sources {
    /// Ranges that a pod's address is in. Of a pod with two addresses each is judged by itself.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 49)))]
    pub cidrs: Vec<String>,
}

/// Destinations of a policy. Ranges of the pods' own cluster are never among them.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.cidrs) || self.cidrs.all(c, isCIDR(c))").message("each entry of to.cidrs is a CIDR such as 198.51.100.0/24; a single address is written with /32 or /128"),
    validation = Rule::new("!has(self.cidrs) || self.cidrs.all(c, !isCIDR(c) || cidr(c).masked() == cidr(c))").message("an entry of to.cidrs has host bits set; write the network's address, such as 198.51.100.0/24"),
    validation = Rule::new("!has(self.except) || self.except.all(c, isCIDR(c))").message("each entry of to.except is a CIDR such as 198.51.100.9/32"),
    validation = Rule::new("!has(self.except) || self.except.all(c, !isCIDR(c) || cidr(c).masked() == cidr(c))").message("an entry of to.except has host bits set; write the network's address, such as 198.51.100.8/30")
)]
pub struct Destinations {
    /// Destination ranges; empty is everything outside the clusters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 49)))]
    pub cidrs: Vec<String>,
    /// Ranges within `cidrs` that the policy leaves alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 49)))]
    pub except: Vec<String>,
    /// Protocols and ports at these destinations; empty is all of them. Of a Service it is the port behind it that
    /// counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<DestinationPort>,
}

/// A protocol, and a port or range of ports of it, as in a NetworkPolicy. Without a port all of the protocol is meant.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.endPort) || has(self.port) && self.endPort >= self.port").message("endPort needs port, and is not less than it"),
    validation = Rule::new("self.protocol != 'ICMP' || !has(self.port)").message("ICMP has no ports; leave port out")
)]
pub struct DestinationPort {
    /// The protocol. `ICMP` is that of the packet's family.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port, or the first one of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// The last port of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
}

/// A protocol that policies tell apart.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP, or ICMPv6 over IPv6.
    Icmp,
}

/// How much all pods of a policy on one node may send together. What is more is dropped, not queued: TCP adapts to that.
/// What they receive isn't limited.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.rate.matches('^([1-9][0-9]{0,4}M|[1-9][0-9]?G|100G)$')").message("bandwidth.rate is in bits a second, from 1M to 100G, such as 50M"),
    validation = Rule::new("!has(self.burst) || self.burst.matches('^([1-9][0-9]{0,3}M|[1-9]G)$')").message("bandwidth.burst is in bits, from 1M to 9G, such as 20M")
)]
pub struct Bandwidth {
    /// Bits a second, of whole packets from the IP header on: `1M` to `100G`. M is 1,000,000 and G 1,000,000,000.
    #[schemars(length(max = 8))]
    pub rate: String,
    /// Bits that may pass at once after a pause, besides what `rate` gives for one second: `1M` to `9G`. None where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub burst: Option<String>,
}

/// One gateway that a policy may use.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.exclusive) || !self.exclusive || has(self.egressIP) || has(self.allocation) && self.allocation == 'Pool'").message("exclusive needs an address of the policy's own: name one in egressIP, or set allocation: Pool")
)]
pub struct Through {
    /// Name of the `EgressGateway`.
    #[schemars(length(min = 1, max = 63))]
    pub gateway: String,
    /// Addresses from the gateway's pool to leave with. A family that is left out gets its address by `allocation`.
    #[serde(default, rename = "egressIP", skip_serializing_if = "Option::is_none")]
    pub egress_ip: Option<AddressPair>,
    /// Where addresses come from that `egressIP` doesn't name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allocation: Allocation,
    /// No other policy leaves with the addresses. One that others leave with can't be had so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
}

/// Where a policy's addresses come from.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Allocation {
    /// They are the gateway's default ones (`addresses.default`), and change with these.
    #[default]
    Default,
    /// They are an IPv4 and an IPv6 address of the pool for this policy, of which few policies have the same. They stay what
    /// they are.
    Pool,
}

/// What a policy's addresses were chosen by.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Allocated {
    /// The policy names them all.
    Fixed,
    /// They are the gateway's default ones, as far as the policy names none.
    #[default]
    Default,
    /// They are the policy's own of the pool, as far as it names none.
    Pool,
    /// They are those of the gateway's node that carries the packets now (`addresses.nodeIP`).
    NodeIP,
}

/// What happens while no gateway of a policy is available.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum OnUnavailable {
    /// Packets are dropped: nothing leaves from another address.
    #[default]
    Block,
    /// Packets leave as they would without the policy, with the node's address.
    NodeIP,
}

/// What the hub made of a policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The resolved `through` list, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub egress: Vec<ResolvedEgress>,
    /// `programmed/selected` members, for the printer column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub members: Option<String>,
    /// `All` or `Part` of the policy's destinations that go to other policies for each of its pods, and to which; absent
    /// where none do. Policies that only some of its pods are selected by as well aren't among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub shadowed: Option<String>,
    /// `Accepted`, `Programmed`, `Effective`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// One entry of a policy's `through` list after resolution.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedEgress {
    /// Name of the gateway.
    #[schemars(length(max = 63))]
    pub gateway: String,
    /// The identity on the wire.
    pub identity: u16,
    /// The egress IPs.
    #[serde(default, rename = "egressIP")]
    pub egress_ip: AddressPair,
    /// What they were chosen by.
    #[serde(default)]
    pub allocated: Allocated,
    /// No other policy has them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
}

//! `EgressGateway`: nodes with a pool of egress IPs.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::AddressPair;
use crate::condition::Condition;
use crate::member::NodeRef;
use crate::selector::LabelSelector;

/// Nodes of one member, or of several on the same segment, through which pods of the federation
/// leave, and the addresses they leave with.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.io",
    version = "v1alpha1",
    kind = "EgressGateway",
    derive = "PartialEq",
    derive = "Default",
    status = "EgressGatewayStatus",
    shortname = "egw",
    category = "spillway",
    doc = "Nodes with a pool of egress IPs, through which pods of the federation leave.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("a gateway's name has at most 63 characters"),
    validation = Rule::new("!has(self.spec.pins) || size(self.spec.pins) == 0 || ((!has(self.spec.translation) || self.spec.translation == 'SourceNode') && (!has(self.spec.addresses.nodeIP) || !self.spec.addresses.nodeIP))").message("pins need translation: SourceNode and a pool: a gateway that translates on its own nodes is carried by one node as a whole"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type=='Accepted')].status"),
    printcolumn(name = "Programmed", type_ = "string", json_path = ".status.conditions[?(@.type=='Programmed')].status"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.holder"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.readyNodes"),
    printcolumn(name = "Ports", type_ = "string", json_path = ".status.conditions[?(@.type=='PortsAvailable')].reason", priority = "1"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses.ipv4", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewaySpec {
    /// Which nodes of which members form the gateway. They must share a network segment on which the
    /// addresses can move between them.
    #[schemars(length(min = 1, max = 16))]
    pub nodes: Vec<GatewayNodes>,
    /// The pool of egress IPs.
    pub addresses: AddressPool,
    /// Where the source address is rewritten.
    #[serde(default)]
    pub translation: Translation,
    /// Egress IPs that a certain node is to answer for while it can. All others are spread over the gateway's nodes, and so
    /// are these while their node is away, is drained or isn't one of the gateway's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address"])
    )]
    pub pins: Vec<AddressPin>,
    /// Whose policies may use the gateway: those that some entry grants. Absent: everybody's; without any entry: nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub allow: Option<Vec<GatewayGrant>>,
    /// Which of the gateway's paths are encrypted; the hub's own setting where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// Who may use a gateway.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayGrant {
    /// Members whose pods may, by the labels of the `Member` objects; empty grants it to all.
    #[serde(default)]
    pub members: LabelSelector,
    /// Namespaces whose policies may. Empty: all, and cluster-wide policies, which no entry with namespaces is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub namespaces: Vec<String>,
}

/// An egress IP and the node that is to answer for it.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("isIP(self.address)").message("address is a single address of the pool, such as 203.0.113.10")
)]
pub struct AddressPin {
    /// An egress IP out of the gateway's pool.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// Which node.
    #[serde(flatten)]
    pub node: NodeRef,
}

/// Which paths of the tunnel are encrypted. Where two gateways share a path, the stricter one decides.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Encryption {
    /// None: whoever is between the nodes can read along.
    Never,
    /// Those between members of different partitions.
    #[default]
    CrossPartition,
    /// All of them, also between the nodes of one member.
    Always,
}

impl Encryption {
    /// Whether a path between nodes in the partitions `a` and `b` must be encrypted.
    pub fn demanded(self, a: &str, b: &str) -> bool {
        match self {
            Self::Never => false,
            Self::CrossPartition => a != b,
            Self::Always => true,
        }
    }
}

/// Where packets get their egress IP.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Translation {
    /// On the pod's own node, to the egress IP and a port of the node's own slice. The gateway forwards and keeps
    /// no connection state, so that connections outlive its nodes. TCP, UDP, SCTP and ICMP only; what has no ports
    /// is dropped. Gateway nodes need Linux 5.16 or newer.
    #[default]
    SourceNode,
    /// On the gateway's node, for every protocol. Connections break when that node dies.
    GatewayNode,
}

/// Nodes of one member.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayNodes {
    /// Name of the member.
    #[schemars(length(min = 1, max = 63))]
    pub member: String,
    /// Selects the member's nodes by label; empty selects all of them.
    #[serde(default)]
    pub selector: LabelSelector,
}

/// A pool of addresses: single ones, `first-last` ranges, or CIDR blocks, all of which are usable.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.ipv4) && size(self.ipv4) > 0) || (has(self.ipv6) && size(self.ipv6) > 0) || (has(self.nodeIP) && self.nodeIP)").message("addresses needs at least one entry under ipv4 or ipv6, or nodeIP: true"),
    validation = Rule::new("!has(self.nodeIP) || !self.nodeIP || !((has(self.ipv4) && size(self.ipv4) > 0) || (has(self.ipv6) && size(self.ipv6) > 0) || has(self.default))").message("addresses.nodeIP stands alone, as the nodes' own addresses are no pool; make another EgressGateway of these nodes for the pool"),
    validation = Rule::new("!has(self.ipv4) || self.ipv4.all(a, !a.contains(':'))").message("addresses.ipv4 holds IPv6 addresses; move them to addresses.ipv6"),
    validation = Rule::new("!has(self.ipv4) || self.ipv4.all(a, a.contains('/') ? isCIDR(a) && cidr(a).masked() == cidr(a) : (a.split('-').size() <= 2 && a.split('-').all(p, isIP(p))))").message("each entry of addresses.ipv4 is an address (203.0.113.10), a range (203.0.113.10-203.0.113.19) or a CIDR without host bits (203.0.113.8/29)"),
    validation = Rule::new("!has(self.ipv6) || self.ipv6.all(a, a.contains(':'))").message("addresses.ipv6 holds IPv4 addresses; move them to addresses.ipv4"),
    validation = Rule::new("!has(self.ipv6) || self.ipv6.all(a, a.contains('/') ? isCIDR(a) && cidr(a).masked() == cidr(a) : (a.split('-').size() <= 2 && a.split('-').all(p, isIP(p))))").message("each entry of addresses.ipv6 is an address (2001:db8::10), a range (2001:db8::10-2001:db8::1f) or a CIDR without host bits (2001:db8:1::/120)")
)]
pub struct AddressPool {
    /// IPv4 entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 31)))]
    pub ipv4: Vec<String>,
    /// IPv6 entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 91)))]
    pub ipv6: Vec<String>,
    /// Those that policies leave with which ask for no others. The pool's first address of each family that is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<AddressPair>,
    /// There is no pool: packets leave with the address of the gateway's node that carries them, and with another node's
    /// when that one takes over. The gateway then translates on its own nodes, whatever `translation` says.
    #[serde(default, rename = "nodeIP", skip_serializing_if = "std::ops::Not::not")]
    pub node_ip: bool,
}

/// What the hub made of a gateway.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewayStatus {
    /// `member/node` that answers for the egress IPs; where several do, the first and how many more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 320))]
    pub holder: Option<String>,
    /// How many of the selected nodes are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_nodes: Option<u32>,
    /// Identities in use: the numbers that stand for (this gateway, these egress IPs) on the wire.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub identities: Vec<IdentityRecord>,
    /// Ports of each egress IP, by the node whose connections leave with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192))]
    pub slices: Vec<AddressSlices>,
    /// Which node answers for each egress IP, as the nodes themselves last said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192))]
    pub holders: Vec<AddressHolder>,
    /// Which policies leave with which egress IPs: the first 128 of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub used: Vec<AddressUse>,
    /// `Accepted`, `Programmed`, `PortsAvailable`, `PinsHeld`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// Who leaves with which egress IPs.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressUse {
    /// The egress IPs.
    #[serde(default, rename = "egressIP")]
    pub egress_ip: AddressPair,
    /// Policies: some names, and how many more.
    #[schemars(length(max = 2048))]
    pub by: String,
    /// That policy alone may leave with them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
}

/// Who has which ports of one egress IP.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressSlices {
    /// The egress IP.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// One entry a node, sorted by member and node; no port is in two of them.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub slices: Vec<PortSlice>,
}

/// The ports (and ICMP echo identifiers) of one egress IP that one node's connections leave with.
///
/// A range goes through three states, so that a gateway always knows whose a port is before the source uses it, and
/// until its last connection has ended: `pending` → `ports` → `draining`. Gateways deliver replies to all three.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortSlice {
    /// Name of the member.
    #[schemars(length(max = 63))]
    pub member: String,
    /// Kubernetes node name.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Ranges for new connections.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<PortRange>,
    /// Ranges that not every gateway node may know yet; no connection uses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub pending: Vec<PortRange>,
    /// Ranges that only connections use which began there earlier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub draining: Vec<PortRange>,
}

impl PortSlice {
    /// Whose it is.
    pub fn owner(&self) -> NodeRef {
        NodeRef::new(&self.member, &self.node)
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, at least `first`.
    pub last: u16,
}

/// The node that answers for an egress IP.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressHolder {
    /// The egress IP.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// Name of the member.
    #[schemars(length(max = 63))]
    pub member: String,
    /// Kubernetes node name.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Since when, RFC 3339.
    #[schemars(length(max = 40))]
    pub since: String,
    /// Why it moved there.
    #[schemars(length(max = 1024))]
    pub reason: String,
}

/// A recorded identity.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityRecord {
    /// The number, 1 to 65535, unique in the federation.
    #[schemars(range(min = 1, max = 65535))]
    pub id: u16,
    /// The egress IPs it stands for.
    #[serde(default, rename = "egressIP")]
    pub egress_ip: AddressPair,
}

//! `Member`: a joined cluster, as the hub knows it.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::{AddressPair, PrefixPair};
use crate::condition::Condition;
use crate::hub::{PortRange, is_default};

/// A cluster that joined the federation. Created by the hub when `spillway join` succeeds; its labels
/// are what policies select members by.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.io",
    version = "v1alpha1",
    kind = "Member",
    derive = "PartialEq",
    derive = "Default",
    status = "MemberStatus",
    shortname = "mbr",
    category = "spillway",
    doc = "A cluster that joined the federation.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("a member's name has at most 63 characters"),
    printcolumn(name = "ID", type_ = "integer", json_path = ".status.memberId"),
    printcolumn(name = "Connected", type_ = "string", json_path = ".status.conditions[?(@.type=='Connected')].status"),
    printcolumn(name = "Programmed", type_ = "string", json_path = ".status.conditions[?(@.type=='Programmed')].status"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodeCount"),
    printcolumn(name = "Partition", type_ = "string", json_path = ".spec.partition", priority = "1"),
    printcolumn(name = "Overlay", type_ = "string", json_path = ".status.overlay.ipv4", priority = "1"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.agentVersion", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MemberSpec {
    /// The network whose nodes reach each other directly. Members of different partitions meet only
    /// at published endpoints.
    #[serde(default = "default_partition")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub partition: String,
    /// How nodes of other partitions reach this member's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reachability: Reachability,
}

/// How nodes of other partitions reach a member's nodes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Reachability {
    /// At the nodes' own addresses; a node that publishes an endpoint, there.
    #[default]
    Routed,
    /// Only at endpoints that nodes publish, as behind a NAT or a firewall. A node without one calls others and nobody
    /// can call it.
    Endpoints,
}

fn default_partition() -> String {
    "default".into()
}

/// What the hub allocated to a member and what the member reported.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Number of the member in the federation, 1 to 4095. Recorded once, never reused while the member exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4095))]
    pub member_id: Option<u16>,
    /// Prefixes of the overlay range that the member hands out to its nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<PrefixPair>,
    /// Version of the member agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// Hub replica that holds the member's stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub connected_to: Option<String>,
    /// Serial number (hex) of the newest certificate that the member was given. Any other than this and
    /// the one before is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub certificate_serial: Option<String>,
    /// Serial number of the certificate before: still good, since the answer to a renewal may get lost.
    /// Absent after a new enrolment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub previous_certificate_serial: Option<String>,
    /// From when the newest certificate is valid (RFC 3339). After the hub was restored from a backup, one that is
    /// newer than this is taken for the member's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub certificate_valid_from: Option<String>,
    /// Pin of the CA that signed the newest certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub certificate_issuer: Option<String>,
    /// Pins of the CAs that came with the newest certificate: whose hubs the member trusts once it uses it. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(length(max = 71)))]
    pub trusted_authorities: Vec<String>,
    /// Serial number of the certificate that the member's newest stream was opened with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub serial_in_use: Option<String>,
    /// Number of nodes, for the printer column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_count: Option<u32>,
    /// The member's nodes as it last reported them, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub nodes: Vec<MemberNode>,
    /// Ranges of the member's cluster, which no policy takes, as its agent found them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<MemberRanges>,
    /// How its nodes and those of the members that it shares gateways with reach each other, sorted by member.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16_380))]
    pub paths: Vec<MemberPath>,
    /// Digests of the member's plan on its way.
    #[serde(default)]
    pub plan: PlanProgress,
    /// `Connected`, `Accepted`, `Programmed`, `RangesComplete`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// Ranges of a member's cluster.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRanges {
    /// What each source gave, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub sources: Vec<MemberRangeSource>,
    /// What is wrong with it; empty where nothing is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub problem: String,
}

/// Ranges that one source gave.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRangeSource {
    /// Where they come from, as in the member's `ClusterNetwork`.
    #[schemars(length(max = 253))]
    pub source: String,
    /// CIDRs, sorted, neighbours merged; the first 64.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(max = 49)))]
    pub cidrs: Vec<String>,
    /// How many there are, where those are not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
}

/// How nodes of this member and of another one reach each other.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberPath {
    /// The other member.
    #[schemars(length(max = 63))]
    pub member: String,
    /// The way.
    pub kind: PathKind,
    /// This member's nodes for which it is this way, at most 16 of them; empty for all that need a path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub nodes: Vec<String>,
    /// The other's, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub peers: Vec<String>,
    /// Relays (`member/node`), best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 320)))]
    pub through: Vec<String>,
    /// Why it is this way, and where there is none, what to do.
    #[schemars(length(max = 1024))]
    pub reason: String,
}

/// How two nodes reach each other.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum PathKind {
    /// Each can call the other.
    Direct,
    /// One can be called only; the other calls.
    #[serde(rename = "NAT")]
    Nat,
    /// Neither can call the other: a gateway's node that both can call passes their packets on.
    Relay,
    /// Not at all.
    #[default]
    None,
}

impl PathKind {
    /// The name as it stands in objects.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "Direct",
            Self::Nat => "NAT",
            Self::Relay => "Relay",
            Self::None => "None",
        }
    }
}

/// How far the member's plan has come.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanProgress {
    /// Digest of the plan the member last acknowledged (persisted in its cluster).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub acknowledged: Option<String>,
    /// Digest of the plan that every node of the member has in its kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub programmed: Option<String>,
    /// Why the member refused the newest plan, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

/// A plan that a member refused; its previous plan stays active.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Digest of the refused plan.
    #[schemars(length(max = 64))]
    pub digest: String,
    /// The resource at fault (`kind/name`), empty where it is the plan as a whole.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub resource: String,
    /// What to do about it.
    #[schemars(length(max = 1024))]
    pub reason: String,
}

/// One node of a member.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberNode {
    /// Kubernetes node name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Kubernetes node labels, for gateways' selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub labels: BTreeMap<String, String>,
    /// Overlay addresses, unique in the federation.
    #[serde(default)]
    pub overlay: AddressPair,
    /// Addresses at which the node's partition reaches it.
    #[serde(default)]
    pub underlay: AddressPair,
    /// The node is Ready, not cordoned for egress, and its agent runs.
    #[serde(default)]
    pub ready: bool,
    /// The node is cordoned for egress: a gateway moves away from it while it still forwards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// What the node's kernel can do: `nftables`, `egress-hook` (netdev egress chains, Linux 5.16), without which the node
    /// can't be one of a stateless gateway. Empty before the node's agent has looked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub features: Vec<String>,
    /// Egress IPs that the node answers for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192))]
    pub held: Vec<HeldAddress>,
    /// How the node uses its port slices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192))]
    pub port_use: Vec<PortUse>,
    /// `address:port` at which nodes of other partitions reach the node's WireGuard, where its own addresses won't do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub endpoint: Option<String>,
    /// The node's end of encrypted paths. Absent before its agent has made a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireGuardStatus>,
    /// Digest of the plan in the node's kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub programmed: Option<String>,
    /// What keeps the node from programming the plan; empty where nothing does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// A node's end of encrypted paths. Changes when a path comes or goes, not with every handshake.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WireGuardStatus {
    /// The node's WireGuard public keys in base64, the one in use first. A second one is about to take its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(min = 44, max = 44)))]
    pub public_keys: Vec<String>,
    /// Who encrypts: `kernel`, or `userspace` where the kernel has no WireGuard. Absent while no path must be encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub implementation: Option<String>,
    /// Why it is that one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub reason: String,
    /// How many paths are encrypted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub encrypted: u32,
    /// How many paths must be encrypted and can't be yet. Nothing passes on them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub waiting: u32,
    /// The first of those that wait, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub paths: Vec<WaitingPath>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A path that must be encrypted and can't be yet.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingPath {
    /// The node at its far end, `member/node`.
    #[schemars(length(max = 320))]
    pub peer: String,
    /// What it waits for.
    #[schemars(length(max = 256))]
    pub reason: String,
}

/// An egress IP that a node answers for.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldAddress {
    /// The egress IP.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// Since when, RFC 3339.
    #[schemars(length(max = 40))]
    pub since: String,
    /// Why it moved here, such as `node b/b-n1 doesn't answer`.
    #[schemars(length(max = 1024))]
    pub reason: String,
}

/// How a node uses its slice of one egress IP's ports. Changes only when a threshold is crossed, so that a node with
/// steady traffic writes nothing.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortUse {
    /// The egress IP.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// How full the slice is.
    pub level: PortLevel,
    /// How many ports for new connections it had when that was found, 0 to 64512.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub measured: u16,
    /// Draining ranges in which no connection is left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub vacated: Vec<PortRange>,
}

/// How full a slice is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum PortLevel {
    /// Hardly used for long: half of it can go.
    Idle,
    /// Neither.
    #[default]
    Normal,
    /// More than three quarters are in use: it should grow.
    High,
    /// Nearly all ports are in use, and new connections may fail.
    Full,
}

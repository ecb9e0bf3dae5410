//! The plan as objects: one head, and one object a resource.
//!
//! API servers have no transactions over several objects. The head carries the digest over all
//! resources, so a node applies the objects it sees only when they add up to that digest.

use std::fmt;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Grants;
use crate::address::{AddressPair, PrefixPair};
use crate::hub::{
    AddressPin, AddressSlices, Bandwidth, Destinations, OnUnavailable, Sources, Translation, is_default,
};
use crate::selector::LabelSelector;

/// The plan's head. Named `current`; absent until the hub's first plan was accepted.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "member.spillway.io",
    version = "v1alpha1",
    kind = "EgressPlan",
    derive = "PartialEq",
    status = "EgressPlanStatus",
    category = "spillway-member",
    doc = "Head of the plan that this member realises.",
    validation = Rule::new("self.metadata.name == 'current'").message("there is one EgressPlan, named current"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".spec.digest"),
    printcolumn(name = "Programmed", type_ = "string", json_path = ".status.nodes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EgressPlanSpec {
    /// Digest over all resources of the plan (64 hex digits). Nodes apply only a set that adds up to it.
    #[schemars(length(max = 64))]
    pub digest: String,
    /// Hub that made the plan.
    #[schemars(length(max = 64))]
    pub hub_id: String,
    /// Epoch of that hub; a lower one is never applied over a higher.
    pub epoch: u64,
    /// Set by `spillway leave`: every node removes all it has programmed and says so.
    #[serde(default)]
    pub teardown: bool,
    /// What this cluster's owner grants the hub: `HubConnection.spec.grants`, as the member agent last read it. Nodes
    /// go by it whatever the plan says.
    #[serde(default, skip_serializing_if = "is_default")]
    pub grants: Grants,
}

/// How far the plan has come in this cluster.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressPlanStatus {
    /// `programmed/all` nodes, for the printer column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub nodes: Option<String>,
}

/// The member's own place in the federation, from the hub. Part of the plan and so of its digest.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "member.spillway.io",
    version = "v1alpha1",
    kind = "PlannedMember",
    derive = "PartialEq",
    category = "spillway-member",
    doc = "This member's own place in the federation."
)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMemberSpec {
    /// Name of this member.
    #[schemars(length(min = 1, max = 63))]
    pub member: String,
    /// Its number.
    #[schemars(range(min = 1, max = 4095))]
    pub member_id: u16,
    /// Prefixes out of which the member agent gives each node its overlay address.
    pub overlay: PrefixPair,
    /// The federation's whole overlay range; nothing in it ever leaves a cluster.
    pub overlay_range: PrefixPair,
    /// The partition the member is in.
    #[schemars(length(max = 63))]
    pub partition: String,
    /// Tunnel parameters, equal in the whole federation.
    pub tunnel: Tunnel,
    /// Paths between this member's own nodes must be encrypted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Nodes of this member that no other partition can call, of those that need paths there, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 253)))]
    pub uncallable: Vec<String>,
}

/// Parameters of the VXLAN tunnel.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// VXLAN network identifier, 24 bits.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: u32,
    /// UDP port, clear of the CNI's own VXLAN (4789, 8472).
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// UDP port of WireGuard, under encrypted paths.
    #[serde(default = "wireguard_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub wireguard_port: u16,
}

const fn wireguard_port() -> u16 {
    5_713
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            vni: 5_711,
            port: 4_799,
            wireguard_port: wireguard_port(),
        }
    }
}

/// One policy as this member must realise it.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "member.spillway.io",
    version = "v1alpha1",
    kind = "PlannedPolicy",
    plural = "plannedpolicies",
    derive = "PartialEq",
    category = "spillway-member",
    doc = "One policy as this member must realise it.",
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.source.namespace"),
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.source.name"),
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.through[0].gateway"),
    printcolumn(name = "Identity", type_ = "integer", json_path = ".spec.through[0].identity")
)]
#[serde(rename_all = "camelCase")]
pub struct PlannedPolicySpec {
    /// The hub's object that this comes from.
    pub source: PolicyRef,
    /// When that object was created, in seconds since 1970: of two policies equal in all else the older wins.
    pub created: i64,
    /// As in the hub's object: the higher wins over age.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i32,
    /// Selects namespaces by label. Absent for a namespaced policy, whose namespace is `source.namespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Selects pods by label.
    #[serde(default)]
    pub pods: LabelSelector,
    /// Addresses that the pods have; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Sources>,
    /// Destinations, validated by the hub.
    #[serde(default)]
    pub to: Destinations,
    /// How much the policy's pods may send, on each node by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Egress identities in order of preference. Empty where no gateway of the policy exists any more:
    /// `on_unavailable` then rules.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub through: Vec<PlannedThrough>,
    /// What to do while no gateway is available.
    #[serde(default)]
    pub on_unavailable: OnUnavailable,
}

/// Names a policy on the hub.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRef {
    /// Namespace; absent for a `FederatedClusterEgressPolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Name.
    #[schemars(length(max = 253))]
    pub name: String,
}

impl fmt::Display for PolicyRef {
    /// `namespace/name`, or the name alone of a cluster-wide one, as everywhere in messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// One entry of a policy's `through` list, resolved to an identity.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedThrough {
    /// Name of the gateway; its `PlannedGateway` is in the same plan.
    #[schemars(length(max = 63))]
    pub gateway: String,
    /// The identity.
    #[schemars(range(min = 1, max = 65535))]
    pub identity: u16,
}

/// One gateway that this member uses or hosts.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "member.spillway.io",
    version = "v1alpha1",
    kind = "PlannedGateway",
    derive = "PartialEq",
    category = "spillway-member",
    doc = "One gateway that this member uses or hosts.",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gateway"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".spec.nodes[0].node")
)]
#[serde(rename_all = "camelCase")]
pub struct PlannedGatewaySpec {
    /// Name of the gateway.
    #[schemars(length(min = 1, max = 63))]
    pub gateway: String,
    /// The gateway's nodes, best first: those that are ready, those that aren't, those that are being drained. Which
    /// of them are alive the nodes find out themselves.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub nodes: Vec<GatewayNode>,
    /// Where packets get their egress IP.
    #[serde(default)]
    pub translation: Translation,
    /// Egress IPs are the addresses of whichever node carries the gateway; its identities have none of their own.
    #[serde(default, rename = "nodeIP", skip_serializing_if = "std::ops::Not::not")]
    pub node_ip: bool,
    /// Egress IPs that a certain node answers for where it is one of those that carry the gateway, sorted by address. Only where
    /// this member hosts one of its nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub pins: Vec<AddressPin>,
    /// Identities of the gateway: those this member's policies use, and all of them where it hosts one
    /// of the gateway's nodes.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub identities: Vec<PlannedIdentity>,
    /// Port slices of the egress IPs: those of this member's own nodes, and all of them where it hosts one of the
    /// gateway's nodes. Empty for `translation: GatewayNode`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192))]
    pub slices: Vec<AddressSlices>,
}

/// One node of a gateway.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayNode {
    /// Which node.
    #[serde(flatten)]
    pub node: NodeRef,
    /// What the hub knows of it.
    #[serde(default)]
    pub state: GatewayNodeState,
}

/// What the hub knows of a gateway's node.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum GatewayNodeState {
    /// Its cluster calls it Ready and its agent runs.
    #[default]
    Ready,
    /// Its cluster doesn't, which says nothing of its network: it is used where it answers probes.
    NotReady,
    /// It is cordoned for egress: it holds no egress IP and is nobody's next hop while there is another, but
    /// forwards what still reaches it.
    Draining,
}

/// Names a node in the federation.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRef {
    /// Name of the member.
    #[schemars(length(max = 63))]
    pub member: String,
    /// Kubernetes node name.
    #[schemars(length(max = 253))]
    pub node: String,
}

impl NodeRef {
    /// Names node `node` of `member`.
    pub fn new(member: impl Into<String>, node: impl Into<String>) -> Self {
        Self {
            member: member.into(),
            node: node.into(),
        }
    }
}

impl fmt::Display for NodeRef {
    /// `member/node`, as everywhere in messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.member, self.node)
    }
}

/// One identity: what it stands for and who may use it.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedIdentity {
    /// The number in the tunnel header.
    #[schemars(range(min = 1, max = 65535))]
    pub id: u16,
    /// The egress IPs.
    #[serde(rename = "egressIP")]
    pub egress_ip: AddressPair,
    /// Members whose nodes may use the identity, as overlay prefixes. Filled in only for a member that
    /// hosts the gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4095))]
    pub granted: Vec<PrefixPair>,
}

/// Another member's nodes that nodes of this member exchange tunnel packets with.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "member.spillway.io",
    version = "v1alpha1",
    kind = "PlannedPeer",
    derive = "PartialEq",
    category = "spillway-member",
    doc = "Another member's nodes at the far end of this member's tunnels.",
    printcolumn(name = "Member", type_ = "string", json_path = ".spec.member")
)]
#[serde(rename_all = "camelCase")]
pub struct PlannedPeerSpec {
    /// Name of the other member.
    #[schemars(length(min = 1, max = 63))]
    pub member: String,
    /// Its partition.
    #[schemars(length(max = 63))]
    pub partition: String,
    /// Paths to its nodes must be encrypted: nothing may pass on them in the clear.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Its nodes that matter here, sorted by name.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub nodes: Vec<PeerNode>,
}

/// A node at a tunnel's far end.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerNode {
    /// Kubernetes node name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Overlay addresses.
    pub overlay: AddressPair,
    /// Addresses that the tunnel's packets are sent to.
    pub underlay: AddressPair,
    /// `address:port` at which this member reaches its WireGuard; its underlay address and the usual port where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub endpoint: Option<String>,
    /// WireGuard public keys in base64, the one in use first; where the path must be encrypted. Empty until the node
    /// has told of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(min = 44, max = 44)))]
    pub public_keys: Vec<String>,
    /// Nodes that pass packets on between it and those of this member's nodes that can't be called either, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub relays: Vec<NodeRef>,
    /// The port that stands for it at relays, 32768 to 65535; 0 where it needs none.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(range(min = 0, max = 65535))]
    pub relay_port: u16,
    /// Nodes between which and this one this member's nodes pass packets on. Each pair is named at one of its nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub relayed: Vec<NodeRef>,
}

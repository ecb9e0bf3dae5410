//! `EgressNode`: one node of this cluster, as the egress data path sees it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::AddressPair;
use crate::condition::Condition;
use crate::hub::{HeldAddress, PortUse, WireGuardStatus};

/// One node of this cluster. Named like the Kubernetes node. The member agent writes `spec`, the
/// node's own agent writes `status`.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "member.spillway.io",
    version = "v1alpha1",
    kind = "EgressNode",
    derive = "PartialEq",
    status = "EgressNodeStatus",
    shortname = "egn",
    category = "spillway-member",
    doc = "One node of this cluster, as the egress data path sees it.",
    printcolumn(name = "Overlay", type_ = "string", json_path = ".spec.overlay.ipv4"),
    printcolumn(name = "Underlay", type_ = "string", json_path = ".spec.underlay.ipv4"),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Programmed')].status"
    ),
    printcolumn(name = "First-Packets", type_ = "string", json_path = ".status.firstPackets"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Programmed')].message",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EgressNodeSpec {
    /// Overlay addresses, allocated once and kept while the node exists.
    #[serde(default)]
    pub overlay: AddressPair,
    /// The node's internal addresses.
    #[serde(default)]
    pub underlay: AddressPair,
    /// Tells this life of the node from those before: `UID/BOOT` of the `Node` object and of its machine's last boot. A
    /// status that was written for an earlier generation says nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub incarnation: Option<String>,
}

/// How a pod's first packets are kept from leaving otherwise than its policies say.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum FirstPackets {
    /// A plugin in the CNI's chain makes each pod wait until its node has programmed it.
    Chain,
    /// What a pod sends to destinations of policies is dropped until its node knows it.
    Guard,
    /// Not at all, though they should be; the condition says why.
    Open,
    /// Not at all, as `cni.mode` says.
    Off,
}

/// What the node's agent has done.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressNodeStatus {
    /// Digest of the plan in the kernel. Empty after a teardown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub programmed: Option<String>,
    /// How the node programs its data path: `nftables`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub backend: Option<String>,
    /// Version of the node agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// The agent took everything of ours out of this node's kernel, as `EgressPlan.spec.teardown` asked.
    #[serde(default)]
    pub torn_down: bool,
    /// What the node's kernel can do, as in `MemberNode.features` on the hub.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub features: Vec<String>,
    /// What it can't, or may not by its agent's settings, and why. Nothing of it keeps a plan from being programmed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub lacking: Vec<LackingFeature>,
    /// Egress IPs that the node answers for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192))]
    pub held: Vec<HeldAddress>,
    /// How a pod's first packets are kept from leaving otherwise than its policies say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_packets: Option<FirstPackets>,
    /// How the node uses its port slices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192))]
    pub port_use: Vec<PortUse>,
    /// Pods of this node whose address is in no known range of the cluster, at most four.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub stray_pods: Vec<StrayPod>,
    /// This node's end of encrypted paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireGuardStatus>,
    /// `Programmed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// Something that the data path can make use of and this node can't.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LackingFeature {
    /// Its name, as in `features`.
    #[schemars(length(max = 63))]
    pub feature: String,
    /// Why not, and what follows.
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// A pod whose address is in no known range of the cluster.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StrayPod {
    /// Namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its address.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
}

//! `ClusterNetwork`: what belongs to this cluster and so never leaves through a gateway.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// [`RangeSource::source`] of the nodes' pod ranges.
pub const POD_RANGES: &str = "nodes.spec.podCIDRs";

/// [`RangeSource::source`] of the nodes' own addresses.
pub const NODE_ADDRESSES: &str = "nodes.status.addresses";

/// [`RangeSource::source`] of Services' addresses.
pub const SERVICE_RANGES: &str = "servicecidrs";

/// [`RangeSource::source`] of the API servers' addresses.
pub const API_SERVER: &str = "endpointslices/default/kubernetes";

/// Ranges of this cluster, found by the member agent. Named `current`. Packets to them are never taken
/// by a policy, whatever it says. The hub has no part in it.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "member.spillway.io",
    version = "v1alpha1",
    kind = "ClusterNetwork",
    derive = "PartialEq",
    status = "ClusterNetworkStatus",
    category = "spillway-member",
    doc = "Ranges of this cluster, which no policy ever takes.",
    validation = Rule::new("self.metadata.name == 'current'").message("there is one ClusterNetwork, named current"),
    printcolumn(
        name = "Complete",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='RangesComplete')].status"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='RangesComplete')].message"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetworkSpec {
    /// What was found, by source.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub sources: Vec<RangeSource>,
}

/// Ranges that one source gave.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeSource {
    /// Where they come from, such as `nodes.spec.podCIDRs`, `servicecidrs`, `ippools.crd.projectcalico.org`; `extra` is what
    /// `localRanges` adds.
    #[schemars(length(max = 253))]
    pub source: String,
    /// CIDRs, sorted.
    #[serde(default)]
    #[schemars(length(max = 4096), inner(length(max = 49)))]
    pub cidrs: Vec<String>,
}

/// How finding the ranges goes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetworkStatus {
    /// Every source that was asked, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub sources: Vec<SourceStatus>,
    /// `RangesComplete`. Reasons of a false one: `RangesIncomplete` (a pod has an address outside of all ranges),
    /// `SourceFaulty`, `SourceFailed`, `SourceForbidden`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// What one source gave.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Its name, as in `spec.sources`.
    #[schemars(length(max = 253))]
    pub source: String,
    /// How reading it went.
    pub state: SourceState,
    /// How many ranges stand in `spec` because of it.
    #[serde(default)]
    pub ranges: u32,
    /// What can't be read or used, and why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// How reading a source went.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum SourceState {
    /// The cluster has no such thing.
    #[default]
    NotThere,
    /// All of it was read; changes are followed.
    Read,
    /// It was read, and a part of it can't be used. What it gave before stays.
    Faulty,
    /// It can't be read. What it gave before stays.
    Failed,
    /// The member agent may not read it. What it gave before stays.
    Forbidden,
}

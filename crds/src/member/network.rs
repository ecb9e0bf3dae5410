//! `ClusterNetwork`: what belongs to this cluster and so never leaves through a gateway.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Ranges of this cluster, found by the member agent. Named `current`. Packets to them are never taken
/// by a policy, whatever it says. The hub has no part in it.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "member.spillway.io",
    version = "v1alpha1",
    kind = "ClusterNetwork",
    derive = "PartialEq",
    category = "spillway-member",
    doc = "Ranges of this cluster, which no policy ever takes.",
    validation = Rule::new("self.metadata.name == 'current'").message("there is one ClusterNetwork, named current"),
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
    /// Where they come from, such as `nodes.spec.podCIDRs`, `servicecidrs`, `nodes.status.addresses`, `extra`.
    #[schemars(length(max = 253))]
    pub source: String,
    /// CIDRs, sorted.
    #[serde(default)]
    #[schemars(length(max = 4096), inner(length(max = 49)))]
    pub cidrs: Vec<String>,
}

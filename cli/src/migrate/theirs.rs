//! Objects of `egressgateway.spidernet.io/v1beta1`, as far as they are read.

use serde::Deserialize;
use spillway_crds::LabelSelector;

/// API group of the objects that are read.
pub(super) const GROUP: &str = "egressgateway.spidernet.io";
/// Label of a namespace with the name of the gateway that its policies use where they name none.
pub(super) const NAMESPACE_DEFAULT: &str = "spidernet.io/egressgateway-default";
/// Priority of policies that give none. The lower number goes first.
pub(super) const PRIORITY: i64 = 1_000;
/// The same for cluster-wide ones.
pub(super) const CLUSTER_PRIORITY: i64 = 32_768;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct GatewaySpec {
    pub(super) cluster_default: bool,
    pub(super) ippools: Pools,
    pub(super) node_selector: NodeSelector,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pools {
    pub(super) ipv4: Option<Vec<String>>,
    pub(super) ipv6: Option<Vec<String>>,
    #[serde(rename = "ipv4DefaultEIP")]
    pub(super) default4: String,
    #[serde(rename = "ipv6DefaultEIP")]
    pub(super) default6: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeSelector {
    pub(super) policy: String,
    pub(super) selector: Option<LabelSelector>,
}

/// Of both kinds of policies.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PolicySpec {
    pub(super) egress_gateway_name: String,
    #[serde(rename = "egressIP")]
    pub(super) egress_ip: EgressIp,
    pub(super) applied_to: AppliedTo,
    pub(super) dest_subnet: Option<Vec<String>>,
    pub(super) priority: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EgressIp {
    pub(super) ipv4: String,
    pub(super) ipv6: String,
    #[serde(rename = "useNodeIP")]
    pub(super) use_node_ip: bool,
    #[serde(rename = "allocatorPolicy")]
    pub(super) allocator: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AppliedTo {
    pub(super) pod_selector: Option<LabelSelector>,
    pub(super) pod_subnet: Option<Vec<String>>,
    pub(super) namespace_selector: Option<LabelSelector>,
}

/// What a policy leaves with now.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PolicyStatus {
    pub(super) eip: Eip,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Eip {
    pub(super) ipv4: String,
    pub(super) ipv6: String,
}

//! `EgressGateway`: nodes with a pool of egress IPs.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::AddressPair;
use crate::condition::Condition;
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
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type=='Accepted')].status"),
    printcolumn(name = "Programmed", type_ = "string", json_path = ".status.conditions[?(@.type=='Programmed')].status"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.holder"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.readyNodes"),
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
    validation = Rule::new("(has(self.ipv4) && size(self.ipv4) > 0) || (has(self.ipv6) && size(self.ipv6) > 0)").message("addresses needs at least one entry under ipv4 or ipv6"),
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
}

/// What the hub made of a gateway.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewayStatus {
    /// `member/node` that carries the gateway's traffic now.
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
    /// `Accepted`, `Programmed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
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

//! `HubConnection`: which hub this cluster joined, and how that goes.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Grants;
use crate::condition::Condition;
use crate::hub::is_default;

/// The hub that this cluster joined. Named `current`. Written by `spillway join`, read by the member
/// agent, which answers in `status`.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "member.spillway.io",
    version = "v1alpha1",
    kind = "HubConnection",
    derive = "PartialEq",
    status = "HubConnectionStatus",
    category = "spillway-member",
    doc = "The hub that this cluster joined.",
    validation = Rule::new("self.metadata.name == 'current'").message("there is one HubConnection, named current"),
    printcolumn(name = "Member", type_ = "string", json_path = ".spec.member"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.endpoints[0]"),
    printcolumn(name = "Enrolled", type_ = "string", json_path = ".status.conditions[?(@.type=='Enrolled')].status"),
    printcolumn(name = "Connected", type_ = "string", json_path = ".status.conditions[?(@.type=='Connected')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Connected')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct HubConnectionSpec {
    /// Name under which this cluster joins.
    #[schemars(length(min = 1, max = 63))]
    pub member: String,
    /// `host:port` of the hub, tried in order.
    #[schemars(length(min = 1, max = 8), inner(length(min = 3, max = 261)))]
    pub endpoints: Vec<String>,
    /// `sha256:` and 64 hex digits: the digest of the public key (SubjectPublicKeyInfo, DER) of the
    /// hub's CA. Checked before the token is sent.
    #[schemars(length(min = 71, max = 71), regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub ca_pin: String,
    /// Set by `spillway leave`: the agent takes leave of the hub and has the nodes torn down.
    #[serde(default)]
    pub leaving: bool,
    /// What the hub may do in this cluster. Left out, everything that its plans say.
    #[serde(default, skip_serializing_if = "is_default")]
    pub grants: Grants,
}

/// How the connection goes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HubConnectionStatus {
    /// Endpoint in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 261))]
    pub endpoint: Option<String>,
    /// Digest of the plan last acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub acknowledged: Option<String>,
    /// End of the agent certificate's life, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub certificate_expires: Option<String>,
    /// The hub was told that this member leaves, and agreed.
    #[serde(default)]
    pub left: bool,
    /// `Enrolled`, `Connected`, `Programmed`, `Granted`. Reasons of a false `Enrolled`: `HubUnreachable`,
    /// `PinMismatch`, `TokenUnknown`, `TokenUsed`, `TokenExpired`, `TokenForOtherMember`, `NameTaken`,
    /// `TokenMissing`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

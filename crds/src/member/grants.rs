//! What a cluster's owner lets the hub do in it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the hub may do here, whatever its plans say. Absent: everything of that kind.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Grants {
    /// Namespaces whose pods policies may select, by name. Pods of others leave as they would without Spillway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 63)))]
    pub namespaces: Option<Vec<String>>,
    /// Gateways that may be placed on this cluster's nodes, by name. Nodes answer for no egress IP of others, and carry
    /// nothing out for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 253)))]
    pub gateways: Option<Vec<String>>,
}

impl Grants {
    /// Whether policies may select pods of this namespace.
    pub fn namespace(&self, name: &str) -> bool {
        self.namespaces
            .as_ref()
            .is_none_or(|granted| granted.iter().any(|g| g == name))
    }

    /// Whether this gateway may be placed on this cluster's nodes.
    pub fn gateway(&self, name: &str) -> bool {
        self.gateways
            .as_ref()
            .is_none_or(|granted| granted.iter().any(|g| g == name))
    }
}

//! Address fields shared by several kinds, as users write them.
//!
//! Addresses stay strings here: an object that predates a stricter schema must still be readable, so
//! that its condition can name the field and the fix. `spillway-core` parses them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// At most one address of each family.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, KubeSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.ipv4) || isIP(self.ipv4) && ip(self.ipv4).family() == 4").message("ipv4 must be one IPv4 address, such as 203.0.113.10"),
    validation = Rule::new("!has(self.ipv6) || isIP(self.ipv6) && ip(self.ipv6).family() == 6").message("ipv6 must be one IPv6 address, such as 2001:db8::10")
)]
pub struct AddressPair {
    /// IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub ipv4: Option<String>,
    /// IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub ipv6: Option<String>,
}

/// At most one prefix of each family, in CIDR notation.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefixPair {
    /// IPv4 prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    pub ipv4: Option<String>,
    /// IPv6 prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 49))]
    pub ipv6: Option<String>,
}

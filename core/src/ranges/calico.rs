//! Calico: `IPPool`, of `crd.projectcalico.org/v1` and of `projectcalico.org/v3`, which have the same fields.

use serde_json::Value;

use super::found::{Found, name};

/// `spec.cidr` of each pool. A disabled pool gives no new addresses, but pods keep those they have. A pool for
/// LoadBalancer addresses alone has no pods.
pub fn calico<'a>(pools: impl IntoIterator<Item = &'a Value>) -> Found {
    let mut found = Found::default();
    for pool in pools {
        let spec = &pool["spec"];
        let uses = spec["allowedUses"].as_array();
        if uses.is_some_and(|u| !u.is_empty() && u.iter().all(|u| u == "LoadBalancer")) {
            continue;
        }
        found.value(&spec["cidr"], format_args!("IPPool {}, spec.cidr", name(pool)));
    }
    found
}

//! Cilium: its ConfigMap (cluster-pool mode), `CiliumNode`s (what nodes really have) and `CiliumPodIPPool`s.

use serde_json::Value;

use super::found::{Found, name};

/// Ranges of the ConfigMap `cilium-config`. The native-routing range isn't one of them: it says what isn't
/// masqueraded, and often covers a whole data centre.
pub fn cilium_config<'a>(maps: impl IntoIterator<Item = &'a Value>) -> Found {
    let mut found = Found::default();
    for map in maps {
        for key in ["cluster-pool-ipv4-cidr", "cluster-pool-ipv6-cidr"] {
            if let Some(list) = map["data"][key].as_str() {
                found.list(list, format_args!("ConfigMap {}, {key}", name(map)));
            }
        }
    }
    found
}

/// What nodes have: ranges of every IPAM mode, and Cilium's own addresses.
pub fn cilium_nodes<'a>(nodes: impl IntoIterator<Item = &'a Value>) -> Found {
    let mut found = Found::default();
    for node in nodes {
        let (name, spec) = (name(node), &node["spec"]);
        let ipam = &spec["ipam"];
        found.values(
            &ipam["podCIDRs"],
            format_args!("CiliumNode {name}, spec.ipam.podCIDRs"),
        );
        for pool in items(&ipam["pools"]["allocated"]) {
            cidrs(
                &mut found,
                &pool["cidrs"],
                format_args!("CiliumNode {name}, spec.ipam.pools.allocated"),
            );
        }
        // Cloud modes give a node single addresses: the keys.
        for address in ipam["pool"].as_object().into_iter().flat_map(|p| p.keys()) {
            found.range(address, format_args!("CiliumNode {name}, spec.ipam.pool"));
        }
        for address in items(&spec["addresses"]) {
            found.value(&address["ip"], format_args!("CiliumNode {name}, spec.addresses"));
        }
    }
    found
}

/// Pools of the multi-pool mode.
pub fn cilium_pools<'a>(pools: impl IntoIterator<Item = &'a Value>) -> Found {
    let mut found = Found::default();
    for pool in pools {
        for family in ["ipv4", "ipv6"] {
            let place = format!("CiliumPodIPPool {}, spec.{family}.cidrs", name(pool));
            cidrs(&mut found, &pool["spec"][family]["cidrs"], place);
        }
    }
    found
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A list of strings or, as other lists of Cilium have it, of objects with `cidr`.
fn cidrs(found: &mut Found, list: &Value, place: impl std::fmt::Display) {
    for item in items(list) {
        found.value(item.get("cidr").unwrap_or(item), &place);
    }
}

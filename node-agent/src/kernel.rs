//! The data plane's words translated to the compiler's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use spillway_core::node::state;
use spillway_dataplane as dataplane;

/// The facts that the compiler looks at. `device` is our own tunnel.
pub(crate) fn facts(facts: &dataplane::Facts, device: &str) -> state::Facts {
    let links: BTreeMap<_, _> = facts
        .devices
        .values()
        .filter(|d| d.name != device)
        .filter_map(|d| {
            let addresses = d
                .addresses
                .iter()
                .copied()
                .filter(|a| routable(a.addr()))
                .collect();
            let link = state::LinkFacts {
                mtu: d.mtu,
                addresses,
            };
            // Every pod has a device; the compiler asks only about those with an address.
            (!link.addresses.is_empty()).then(|| (d.name.clone(), link))
        })
        .collect();
    state::Facts {
        links,
        default_device4: facts.default_v4.clone(),
        default_device6: facts.default_v6.clone(),
        without_ipv6: !facts.capabilities.ipv6,
    }
}

fn routable(address: IpAddr) -> bool {
    !address.is_loopback() && !matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// What of the kernel is missing for the plan to be programmed.
pub(crate) fn missing(facts: &dataplane::Facts) -> Vec<String> {
    let required = ["nftables", "vxlan_gbp", "conntrack"];
    facts
        .capabilities
        .missing
        .iter()
        .filter(|(name, _)| required.contains(&name.as_str()))
        .map(|(name, why)| format!("the kernel lacks {name}: {why}"))
        .collect()
}

//! Spiderpool: `SpiderIPPool` (addresses that pods have on the nodes' network) and `SpiderCoordinator` (what it
//! found out about the cluster).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use serde_json::Value;

use super::found::{Found, name, quoted};

/// Addresses that pools may give to pods: `spec.ips`, single addresses and ranges `a-b`; where there are none, all
/// of `spec.subnet`. The rest of a subnet belongs to machines that aren't the cluster's. What `excludeIPs` takes out
/// is left in: pods may have had it before.
pub fn spider_pools<'a>(pools: impl IntoIterator<Item = &'a Value>) -> Found {
    let mut found = Found::default();
    for pool in pools {
        let (name, spec) = (name(pool), &pool["spec"]);
        let ips = spec["ips"].as_array().filter(|ips| !ips.is_empty());
        let Some(ips) = ips else {
            found.value(&spec["subnet"], format_args!("SpiderIPPool {name}, spec.subnet"));
            continue;
        };
        let place = format!("SpiderIPPool {name}, spec.ips");
        for ip in ips {
            let span = ip.as_str().and_then(|s| s.split_once('-'));
            match span {
                None => found.value(ip, &place),
                Some((first, last)) => match between(first.trim(), last.trim()) {
                    Some(nets) => nets.into_iter().for_each(|net| found.net(net, &place)),
                    None => found.fault(format!(
                        "{place}: {} is no range of addresses",
                        quoted(&format!("{first}-{last}"))
                    )),
                },
            }
        }
    }
    found
}

/// The fewest prefixes that cover a range.
fn between(first: &str, last: &str) -> Option<Vec<IpNet>> {
    match (first.parse().ok()?, last.parse().ok()?) {
        (IpAddr::V4(a), IpAddr::V4(b)) if a <= b => {
            Some(Ipv4Subnets::new(a, b, 0).map(IpNet::from).collect())
        }
        (IpAddr::V6(a), IpAddr::V6(b)) if a <= b => {
            Some(Ipv6Subnets::new(a, b, 0).map(IpNet::from).collect())
        }
        _ => None,
    }
}

/// `status.overlayPodCIDR` and `status.serviceCIDR`. A coordinator that isn't ready empties both.
pub fn spider_coordinators<'a>(coordinators: impl IntoIterator<Item = &'a Value>) -> Found {
    let mut found = Found::default();
    for coordinator in coordinators {
        let (name, status) = (name(coordinator), &coordinator["status"]);
        for key in ["overlayPodCIDR", "serviceCIDR"] {
            found.values(
                &status[key],
                format_args!("SpiderCoordinator {name}, status.{key}"),
            );
        }
        if status["phase"] == "NotReady" {
            found.fault(format!(
                "SpiderCoordinator {name} is NotReady and may list less than there is"
            ));
        }
    }
    found
}

//! What belongs to this cluster and so is never taken by a policy: `ClusterNetwork`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::{Api, Client, Resource as _};
use serde_json::json;
use spillway_crds::SINGLETON;
use spillway_crds::member::{ClusterNetwork, ClusterNetworkSpec, RangeSource};

use crate::api::{self, Failure};
use crate::control::{self, Wake};
use crate::mirror::{Mirror, Objects, State};
use crate::overlay::addresses;

/// Most ranges that one source may list.
const MAX_RANGES: usize = 4096;

/// A range given by hand that can't be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} in SPILLWAY_EXTRA_CIDRS is neither a CIDR (10.0.0.0/8) nor an address")]
pub(crate) struct BadRange(String);

/// Reads ranges separated by commas or blanks; host bits are cut off.
pub(crate) fn parse_ranges(list: &str) -> Result<BTreeSet<IpNet>, BadRange> {
    list.split([',', ' ', '\n', '\t'])
        .filter(|s| !s.is_empty())
        .map(|s| range(s).ok_or_else(|| BadRange(s.chars().take(80).collect())))
        .collect()
}

fn range(s: &str) -> Option<IpNet> {
    s.parse::<IpNet>()
        .ok()
        .or_else(|| s.parse::<IpAddr>().ok().map(IpNet::from))
        .map(|n| n.trunc())
}

/// Everything that ranges are found in.
#[derive(Clone, Copy)]
struct Found<'a> {
    nodes: &'a Objects<Node>,
    services: &'a Objects<ServiceCIDR>,
    api_server: &'a Objects<EndpointSlice>,
    extra: &'a BTreeSet<IpNet>,
}

fn detect(found: Found<'_>) -> ClusterNetworkSpec {
    let pods = found.nodes.values().flat_map(|n| {
        let spec = n.spec.iter();
        spec.flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr))
            .filter_map(|s| range(s))
    });
    let nodes = found.nodes.values().flat_map(|n| {
        ["InternalIP", "ExternalIP"]
            .into_iter()
            .flat_map(|kind| addresses(n, kind))
            .filter_map(range)
    });
    let services = found
        .services
        .values()
        .flat_map(|s| s.spec.iter().flat_map(|s| s.cidrs.iter().flatten()))
        .filter_map(|s| range(s));
    let api_server = found
        .api_server
        .values()
        .flat_map(|s| s.endpoints.iter().flat_map(|e| &e.addresses))
        .filter_map(|s| range(s));
    let sources: BTreeMap<&str, BTreeSet<IpNet>> = BTreeMap::from([
        ("nodes.spec.podCIDRs", pods.collect()),
        ("nodes.status.addresses", nodes.collect()),
        ("servicecidrs", services.collect()),
        ("endpointslices/default/kubernetes", api_server.collect()),
        ("extra", found.extra.clone()),
    ]);
    let sources = sources
        .into_iter()
        .filter(|(_, ranges)| !ranges.is_empty())
        .map(|(source, ranges)| RangeSource {
            source: source.into(),
            cidrs: bounded(source, ranges).iter().map(ToString::to_string).collect(),
        })
        .collect();
    ClusterNetworkSpec { sources }
}

/// Neighbouring ranges are merged only where there are too many to list one by one.
fn bounded(source: &str, ranges: BTreeSet<IpNet>) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = ranges.into_iter().collect();
    if ranges.len() > MAX_RANGES {
        ranges = IpNet::aggregate(&ranges);
        ranges.sort_unstable();
    }
    if ranges.len() > MAX_RANGES {
        tracing::error!(
            source,
            count = ranges.len(),
            limit = MAX_RANGES,
            "too many ranges: the last ones are left out; give an enclosing range in SPILLWAY_EXTRA_CIDRS"
        );
        ranges.truncate(MAX_RANGES);
    }
    ranges
}

/// The watches that ranges are found by.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) nodes: Mirror<Node>,
    pub(crate) services: Mirror<ServiceCIDR>,
    pub(crate) api_server: Mirror<EndpointSlice>,
    pub(crate) existing: Mirror<ClusterNetwork>,
}

/// Keeps the object for ever.
pub(crate) async fn run(client: Client, sources: Sources, extra: BTreeSet<IpNet>) {
    let wake = Wake::on([
        sources.nodes.changes(),
        sources.services.changes(),
        sources.api_server.changes(),
        sources.existing.changes(),
    ]);
    control::run("cluster ranges", wake, || reconcile(&client, &sources, &extra)).await;
}

async fn reconcile(client: &Client, sources: &Sources, extra: &BTreeSet<IpNet>) -> Result<(), Failure> {
    // Kubernetes before 1.33 doesn't serve ServiceCIDR; a packet to a Service has its pod's address by the time
    // policies see it, so the object is useful without that range.
    let known = sources.nodes.synced()
        && sources.api_server.synced()
        && sources.existing.synced()
        && sources.services.state() != State::Unread;
    if !known {
        return Ok(());
    }
    let spec = detect(Found {
        nodes: &sources.nodes.objects(),
        services: &sources.services.objects(),
        api_server: &sources.api_server.objects(),
        extra,
    });
    if sources.existing.get(SINGLETON).is_some_and(|e| e.spec == spec) {
        return Ok(());
    }
    let object = json!({
        "apiVersion": ClusterNetwork::api_version(&()),
        "kind": ClusterNetwork::kind(&()),
        "metadata": { "name": SINGLETON },
        "spec": spec,
    });
    let api = Api::<ClusterNetwork>::all(client.clone());
    api::apply(&api, "writing the ClusterNetwork", SINGLETON, &object).await?;
    tracing::info!(sources = ?spec.sources.iter().map(|s| (&s.source, s.cidrs.len())).collect::<Vec<_>>(),
        "cluster ranges recorded");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::{NodeAddress, NodeSpec, NodeStatus};
    use k8s_openapi::api::discovery::v1::Endpoint;
    use k8s_openapi::api::networking::v1::ServiceCIDRSpec;

    use super::*;

    fn node(pods: &[&str], internal: &str) -> Arc<Node> {
        Arc::new(Node {
            spec: Some(NodeSpec {
                pod_cidr: pods.first().map(|s| (*s).to_owned()),
                pod_cidrs: Some(pods.iter().map(|s| (*s).to_owned()).collect()),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                addresses: Some(vec![
                    NodeAddress {
                        address: internal.into(),
                        type_: "InternalIP".into(),
                    },
                    NodeAddress {
                        address: "node-1".into(),
                        type_: "Hostname".into(),
                    },
                ]),
                ..NodeStatus::default()
            }),
            ..Node::default()
        })
    }

    #[test]
    fn every_source_is_listed_sorted_and_once() {
        let nodes: Objects<Node> = [
            ("b".into(), node(&["10.244.2.0/24", "fd00:2::/64"], "192.0.2.20")),
            ("a".into(), node(&["10.244.1.0/24"], "192.0.2.3")),
        ]
        .into();
        let services: Objects<ServiceCIDR> = [(
            "kubernetes".into(),
            Arc::new(ServiceCIDR {
                spec: Some(ServiceCIDRSpec {
                    cidrs: Some(vec!["10.96.0.0/16".into()]),
                }),
                ..ServiceCIDR::default()
            }),
        )]
        .into();
        let api_server: Objects<EndpointSlice> = [(
            "kubernetes".into(),
            Arc::new(EndpointSlice {
                endpoints: vec![Endpoint {
                    addresses: vec!["192.0.2.100".into()],
                    ..Endpoint::default()
                }],
                ..EndpointSlice::default()
            }),
        )]
        .into();
        let extra = parse_ranges("172.16.3.1/12, 10.0.0.1").expect("ranges");
        let spec = detect(Found {
            nodes: &nodes,
            services: &services,
            api_server: &api_server,
            extra: &extra,
        });
        let listed: Vec<_> = spec
            .sources
            .iter()
            .map(|s| (s.source.as_str(), s.cidrs.join(" ")))
            .collect();
        assert_eq!(
            listed,
            [
                ("endpointslices/default/kubernetes", "192.0.2.100/32".to_owned()),
                ("extra", "10.0.0.1/32 172.16.0.0/12".to_owned()),
                (
                    "nodes.spec.podCIDRs",
                    "10.244.1.0/24 10.244.2.0/24 fd00:2::/64".to_owned()
                ),
                ("nodes.status.addresses", "192.0.2.3/32 192.0.2.20/32".to_owned()),
                ("servicecidrs", "10.96.0.0/16".to_owned()),
            ]
        );
    }

    #[test]
    fn a_source_without_ranges_is_left_out() {
        let spec = detect(Found {
            nodes: &Objects::new(),
            services: &Objects::new(),
            api_server: &Objects::new(),
            extra: &BTreeSet::new(),
        });
        assert_eq!(spec, ClusterNetworkSpec::default());
    }

    #[test]
    fn too_many_neighbours_are_merged() {
        let many: BTreeSet<IpNet> = (0..=5000u32)
            .map(|i| IpNet::from(IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + i))))
            .collect();
        let bounded = bounded("test", many);
        assert!(bounded.len() < 20);
        assert!(bounded.is_sorted());
    }

    #[test]
    fn a_wrong_extra_range_is_named() {
        assert_eq!(parse_ranges(" , "), Ok(BTreeSet::new()));
        assert_eq!(parse_ranges("10.0.0.0/8,ten"), Err(BadRange("ten".into())));
    }
}

//! What belongs to this cluster and so is never taken by a policy: `ClusterNetwork`. What the sources mean is
//! decided in [`spillway_core::ranges`]; here they are watched.

mod foreign;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, Resource as _};
use serde_json::json;
use spillway_core::ranges::{self, Found, Outcome, Reading};
use spillway_crds::member::{
    API_SERVER, ClusterNetwork, ClusterNetworkSpec, ClusterNetworkStatus, EgressNode, NODE_ADDRESSES,
    POD_RANGES, SERVICE_RANGES, StrayPod,
};
use spillway_crds::{SINGLETON, condition};
use tokio::sync::Mutex;

use self::foreign::reading;
pub(crate) use self::foreign::{Foreign, start};
use crate::api::{self, Failure};
use crate::control::{self, Wake};
use crate::mirror::{Mirror, Objects};
use crate::published::Published;

/// A range given by hand that can't be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} in SPILLWAY_EXTRA_CIDRS is neither a CIDR (10.0.0.0/8) nor an address")]
pub(crate) struct BadRange(String);

/// Reads ranges separated by commas or blanks; host bits are cut off.
pub(crate) fn parse_ranges(list: &str) -> Result<BTreeSet<IpNet>, BadRange> {
    list.split([',', ' ', '\n', '\t'])
        .filter(|s| !s.is_empty())
        .map(|s| ranges::parse(s).ok_or_else(|| BadRange(s.chars().take(80).collect())))
        .collect()
}

/// The watches that ranges are found by.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) nodes: Mirror<Node>,
    pub(crate) services: Mirror<ServiceCIDR>,
    pub(crate) api_server: Mirror<EndpointSlice>,
    pub(crate) foreign: Vec<Foreign>,
    pub(crate) egress: Mirror<EgressNode>,
    pub(crate) existing: Mirror<ClusterNetwork>,
}

impl Sources {
    fn readings(&self, extra: &BTreeSet<IpNet>) -> BTreeMap<&'static str, Reading> {
        let nodes = self.nodes.objects();
        let all = || nodes.values().map(|n| &**n);
        let mut readings = BTreeMap::from([
            (POD_RANGES, Reading::Read(ranges::node_pod_ranges(all()))),
            (NODE_ADDRESSES, Reading::Read(ranges::node_addresses(all()))),
            (
                "nodes.annotations",
                Reading::Read(ranges::node_annotations(all())),
            ),
            (
                SERVICE_RANGES,
                reading(&self.services, |o| {
                    ranges::service_ranges(o.values().map(|s| &**s))
                }),
            ),
            (
                API_SERVER,
                reading(&self.api_server, |o| ranges::api_server(o.values().map(|s| &**s))),
            ),
            (
                "extra",
                Reading::Read(Found {
                    ranges: extra.clone(),
                    faults: Vec::new(),
                }),
            ),
        ]);
        readings.extend(self.foreign.iter().map(|f| (f.name, f.reading())));
        readings
    }
}

/// Pods outside of all ranges, by the node that tells of them. A node that Kubernetes has forgotten tells nothing.
fn strays<'a>(nodes: &Objects<Node>, egress: &'a Objects<EgressNode>) -> Vec<(&'a str, &'a StrayPod)> {
    egress
        .iter()
        .filter(|(name, _)| nodes.contains_key(*name))
        .flat_map(|(name, node)| {
            let strays = node.status.iter().flat_map(|s| &s.stray_pods);
            strays.map(|s| (name.as_str(), s))
        })
        .collect()
}

struct Writer {
    client: Client,
    sources: Sources,
    extra: BTreeSet<IpNet>,
    found: Published<ClusterRanges>,
    /// The ranges decided on last: the watch shows them only later, and a source that fails keeps those it gave.
    decided: Option<ClusterNetworkSpec>,
    /// The status written last, and to which object: the watch shows it only later.
    written: Option<(Option<String>, ClusterNetworkStatus)>,
}

/// What the hub is told of the ranges.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ClusterRanges {
    /// What was found.
    pub(crate) spec: ClusterNetworkSpec,
    /// What is wrong with it; empty where nothing is.
    pub(crate) problem: String,
}

/// Keeps the object for ever.
pub(crate) async fn run(
    client: Client,
    sources: Sources,
    extra: BTreeSet<IpNet>,
    found: Published<ClusterRanges>,
) {
    let foreign = sources.foreign.iter().map(Foreign::changes);
    let wake = Wake::on(foreign.chain([
        sources.nodes.changes(),
        sources.services.changes(),
        sources.api_server.changes(),
        sources.egress.changes(),
        sources.existing.changes(),
    ]));
    let writer = Mutex::new(Writer {
        client,
        sources,
        extra,
        found,
        decided: None,
        written: None,
    });
    control::run("cluster ranges", wake, || async {
        writer.lock().await.reconcile().await
    })
    .await;
}

impl Writer {
    async fn reconcile(&mut self) -> Result<(), Failure> {
        let sources = &self.sources;
        if !sources.nodes.synced() || !sources.egress.synced() || !sources.existing.synced() {
            return Ok(());
        }
        let existing = sources.existing.get(SINGLETON);
        let previous = self.decided.as_ref().or(existing.as_ref().map(|e| &e.spec));
        let Some(outcome) = ranges::combine(previous, sources.readings(&self.extra)) else {
            return Ok(());
        };
        self.decided = Some(outcome.spec.clone());
        let existing = match existing {
            Some(existing) if existing.spec == outcome.spec => existing.as_ref().clone(),
            _ => self.write(&outcome.spec).await?,
        };
        self.status(&existing, outcome).await
    }

    async fn write(&self, spec: &ClusterNetworkSpec) -> Result<ClusterNetwork, Failure> {
        let object = json!({
            "apiVersion": ClusterNetwork::api_version(&()),
            "kind": ClusterNetwork::kind(&()),
            "metadata": { "name": SINGLETON },
            "spec": spec,
        });
        let api = Api::<ClusterNetwork>::all(self.client.clone());
        let written = api::apply(&api, "writing the ClusterNetwork", SINGLETON, &object).await?;
        tracing::info!(sources = ?spec.sources.iter().map(|s| (&s.source, s.cidrs.len())).collect::<Vec<_>>(),
            "cluster ranges recorded");
        Ok(written)
    }

    async fn status(&mut self, existing: &ClusterNetwork, outcome: Outcome) -> Result<(), Failure> {
        let (nodes, egress) = (self.sources.nodes.objects(), self.sources.egress.objects());
        let verdict = ranges::verdict(&outcome.sources, &strays(&nodes, &egress));
        let problem = match verdict.status {
            Some(true) => String::new(),
            _ => verdict.message.clone(),
        };
        self.found.edit(|f| {
            *f = ClusterRanges {
                spec: outcome.spec,
                problem,
            };
        });
        let (uid, generation) = (existing.metadata.uid.clone(), existing.metadata.generation);
        let old = match &self.written {
            Some((of, status)) if *of == uid => Some(status.clone()),
            _ => existing.status.clone(),
        };
        let mut conditions = old.clone().unwrap_or_default().conditions;
        condition::set(&mut conditions, generation, &verdict, Timestamp::now());
        let new = ClusterNetworkStatus {
            sources: outcome.sources,
            conditions,
        };
        if old.as_ref() == Some(&new) {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": ClusterNetwork::api_version(&()),
            "kind": ClusterNetwork::kind(&()),
            "metadata": { "name": SINGLETON, "uid": uid },
            "status": new,
        });
        let api = Api::<ClusterNetwork>::all(self.client.clone());
        api::apply_status(&api, "writing the ClusterNetwork's status", SINGLETON, &patch).await?;
        if verdict.status != Some(true) {
            tracing::warn!(
                reason = verdict.reason,
                message = verdict.message,
                "cluster ranges"
            );
        }
        self.written = Some((uid, new));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spillway_crds::member::{EgressNodeSpec, EgressNodeStatus};

    use super::*;

    #[test]
    fn a_wrong_extra_range_is_named() {
        assert_eq!(parse_ranges(" , "), Ok(BTreeSet::new()));
        assert_eq!(parse_ranges("10.0.0.0/8,ten"), Err(BadRange("ten".into())));
        let ranges = parse_ranges("172.16.3.1/12, 10.0.0.1").expect("ranges");
        let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.0.0.1/32", "172.16.0.0/12"]);
    }

    #[test]
    fn nodes_that_are_gone_tell_of_no_strays() {
        let mut told = EgressNode::new("n1", EgressNodeSpec::default());
        told.status = Some(EgressNodeStatus {
            stray_pods: vec![StrayPod::default()],
            ..EgressNodeStatus::default()
        });
        let egress: Objects<EgressNode> = [("n1".into(), Arc::new(told))].into();
        let nodes: Objects<Node> = [("n1".into(), Arc::new(Node::default()))].into();
        assert_eq!(strays(&nodes, &egress).len(), 1);
        assert_eq!(strays(&Objects::new(), &egress), []);
    }
}

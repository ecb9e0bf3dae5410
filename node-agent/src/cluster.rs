//! What this agent watches of its cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod as KubePod};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use spillway_core::node::inputs::Pod;
use spillway_crds::member::{
    ClusterNetwork, ClusterNetworkSpec, EgressNode, EgressNodeSpec, EgressNodeStatus, EgressPlan,
    EgressPlanSpec, PlannedGateway, PlannedGatewaySpec, PlannedMember, PlannedMemberSpec, PlannedPeer,
    PlannedPeerSpec, PlannedPolicy, PlannedPolicySpec,
};
use spillway_crds::{DIGEST_ANNOTATION, SINGLETON};
use tokio::sync::watch;

use crate::gate::{Planned, Seen};
use crate::mirror::{Mirror, mirror, mirror_metadata};
use crate::pods;

/// This node's own EgressNode, as far as its status is concerned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Own {
    pub(crate) generation: Option<i64>,
    pub(crate) status: Option<EgressNodeStatus>,
}

/// Copies of all that matters.
#[derive(Clone)]
pub(crate) struct Cluster {
    pods: Mirror<Pod>,
    namespaces: Mirror<BTreeMap<String, String>>,
    heads: Mirror<EgressPlanSpec>,
    members: Mirror<Planned<PlannedMemberSpec>>,
    peers: Mirror<Planned<PlannedPeerSpec>>,
    gateways: Mirror<Planned<PlannedGatewaySpec>>,
    policies: Mirror<Planned<PlannedPolicySpec>>,
    /// With their public keys.
    nodes: Mirror<(EgressNodeSpec, Vec<String>)>,
    networks: Mirror<ClusterNetworkSpec>,
    changed: watch::Receiver<u64>,
}

fn planned<K: Resource, S>(object: &K, spec: S) -> Planned<S> {
    let annotations = object.meta().annotations.as_ref();
    Planned {
        spec,
        digest: annotations
            .and_then(|a| a.get(DIGEST_ANNOTATION))
            .and_then(|d| d.parse().ok()),
    }
}

fn all<K>(client: &Client) -> Api<DeserializeGuard<K>>
where
    K: Resource,
    K::DynamicType: Default,
{
    Api::all(client.clone())
}

impl Cluster {
    /// Starts to watch, as node `node`.
    pub(crate) fn watch(client: &Client, node: &str) -> Self {
        let (counter, changes) = watch::channel(0);
        let any = watcher::Config::default;
        let mine = any().fields(&format!("spec.nodeName={node}"));
        let c = &counter;
        Self {
            pods: mirror("Pod", all(client), mine, c, |p: &KubePod| pods::reduce(p)),
            namespaces: mirror_metadata::<Namespace, _>("Namespace", Api::all(client.clone()), c, |m| {
                m.labels.clone().unwrap_or_default()
            }),
            heads: mirror("EgressPlan", all(client), any(), c, |o: &EgressPlan| {
                o.spec.clone()
            }),
            members: mirror("PlannedMember", all(client), any(), c, |o: &PlannedMember| {
                planned(o, o.spec.clone())
            }),
            peers: mirror("PlannedPeer", all(client), any(), c, |o: &PlannedPeer| {
                planned(o, o.spec.clone())
            }),
            gateways: mirror("PlannedGateway", all(client), any(), c, |o: &PlannedGateway| {
                planned(o, o.spec.clone())
            }),
            policies: mirror("PlannedPolicy", all(client), any(), c, |o: &PlannedPolicy| {
                planned(o, o.spec.clone())
            }),
            nodes: mirror("EgressNode", all(client), any(), c, |o: &EgressNode| {
                let wireguard = o.status.as_ref().and_then(|s| s.wireguard.as_ref());
                (
                    o.spec.clone(),
                    wireguard.map(|w| w.public_keys.clone()).unwrap_or_default(),
                )
            }),
            networks: mirror("ClusterNetwork", all(client), any(), c, |o: &ClusterNetwork| {
                o.spec.clone()
            }),
            changed: changes,
        }
    }

    /// True once every kind was read.
    pub(crate) fn synced(&self) -> bool {
        self.unread().is_empty()
    }

    /// Kinds that weren't read yet.
    pub(crate) fn unread(&self) -> Vec<&'static str> {
        [
            ("Pod", self.pods.synced()),
            ("Namespace", self.namespaces.synced()),
            ("EgressPlan", self.heads.synced()),
            ("PlannedMember", self.members.synced()),
            ("PlannedPeer", self.peers.synced()),
            ("PlannedGateway", self.gateways.synced()),
            ("PlannedPolicy", self.policies.synced()),
            ("EgressNode", self.nodes.synced()),
            ("ClusterNetwork", self.networks.synced()),
        ]
        .into_iter()
        .filter(|(_, synced)| !synced)
        .map(|(kind, _)| kind)
        .collect()
    }

    /// A pod of this node.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        self.pods.named(namespace, name)
    }

    /// Says when something changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Everything as it is now.
    pub(crate) fn seen(&self) -> Seen {
        let nodes = self.nodes.by_name().into_iter();
        let (nodes, public_keys) = nodes
            .map(|(name, (spec, keys))| ((name.clone(), spec), (name, keys)))
            .unzip();
        Seen {
            head: self.heads.get(SINGLETON),
            members: self.members.by_name(),
            peers: self.peers.by_name(),
            gateways: self.gateways.by_name(),
            policies: self.policies.by_name(),
            nodes,
            public_keys,
            network: self.networks.get(SINGLETON),
            namespaces: self.namespaces.by_name(),
            pods: self.pods.objects().into_values().collect(),
            forgotten: self.pods.take_deleted(),
        }
    }
}

/// Watches this node's own EgressNode.
pub(crate) fn watch_own(client: &Client, node: &str) -> (Mirror<Own>, watch::Receiver<u64>) {
    let (counter, changes) = watch::channel(0);
    let select = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let own = mirror(
        "EgressNode (own)",
        all(client),
        select,
        &counter,
        |o: &EgressNode| Own {
            generation: o.metadata.generation,
            status: o.status.clone(),
        },
    );
    (own, changes)
}

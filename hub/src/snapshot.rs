//! All objects that decide, and one consistent look at them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::core::DeserializeGuard;
use kube::{Api, Client};
use spillway_core::alloc::{Memory, OverlayRange};
use spillway_core::resolve::{FederationState, GatewayInput, PolicyInput};
use spillway_crds::hub::{
    AddressSlices, EgressGateway, Encryption, FederatedClusterEgressPolicy, FederatedEgressPolicy, Member,
    PolicyStatus, ResolvedEgress,
};
use spillway_crds::member::{NodeRef, PolicyRef, Tunnel};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::mirror::Mirror;

/// Copies of the four kinds.
#[derive(Clone)]
pub(crate) struct Mirrors {
    pub(crate) members: Mirror<Member>,
    pub(crate) gateways: Mirror<EgressGateway>,
    pub(crate) policies: Mirror<FederatedEgressPolicy>,
    pub(crate) cluster_policies: Mirror<FederatedClusterEgressPolicy>,
    /// Notified whenever one of them changes.
    pub(crate) changed: Arc<Notify>,
}

impl Mirrors {
    /// Starts the watches.
    pub(crate) fn follow(client: &Client, tasks: &mut JoinSet<&'static str>) -> Self {
        let changed = Arc::new(Notify::new());
        let mirrors = Self {
            members: Mirror::new(changed.clone()),
            gateways: Mirror::new(changed.clone()),
            policies: Mirror::new(changed.clone()),
            cluster_policies: Mirror::new(changed.clone()),
            changed,
        };
        macro_rules! follow {
            ($field:ident, $kind:ty) => {
                let mirror = mirrors.$field.clone();
                let api: Api<DeserializeGuard<$kind>> = Api::all(client.clone());
                tasks.spawn(async move {
                    mirror.follow(api).await;
                    concat!("watch of ", stringify!($field))
                });
            };
        }
        follow!(members, Member);
        follow!(gateways, EgressGateway);
        follow!(policies, FederatedEgressPolicy);
        follow!(cluster_policies, FederatedClusterEgressPolicy);
        mirrors
    }

    /// Waits until everything was read once.
    pub(crate) async fn synced(&self) {
        self.members.synced().await;
        self.gateways.synced().await;
        self.policies.synced().await;
        self.cluster_policies.synced().await;
    }

    /// Kinds that weren't read yet.
    pub(crate) fn unsynced(&self) -> Vec<&'static str> {
        let kinds = [
            ("members", self.members.is_synced()),
            ("gateways", self.gateways.is_synced()),
            ("policies", self.policies.is_synced()),
            ("cluster policies", self.cluster_policies.is_synced()),
        ];
        kinds
            .into_iter()
            .filter(|(_, synced)| !synced)
            .map(|(kind, _)| kind)
            .collect()
    }

    /// The objects as they are now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut policies = BTreeMap::new();
        for (key, policy) in self.policies.objects() {
            let source = PolicyRef {
                namespace: Some(key.namespace.unwrap_or_default()),
                name: key.name,
            };
            policies.insert(source, Policy::Namespaced(policy));
        }
        for (key, policy) in self.cluster_policies.objects() {
            let source = PolicyRef {
                namespace: None,
                name: key.name,
            };
            policies.insert(source, Policy::Cluster(policy));
        }
        Snapshot {
            members: by_name(self.members.objects()),
            gateways: by_name(self.gateways.objects()),
            policies,
            sure: self.members.sure()
                && self.gateways.sure()
                && self.policies.sure()
                && self.cluster_policies.sure(),
            unknown: [
                self.members.unknown(),
                self.gateways.unknown(),
                self.policies.unknown(),
                self.cluster_policies.unknown(),
            ]
            .concat(),
            numbers: Arc::default(),
            lost: BTreeMap::new(),
            lost_egress: BTreeMap::new(),
            gone: BTreeSet::new(),
        }
    }
}

fn by_name<K>(objects: crate::mirror::Objects<K>) -> BTreeMap<String, Arc<K>> {
    objects
        .into_iter()
        .map(|(key, object)| (key.name, object))
        .collect()
}

/// A policy of either kind.
#[derive(Clone, Debug)]
pub(crate) enum Policy {
    /// In a namespace.
    Namespaced(Arc<FederatedEgressPolicy>),
    /// Cluster-wide.
    Cluster(Arc<FederatedClusterEgressPolicy>),
}

impl Policy {
    /// The object's uid and status.
    pub(crate) fn record(&self) -> (Option<&String>, Option<&PolicyStatus>) {
        match self {
            Self::Namespaced(p) => (p.metadata.uid.as_ref(), p.status.as_ref()),
            Self::Cluster(p) => (p.metadata.uid.as_ref(), p.status.as_ref()),
        }
    }
}

/// The objects at one time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) members: BTreeMap<String, Arc<Member>>,
    pub(crate) gateways: BTreeMap<String, Arc<EgressGateway>>,
    pub(crate) policies: BTreeMap<PolicyRef, Policy>,
    /// Every object could be read.
    pub(crate) sure: bool,
    /// Objects that once counted and of which nothing is known: with them missing, nothing can be told of
    /// what is to run.
    pub(crate) unknown: Vec<String>,
    /// Numbers that were in use before.
    pub(crate) numbers: Arc<Memory>,
    /// Port slices of gateways whose status was wiped, as they were.
    pub(crate) lost: BTreeMap<String, Vec<AddressSlices>>,
    /// What policies left with whose status was wiped.
    pub(crate) lost_egress: BTreeMap<PolicyRef, Vec<ResolvedEgress>>,
    /// Nodes with ports that their members have long not reported any more.
    pub(crate) gone: BTreeSet<NodeRef>,
}

impl Snapshot {
    /// What resolution reads.
    pub(crate) fn state(
        &self,
        overlay: OverlayRange,
        tunnel: &Tunnel,
        encryption: Encryption,
    ) -> FederationState {
        FederationState {
            overlay,
            tunnel: tunnel.clone(),
            encryption,
            memory: self.numbers.clone(),
            members: self.members.values().map(|m| (&**m).into()).collect(),
            gateways: self
                .gateways
                .iter()
                .map(|(name, g)| GatewayInput {
                    lost: self.lost.get(name).cloned().unwrap_or_default(),
                    ..(&**g).into()
                })
                .collect(),
            gone: self.gone.clone(),
            policies: self
                .policies
                .iter()
                .map(|(source, p)| {
                    let input: PolicyInput = match p {
                        Policy::Namespaced(p) => (&**p).into(),
                        Policy::Cluster(p) => (&**p).into(),
                    };
                    match self.lost_egress.get(source) {
                        Some(held) => PolicyInput {
                            held: held.clone(),
                            ..input
                        },
                        None => input,
                    }
                })
                .collect(),
        }
    }
}

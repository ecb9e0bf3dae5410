//! What resolution reads: the hub's objects without what only the API server needs of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use spillway_crds::LabelSelector;
use spillway_crds::address::PrefixPair;
use spillway_crds::condition::ConditionType;
use spillway_crds::hub::{
    AddressSlices, Bandwidth, Destinations, EgressGateway, EgressGatewaySpec, Encryption,
    FederatedClusterEgressPolicy, FederatedEgressPolicy, IdentityRecord, Member, MemberNode, OnUnavailable,
    PlanProgress, PolicyStatus, Reachability, ResolvedEgress, Sources, Through,
};
use spillway_crds::member::{NodeRef, PolicyRef, Tunnel};

use crate::alloc::{Memory, OverlayRange};
use crate::plan::Plan;

/// Everything that resolution reads.
#[derive(Clone, Debug, Default)]
pub struct FederationState {
    /// The overlay range.
    pub overlay: OverlayRange,
    /// Tunnel parameters.
    pub tunnel: Tunnel,
    /// Which paths are encrypted where a gateway doesn't say it itself.
    pub encryption: Encryption,
    /// Members.
    pub members: Vec<MemberInput>,
    /// Gateways.
    pub gateways: Vec<GatewayInput>,
    /// Policies of both kinds.
    pub policies: Vec<PolicyInput>,
    /// Numbers that were in use before. They decide only about what isn't recorded.
    pub memory: Arc<Memory>,
    /// Nodes that had ports and that their members have long not reported any more.
    pub gone: BTreeSet<NodeRef>,
}

/// A member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberInput {
    /// Name.
    pub name: String,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// Labels that policies select by.
    pub labels: BTreeMap<String, String>,
    /// Its partition.
    pub partition: String,
    /// How other partitions reach its nodes.
    pub reachability: Reachability,
    /// Recorded number.
    pub member_id: Option<u16>,
    /// Recorded overlay prefixes.
    pub overlay: Option<PrefixPair>,
    /// Nodes as reported.
    pub nodes: Vec<MemberNode>,
    /// It has reported its nodes, if only that there are none.
    pub reported: bool,
    /// Why it has no stream to the hub, where it is known to have none.
    pub disconnected: Option<String>,
    /// How far its plan has come.
    pub progress: PlanProgress,
    /// The plan that `progress.programmed` is the digest of, where it is still known: it tells which
    /// policies a newer plan leaves as they are.
    pub in_force: Option<Arc<Plan>>,
    /// Earlier plans by digest, as far as nodes have them and they are still known: they tell which ports each node
    /// knows of.
    pub plans: BTreeMap<String, Arc<Plan>>,
}

/// A gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayInput {
    /// Name.
    pub name: String,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// What the user wrote.
    pub spec: EgressGatewaySpec,
    /// Recorded identities.
    pub identities: Vec<IdentityRecord>,
    /// Recorded port slices.
    pub slices: Vec<AddressSlices>,
    /// Slices that were recorded before somebody wiped the status: they count where none are recorded.
    pub lost: Vec<AddressSlices>,
}

/// A policy of either kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyInput {
    /// Which object.
    pub source: PolicyRef,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// Selects members.
    pub members: LabelSelector,
    /// Selects namespaces; `None` for a namespaced policy.
    pub namespaces: Option<LabelSelector>,
    /// Selects pods.
    pub pods: LabelSelector,
    /// Addresses that the pods have; `None`: any.
    pub sources: Option<Sources>,
    /// Destinations.
    pub to: Destinations,
    /// The higher wins over age.
    pub priority: i32,
    /// Gateways in order of preference.
    pub through: Vec<Through>,
    /// How much its pods may send on each node.
    pub bandwidth: Option<Bandwidth>,
    /// What happens while none is available.
    pub on_unavailable: OnUnavailable,
    /// What it leaves with, as recorded in its status, or as it was before somebody wiped that.
    pub held: Vec<ResolvedEgress>,
}

/// What a policy's status records.
fn held(status: Option<&PolicyStatus>) -> Vec<ResolvedEgress> {
    status.map(|s| s.egress.clone()).unwrap_or_default()
}

fn created(metadata: &ObjectMeta) -> i64 {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(i64::MAX, |t| t.0.as_second())
}

impl From<&Member> for MemberInput {
    fn from(m: &Member) -> Self {
        let status = m.status.clone().unwrap_or_default();
        Self {
            name: m.metadata.name.clone().unwrap_or_default(),
            created: created(&m.metadata),
            labels: m.metadata.labels.clone().unwrap_or_default(),
            partition: m.spec.partition.clone(),
            reachability: m.spec.reachability,
            member_id: status.member_id,
            overlay: status.overlay,
            reported: status.node_count.is_some(),
            disconnected: status
                .conditions
                .into_iter()
                .find(|c| c.type_ == ConditionType::Connected.as_str() && c.status == "False")
                .map(|c| c.message),
            nodes: status.nodes,
            progress: status.plan,
            in_force: None,
            plans: BTreeMap::new(),
        }
    }
}

impl From<&EgressGateway> for GatewayInput {
    fn from(g: &EgressGateway) -> Self {
        let status = g.status.clone().unwrap_or_default();
        Self {
            name: g.metadata.name.clone().unwrap_or_default(),
            created: created(&g.metadata),
            spec: g.spec.clone(),
            identities: status.identities,
            slices: status.slices,
            lost: Vec::new(),
        }
    }
}

impl From<&FederatedEgressPolicy> for PolicyInput {
    fn from(p: &FederatedEgressPolicy) -> Self {
        Self {
            source: PolicyRef {
                namespace: Some(p.metadata.namespace.clone().unwrap_or_default()),
                name: p.metadata.name.clone().unwrap_or_default(),
            },
            created: created(&p.metadata),
            members: p.spec.members.clone(),
            namespaces: None,
            pods: p.spec.pods.clone(),
            sources: p.spec.sources.clone(),
            to: p.spec.to.clone(),
            priority: p.spec.priority,
            through: p.spec.through.clone(),
            bandwidth: p.spec.bandwidth.clone(),
            on_unavailable: p.spec.on_unavailable,
            held: held(p.status.as_ref()),
        }
    }
}

impl From<&FederatedClusterEgressPolicy> for PolicyInput {
    fn from(p: &FederatedClusterEgressPolicy) -> Self {
        Self {
            source: PolicyRef {
                namespace: None,
                name: p.metadata.name.clone().unwrap_or_default(),
            },
            created: created(&p.metadata),
            members: p.spec.members.clone(),
            namespaces: Some(p.spec.namespaces.clone()),
            pods: p.spec.pods.clone(),
            sources: p.spec.sources.clone(),
            to: p.spec.to.clone(),
            priority: p.spec.priority,
            through: p.spec.through.clone(),
            bandwidth: p.spec.bandwidth.clone(),
            on_unavailable: p.spec.on_unavailable,
            held: held(p.status.as_ref()),
        }
    }
}

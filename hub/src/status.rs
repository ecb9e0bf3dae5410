//! Statuses: what of them differs from what stands there, and the leader's task that writes it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use serde::Serialize;
use spillway_core::resolve::{GatewayOutcome, PolicyOutcome, Resolution};
use spillway_crds::condition::{Condition, Verdict};
use spillway_crds::hub::{
    AddressHolder, AddressUse, EgressGateway, EgressGatewayStatus, FederatedClusterEgressPolicy,
    FederatedEgressPolicy, Member, MemberPath, PolicyStatus, ResolvedEgress,
};
use tokio::sync::watch;

use crate::api::{Failure, Guard, MANAGER, apply_status};
use crate::conditions::{mine, own};
use crate::lease::Leadership;
use crate::moves::Teller;
use crate::snapshot::{Mirrors, Policy, Snapshot};

/// Writes under way at the same time.
const PARALLEL: usize = 8;
/// Wait before statuses that couldn't be written are resolved anew.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Serialize)]
struct MemberFields {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    paths: Vec<MemberPath>,
    conditions: Vec<Condition>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready_nodes: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    holders: Vec<AddressHolder>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    used: Vec<AddressUse>,
    conditions: Vec<Condition>,
}

#[derive(Debug, PartialEq, Serialize)]
struct PolicyFields {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    egress: Vec<ResolvedEgress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    members: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadowed: Option<String>,
    conditions: Vec<Condition>,
}

/// One status to write.
enum Change {
    Member(Arc<Member>, MemberFields),
    Gateway(Arc<EgressGateway>, GatewayFields),
    Policy(Arc<FederatedEgressPolicy>, PolicyFields),
    ClusterPolicy(Arc<FederatedClusterEgressPolicy>, PolicyFields),
}

/// What of the statuses differs from what the resolution says.
fn changes(snapshot: &Snapshot, resolution: &Resolution, now: Timestamp) -> Vec<Change> {
    let mut out = Vec::new();
    for (name, member) in &snapshot.members {
        let Some(verdicts) = resolution.members.get(name) else {
            continue;
        };
        let paths = resolution.paths.get(name).map_or(&[][..], Vec::as_slice);
        if let Some(fields) = member_fields(member, verdicts, paths, now) {
            out.push(Change::Member(member.clone(), fields));
        }
    }
    for (name, gateway) in &snapshot.gateways {
        let Some(outcome) = resolution.gateways.get(name) else {
            continue;
        };
        let status = gateway.status.clone().unwrap_or_default();
        if let Some(fields) = gateway_fields(&gateway.metadata, status, outcome, now) {
            out.push(Change::Gateway(gateway.clone(), fields));
        }
    }
    for (source, policy) in &snapshot.policies {
        let Some(outcome) = resolution.policies.get(source) else {
            continue;
        };
        match policy {
            Policy::Namespaced(p) => {
                let status = p.status.clone().unwrap_or_default();
                let fields = policy_fields(&p.metadata, status, outcome, now);
                out.extend(fields.map(|f| Change::Policy(p.clone(), f)));
            }
            Policy::Cluster(p) => {
                let status = p.status.clone().unwrap_or_default();
                let fields = policy_fields(&p.metadata, status, outcome, now);
                out.extend(fields.map(|f| Change::ClusterPolicy(p.clone(), f)));
            }
        }
    }
    out
}

fn member_fields(
    member: &Member,
    verdicts: &[Verdict],
    paths: &[MemberPath],
    now: Timestamp,
) -> Option<MemberFields> {
    let status = member.status.as_ref();
    let current = status.map_or(&[][..], |s| &s.conditions);
    let fields = MemberFields {
        paths: paths.to_vec(),
        conditions: own(current, member.metadata.generation, verdicts, now),
    };
    let standing = MemberFields {
        paths: status.map_or_else(Vec::new, |s| s.paths.clone()),
        conditions: mine(current, verdicts),
    };
    (fields != standing).then_some(fields)
}

fn gateway_fields(
    meta: &ObjectMeta,
    status: EgressGatewayStatus,
    outcome: &GatewayOutcome,
    now: Timestamp,
) -> Option<GatewayFields> {
    let fields = GatewayFields {
        holder: outcome.holder.clone(),
        ready_nodes: Some(outcome.ready_nodes),
        holders: outcome.holders.clone(),
        used: outcome.used.clone(),
        conditions: own(&status.conditions, meta.generation, &outcome.verdicts, now),
    };
    let standing = GatewayFields {
        holder: status.holder,
        ready_nodes: status.ready_nodes,
        holders: status.holders,
        used: status.used,
        conditions: mine(&status.conditions, &outcome.verdicts),
    };
    (fields != standing).then_some(fields)
}

fn policy_fields(
    meta: &ObjectMeta,
    status: PolicyStatus,
    outcome: &PolicyOutcome,
    now: Timestamp,
) -> Option<PolicyFields> {
    let fields = PolicyFields {
        egress: outcome.egress.clone(),
        members: Some(format!("{}/{}", outcome.programmed, outcome.selected.len())),
        shadowed: outcome.shadowed.clone(),
        conditions: own(&status.conditions, meta.generation, &outcome.verdicts, now),
    };
    let standing = PolicyFields {
        egress: status.egress,
        members: status.members,
        shadowed: status.shadowed,
        conditions: mine(&status.conditions, &outcome.verdicts),
    };
    (fields != standing).then_some(fields)
}

/// What the statuses follow from.
pub(crate) type Outcome = Option<Arc<(Snapshot, Resolution)>>;

/// Writes statuses while this replica leads.
pub(crate) struct StatusWriter {
    client: Client,
    mirrors: Mirrors,
    leadership: Leadership,
    teller: Teller,
}

impl StatusWriter {
    pub(crate) fn new(client: Client, mirrors: Mirrors, leadership: Leadership, replica: &str) -> Self {
        Self {
            teller: Teller::new(client.clone(), replica),
            client,
            mirrors,
            leadership,
        }
    }

    /// Follows the newest outcome. Ends when nobody offers any more.
    pub(crate) async fn run(self, mut outcomes: watch::Receiver<Outcome>) {
        while outcomes.changed().await.is_ok() {
            let Some(outcome) = outcomes.borrow_and_update().clone() else {
                continue;
            };
            let (snapshot, resolution) = &*outcome;
            let changes = changes(snapshot, resolution, Timestamp::now());
            let failures = futures::stream::iter(changes)
                .map(|change| self.write(change))
                .buffer_unordered(PARALLEL)
                .filter(|ok| std::future::ready(!*ok))
                .count()
                .await;
            if failures > 0 {
                tokio::time::sleep(RETRY).await;
                self.mirrors.changed.notify_one();
            }
        }
    }

    /// False where it has to be tried again.
    async fn write(&self, change: Change) -> bool {
        let client = &self.client;
        let mirrors = &self.mirrors;
        let (what, result) = match change {
            Change::Member(m, f) => (
                name(&m.metadata),
                self.apply(&Api::all(client.clone()), &m.metadata, &f)
                    .await
                    .map(|o| mirrors.members.written(o)),
            ),
            Change::Gateway(g, f) => {
                let written = self.apply(&Api::all(client.clone()), &g.metadata, &f).await;
                if written.is_ok() {
                    self.teller.tell(&g, &f.holders);
                }
                (name(&g.metadata), written.map(|o| mirrors.gateways.written(o)))
            }
            Change::Policy(p, f) => {
                let namespace = p.metadata.namespace.clone().unwrap_or_default();
                let api = Api::namespaced(client.clone(), &namespace);
                (
                    name(&p.metadata),
                    self.apply(&api, &p.metadata, &f)
                        .await
                        .map(|o| mirrors.policies.written(o)),
                )
            }
            Change::ClusterPolicy(p, f) => (
                name(&p.metadata),
                self.apply(&Api::all(client.clone()), &p.metadata, &f)
                    .await
                    .map(|o| mirrors.cluster_policies.written(o)),
            ),
        };
        match result {
            Ok(()) | Err(Failure::NotLeader) => true,
            // Deleted, or another object by now: the watch will tell.
            Err(error) if error.is_not_found() || error.is_conflict() => true,
            Err(error) => {
                tracing::warn!(object = what, %error, "a status can't be written; trying again");
                false
            }
        }
    }

    async fn apply<K>(&self, api: &Api<K>, meta: &ObjectMeta, fields: &impl Serialize) -> Result<K, Failure>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let limit = self.leadership.limit()?;
        apply_status(api, MANAGER, meta, Guard::Object, fields, limit).await
    }
}

fn name(meta: &ObjectMeta) -> String {
    let name = meta.name.clone().unwrap_or_default();
    match &meta.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use spillway_core::alloc::OverlayRange;
    use spillway_core::resolve::resolve;
    use spillway_crds::hub::{EgressGatewaySpec, Encryption, FederatedEgressPolicySpec, MemberSpec};
    use spillway_crds::member::{PolicyRef, Tunnel};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    /// Merges fields into a status as the API server does for fields of one manager.
    fn merged<S: Serialize + serde::de::DeserializeOwned + Default>(
        status: Option<&S>,
        fields: &impl Serialize,
    ) -> S {
        let mut whole = serde_json::to_value(status).expect("plain");
        if whole.is_null() {
            whole = serde_json::json!({});
        }
        let fields = serde_json::to_value(fields).expect("plain");
        for (key, value) in fields.as_object().expect("an object") {
            whole[key] = value.clone();
        }
        serde_json::from_value(whole).expect("a status")
    }

    #[test]
    fn a_second_run_writes_nothing() {
        let mut member = Member::new("a", MemberSpec::default());
        member.metadata.generation = Some(3);
        let gateway = EgressGateway::new("g", EgressGatewaySpec::default());
        let mut policy = FederatedEgressPolicy::new("p", FederatedEgressPolicySpec::default());
        policy.metadata.namespace = Some("n".into());
        let source = PolicyRef {
            namespace: Some("n".into()),
            name: "p".into(),
        };
        let mut snapshot = Snapshot::default();
        snapshot.members.insert("a".into(), Arc::new(member));
        snapshot.gateways.insert("g".into(), Arc::new(gateway));
        snapshot
            .policies
            .insert(source.clone(), Policy::Namespaced(Arc::new(policy)));
        let resolution =
            resolve(&snapshot.state(OverlayRange::default(), &Tunnel::default(), Encryption::default()));

        let first = changes(&snapshot, &resolution, at(1));
        assert_eq!(first.len(), 3);
        for change in first {
            match change {
                Change::Member(m, f) => {
                    assert!(f.conditions.iter().all(|c| c.observed_generation == Some(3)));
                    let mut member = (*m).clone();
                    member.status = Some(merged(m.status.as_ref(), &f));
                    snapshot.members.insert("a".into(), Arc::new(member));
                }
                Change::Gateway(g, f) => {
                    let mut gateway = (*g).clone();
                    gateway.status = Some(merged(g.status.as_ref(), &f));
                    snapshot.gateways.insert("g".into(), Arc::new(gateway));
                }
                Change::Policy(p, f) => {
                    let mut policy = (*p).clone();
                    policy.status = Some(merged(p.status.as_ref(), &f));
                    snapshot
                        .policies
                        .insert(source.clone(), Policy::Namespaced(Arc::new(policy)));
                }
                Change::ClusterPolicy(..) => panic!("there is none"),
            }
        }
        assert!(changes(&snapshot, &resolution, at(2)).is_empty());
    }

    #[test]
    fn the_streams_condition_is_left_to_its_writer() {
        let connected = Condition {
            type_: "Connected".into(),
            status: "True".into(),
            reason: "Streaming".into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1)),
        };
        let mut member = Member::new("a", MemberSpec::default());
        member.status = Some(spillway_crds::hub::MemberStatus {
            conditions: vec![connected],
            ..Default::default()
        });
        let mut snapshot = Snapshot::default();
        snapshot.members.insert("a".into(), Arc::new(member));
        let resolution =
            resolve(&snapshot.state(OverlayRange::default(), &Tunnel::default(), Encryption::default()));
        let changes = changes(&snapshot, &resolution, at(2));
        let [Change::Member(_, fields)] = &changes[..] else {
            panic!("one change")
        };
        let types: Vec<_> = fields.conditions.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(types, ["Accepted", "Programmed"]);
    }
}

//! Puts planned objects back that somebody else edited, deleted or added.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Resource as _;
use kube::ResourceExt as _;
use kube::runtime::watcher;
use kube::{Api, Client};
use spillway_core::plan::{Digest, Resource, ResourceKey, ResourceKind};
use spillway_crds::member::{
    EgressPlan, EgressPlanSpec, PlannedGateway, PlannedMember, PlannedPeer, PlannedPolicy,
};
use spillway_crds::{DIGEST_ANNOTATION, SINGLETON};

use super::contents::{Contents, Entry};
use super::store::Store;
use crate::control::Wake;
use crate::mirror::{Mirror, Objects, mirror};
use crate::tasks::Tasks;

/// Our own writes come back through the watch; only what still differs after this time was somebody else.
const SETTLE: Duration = Duration::from_secs(1);

/// A repair that the API server refused is tried again after this time, change or not.
const AGAIN: Duration = Duration::from_secs(30);

/// What the API server holds of the plan.
#[derive(Clone)]
pub(crate) struct PlanMirrors {
    head: Mirror<EgressPlan>,
    member: Mirror<PlannedMember>,
    peers: Mirror<PlannedPeer>,
    gateways: Mirror<PlannedGateway>,
    policies: Mirror<PlannedPolicy>,
}

impl PlanMirrors {
    /// Starts the watches.
    pub(crate) fn start(client: &Client, tasks: &mut Tasks) -> Self {
        let all = watcher::Config::default;
        let (head, keep) = mirror("EgressPlan", Api::all(client.clone()), all());
        tasks.spawn("watch EgressPlan", keep.run());
        let (member, keep) = mirror("PlannedMember", Api::all(client.clone()), all());
        tasks.spawn("watch PlannedMember", keep.run());
        let (peers, keep) = mirror("PlannedPeer", Api::all(client.clone()), all());
        tasks.spawn("watch PlannedPeer", keep.run());
        let (gateways, keep) = mirror("PlannedGateway", Api::all(client.clone()), all());
        tasks.spawn("watch PlannedGateway", keep.run());
        let (policies, keep) = mirror("PlannedPolicy", Api::all(client.clone()), all());
        tasks.spawn("watch PlannedPolicy", keep.run());
        Self {
            head,
            member,
            peers,
            gateways,
            policies,
        }
    }

    /// The head with its status.
    pub(crate) fn head(&self) -> &Mirror<EgressPlan> {
        &self.head
    }

    fn wake(&self) -> Wake {
        Wake::on([
            self.head.changes(),
            self.member.changes(),
            self.peers.changes(),
            self.gateways.changes(),
            self.policies.changes(),
        ])
    }

    fn seen(&self) -> Option<Seen> {
        let synced = self.head.synced()
            && self.member.synced()
            && self.peers.synced()
            && self.gateways.synced()
            && self.policies.synced();
        if !synced {
            return None;
        }
        let mut entries = BTreeMap::new();
        collect(&mut entries, ResourceKind::Member, self.member.objects(), |o| {
            Resource::Member(o.spec.clone())
        });
        collect(&mut entries, ResourceKind::Peer, self.peers.objects(), |o| {
            Resource::Peer(o.spec.clone())
        });
        collect(
            &mut entries,
            ResourceKind::Gateway,
            self.gateways.objects(),
            |o| Resource::Gateway(o.spec.clone()),
        );
        collect(&mut entries, ResourceKind::Policy, self.policies.objects(), |o| {
            Resource::Policy(o.spec.clone())
        });
        let head = self.head.get(SINGLETON).map(|h| h.spec.clone());
        Some(Seen { entries, head })
    }
}

/// What the watches saw.
#[derive(Clone, Debug, Default)]
struct Seen {
    entries: BTreeMap<ResourceKey, (Digest, Resource)>,
    head: Option<EgressPlanSpec>,
}

fn collect<K: kube::Resource>(
    into: &mut BTreeMap<ResourceKey, (Digest, Resource)>,
    kind: ResourceKind,
    objects: Objects<K>,
    resource: impl Fn(&K) -> Resource,
) {
    for (name, object) in objects {
        let digest = object
            .annotations()
            .get(DIGEST_ANNOTATION)
            .and_then(|d| d.parse().ok())
            .unwrap_or_default();
        into.insert(ResourceKey { kind, name }, (digest, resource(&object)));
    }
}

/// Objects that aren't what the contents say, and whether the head isn't.
fn drift(contents: &Contents, seen: &Seen) -> (BTreeSet<ResourceKey>, bool) {
    let mut keys: BTreeSet<ResourceKey> = seen
        .entries
        .keys()
        .filter(|k| !contents.entries.contains_key(*k))
        .cloned()
        .collect();
    for (key, Entry { digest, resource }) in &contents.entries {
        let Some(resource) = resource else { continue };
        if seen
            .entries
            .get(key)
            .is_none_or(|(d, r)| d != digest || r != resource)
        {
            keys.insert(key.clone());
        }
    }
    // A teardown that somebody asked for by hand, while this agent couldn't, stands until the next plan.
    let tolerated = |held: &EgressPlanSpec| EgressPlanSpec {
        teardown: held.teardown || seen.head.as_ref().is_some_and(|h| h.teardown),
        ..held.clone()
    };
    let head = contents.head.as_ref().map(tolerated);
    let head = head.is_some() && head != seen.head;
    (keys, head)
}

/// Compares and puts back, for ever.
pub(crate) async fn repair(store: Arc<Store>, mirrors: PlanMirrors) {
    let mut wake = mirrors.wake();
    loop {
        // Timed out or not: it is time to look.
        let _ = tokio::time::timeout(AGAIN, wake.changed()).await;
        tokio::time::sleep(SETTLE).await;
        let Some(seen) = mirrors.seen() else { continue };
        let (keys, head) = drift(&store.contents(), &seen);
        if keys.is_empty() && !head {
            continue;
        }
        tracing::warn!(
            kind = %EgressPlan::kind(&()),
            head,
            resources = ?keys.iter().take(10).map(ToString::to_string).collect::<Vec<_>>(),
            count = keys.len(),
            "somebody else changed planned objects; putting them back"
        );
        if let Err(error) = store.restore(keys, head).await {
            tracing::error!(%error, "planned objects can't be put back; trying again later");
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_crds::member::PlannedPeerSpec;

    use super::*;

    fn peer(name: &str, partition: &str) -> (ResourceKey, Digest, Resource) {
        let resource = Resource::Peer(PlannedPeerSpec {
            member: name.into(),
            partition: partition.into(),
            encrypted: false,
            nodes: Vec::new(),
        });
        (resource.key(), Digest::of(&resource.encode()), resource)
    }

    #[test]
    fn what_was_edited_deleted_or_added_is_found_and_nothing_else() {
        let mut contents = Contents::default();
        let mut seen = Seen::default();
        for name in ["same", "edited", "deleted"] {
            let (key, digest, resource) = peer(name, "p");
            let entry = Entry {
                digest,
                resource: Some(resource.clone()),
            };
            contents.entries.insert(key.clone(), entry);
            seen.entries.insert(key, (digest, resource));
        }
        assert_eq!(drift(&contents, &seen), (BTreeSet::new(), false));

        let (edited, digest, _) = peer("edited", "p");
        seen.entries
            .insert(edited.clone(), (digest, peer("edited", "q").2));
        let (deleted, _, _) = peer("deleted", "p");
        seen.entries.remove(&deleted);
        let (added, digest, resource) = peer("added", "p");
        seen.entries.insert(added.clone(), (digest, resource));
        contents.head = Some(EgressPlanSpec::default());
        assert_eq!(
            drift(&contents, &seen),
            (BTreeSet::from([edited, deleted, added]), true)
        );
    }
}

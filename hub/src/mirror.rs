//! A copy in memory of all objects of one kind, kept by a watch.
//!
//! What this process has written itself is put into the copy at once, and the watch never takes the copy
//! back behind that. An object that can't be decoded any more keeps its last good version.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

use crate::api::{ALLOCATIONS, ENROLMENT, LINK, MANAGER};

/// Seconds after which the API server ends a watch and a new one goes on where it ended.
const WATCH_SECONDS: u32 = 30;
/// Waits between attempts to reach the API server.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Names an object of a kind.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key {
    /// Namespace, for namespaced kinds.
    pub(crate) namespace: Option<String>,
    /// Name.
    pub(crate) name: String,
}

impl Key {
    /// Key of a cluster-wide object.
    pub(crate) fn cluster(name: &str) -> Self {
        Self {
            namespace: None,
            name: name.into(),
        }
    }

    fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

/// Objects by key.
pub(crate) type Objects<K> = BTreeMap<Key, Arc<K>>;

struct Kept<K> {
    objects: Objects<K>,
    undecodable: BTreeMap<Key, Undecodable>,
    /// Objects of a listing that is still arriving.
    arriving: Option<Vec<DeserializeGuard<K>>>,
}

/// An object that this build can't read.
#[derive(Clone, Debug)]
pub(crate) struct Undecodable {
    /// What the decoder said.
    pub(crate) error: String,
    /// Its metadata, which can always be read.
    pub(crate) meta: ObjectMeta,
}

impl Undecodable {
    /// A hub has read it before, in this process or another: it has written its status.
    fn counted(&self) -> bool {
        let managers = self.meta.managed_fields.iter().flatten();
        managers
            .filter_map(|f| f.manager.as_deref())
            .any(|m| [MANAGER, ALLOCATIONS, LINK, ENROLMENT].contains(&m))
    }
}

struct Inner<K> {
    kept: RwLock<Kept<K>>,
    synced: watch::Sender<bool>,
    version: watch::Sender<u64>,
    changed: Arc<Notify>,
}

/// The copy. Cheap to clone.
pub(crate) struct Mirror<K>(Arc<Inner<K>>);

impl<K> Clone for Mirror<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Mirror<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// An empty copy. `changed` is notified of everything that changes.
    pub(crate) fn new(changed: Arc<Notify>) -> Self {
        Self(Arc::new(Inner {
            kept: RwLock::new(Kept {
                objects: BTreeMap::new(),
                undecodable: BTreeMap::new(),
                arriving: None,
            }),
            synced: watch::Sender::new(false),
            version: watch::Sender::new(0),
            changed,
        }))
    }

    /// Follows the API server for ever. What the copy holds stays usable while it is away.
    pub(crate) async fn follow(self, api: Api<DeserializeGuard<K>>) {
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let mut events = pin!(watcher::watcher(api, config));
        let mut wait = FIRST_WAIT;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    wait = FIRST_WAIT;
                    self.take(event);
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "the watch failed; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    /// Waits until everything was read once.
    pub(crate) async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        // The sender lives as long as self, so this can't fail.
        let _ = synced.wait_for(|s| *s).await;
    }

    /// True once everything was read.
    pub(crate) fn is_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// All objects, as they are now.
    pub(crate) fn objects(&self) -> Objects<K> {
        self.read().objects.clone()
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    /// True where every object could be decoded.
    pub(crate) fn sure(&self) -> bool {
        self.read().undecodable.is_empty()
    }

    /// Says when something changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// Objects that can't be read and of which there isn't even a last good version, though a hub knew one:
    /// they were written in another way while this one wasn't running.
    pub(crate) fn unknown(&self) -> Vec<String> {
        let kept = self.read();
        kept.undecodable
            .iter()
            .filter(|(key, object)| object.counted() && !kept.objects.contains_key(key))
            .map(|(key, _)| match &key.namespace {
                Some(namespace) => format!("{} {namespace}/{}", K::kind(&()), key.name),
                None => format!("{} {}", K::kind(&()), key.name),
            })
            .collect()
    }

    /// Takes in the answer to a write of our own. An object that is gone from the copy stays gone.
    pub(crate) fn written(&self, object: K) {
        let key = Key::of(&object);
        let mut kept = self.write();
        let known = kept.objects.get(&key);
        if known.is_some_and(|old| old.meta().uid == object.meta().uid && version(&**old) < version(&object))
        {
            kept.objects.insert(key, Arc::new(object));
            drop(kept);
            self.tell();
        }
    }

    /// True where the copy is at least as new as `object`.
    pub(crate) fn has(&self, object: &K) -> bool {
        self.get(&Key::of(object))
            .is_some_and(|known| known.meta().uid == object.meta().uid && version(&*known) >= version(object))
    }

    /// The same for an object of which only the metadata are known, readable or not.
    pub(crate) fn seen(&self, meta: &ObjectMeta) -> bool {
        let key = Key {
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
        };
        let kept = self.read();
        let newer = |known: &ObjectMeta| known.uid == meta.uid && version_in(known) >= version_in(meta);
        kept.objects.get(&key).is_some_and(|o| newer(o.meta()))
            || kept.undecodable.get(&key).is_some_and(|u| newer(&u.meta))
    }

    fn take(&self, event: Event<DeserializeGuard<K>>) {
        let mut kept = self.write();
        let changed = match event {
            Event::Init => {
                kept.arriving = Some(Vec::new());
                false
            }
            Event::InitApply(guard) => {
                kept.arriving.get_or_insert_default().push(guard);
                false
            }
            Event::InitDone => {
                let listed = kept.arriving.take().unwrap_or_default();
                let old = std::mem::take(&mut kept.objects);
                kept.undecodable.clear();
                for guard in listed {
                    let key = Key::of(&guard);
                    if let Some(known) = old.get(&key) {
                        kept.objects.insert(key, known.clone());
                    }
                    kept.put(guard);
                }
                true
            }
            Event::Apply(guard) => {
                kept.put(guard);
                true
            }
            Event::Delete(guard) => {
                let key = Key::of(&guard);
                kept.undecodable.remove(&key);
                kept.objects.remove(&key);
                true
            }
        };
        let done = changed && kept.arriving.is_none();
        drop(kept);
        if done {
            self.0.synced.send_if_modified(|s| !std::mem::replace(s, true));
            self.tell();
        }
    }

    fn tell(&self) {
        self.0.version.send_modify(|v| *v += 1);
        self.0.changed.notify_one();
    }

    fn read(&self) -> RwLockReadGuard<'_, Kept<K>> {
        self.0.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Kept<K>> {
        self.0.kept.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Resource<DynamicType = ()>> Kept<K> {
    fn put(&mut self, guard: DeserializeGuard<K>) {
        let key = Key::of(&guard);
        match guard.0 {
            Ok(object) => {
                self.undecodable.remove(&key);
                let newer = self.objects.get(&key).is_some_and(|old| {
                    old.meta().uid == object.meta().uid && version(&**old) > version(&object)
                });
                if !newer {
                    self.objects.insert(key, Arc::new(object));
                }
            }
            Err(InvalidObject { error, metadata }) => {
                let said = self.undecodable.get(&key).is_some_and(|u| u.error == error);
                if !said {
                    tracing::error!(
                        kind = %K::kind(&()), namespace = key.namespace, name = key.name, error,
                        "an object can't be read; what was made of it before stays in force"
                    );
                }
                let meta = metadata;
                self.undecodable.insert(key, Undecodable { error, meta });
            }
        }
    }
}

/// Versions of one object are ordered numbers, since Kubernetes 1.35 by contract and before by construction.
fn version(object: &impl Resource) -> u64 {
    version_in(object.meta())
}

fn version_in(meta: &ObjectMeta) -> u64 {
    let version = meta.resource_version.as_deref();
    version.and_then(|v| v.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
    use spillway_crds::hub::{Member, MemberSpec};

    use super::*;

    fn member(name: &str, uid: &str, version: u64) -> Member {
        let mut member = Member::new(name, MemberSpec::default());
        member.metadata.uid = Some(uid.into());
        member.metadata.resource_version = Some(version.to_string());
        member
    }

    fn unreadable(name: &str) -> DeserializeGuard<Member> {
        DeserializeGuard(Err(InvalidObject {
            error: "unknown variant".into(),
            metadata: member(name, "", 0).metadata,
        }))
    }

    fn good(member: Member) -> DeserializeGuard<Member> {
        DeserializeGuard(Ok(member))
    }

    fn version_of(mirror: &Mirror<Member>, name: &str) -> Option<String> {
        mirror.get(&Key::cluster(name))?.metadata.resource_version.clone()
    }

    fn mirror(listed: Vec<DeserializeGuard<Member>>) -> Mirror<Member> {
        let mirror = Mirror::new(Arc::new(Notify::new()));
        mirror.take(Event::Init);
        for guard in listed {
            mirror.take(Event::InitApply(guard));
        }
        mirror.take(Event::InitDone);
        mirror
    }

    #[test]
    fn the_watch_never_takes_the_copy_back_behind_our_own_write() {
        let mirror = mirror(vec![good(member("a", "1", 5))]);
        mirror.written(member("a", "1", 9));
        mirror.take(Event::Apply(good(member("a", "1", 7))));
        assert_eq!(version_of(&mirror, "a").as_deref(), Some("9"));
        mirror.take(Event::Apply(good(member("a", "2", 8))));
        assert_eq!(
            version_of(&mirror, "a").as_deref(),
            Some("8"),
            "another object of that name"
        );
    }

    #[test]
    fn a_late_answer_doesnt_bring_a_deleted_object_back() {
        let mirror = mirror(vec![good(member("a", "1", 5))]);
        mirror.take(Event::Delete(good(member("a", "1", 6))));
        mirror.written(member("a", "1", 6));
        assert!(mirror.objects().is_empty());
    }

    #[test]
    fn an_object_that_cant_be_read_keeps_its_last_good_version() {
        let mirror = mirror(vec![good(member("a", "1", 5))]);
        mirror.take(Event::Apply(unreadable("a")));
        assert_eq!(version_of(&mirror, "a").as_deref(), Some("5"));
        assert!(!mirror.sure());
        mirror.take(Event::Init);
        mirror.take(Event::InitApply(unreadable("a")));
        mirror.take(Event::InitDone);
        assert_eq!(version_of(&mirror, "a").as_deref(), Some("5"));
        mirror.take(Event::Apply(good(member("a", "1", 8))));
        assert!(mirror.sure());
    }

    #[test]
    fn an_object_that_a_hub_once_read_is_missed_and_one_that_never_counted_is_not() {
        let stranger = mirror(vec![unreadable("a")]);
        assert!(!stranger.sure() && stranger.unknown().is_empty());
        let mut once = unreadable("a");
        if let Err(invalid) = &mut once.0 {
            invalid.metadata.managed_fields = Some(vec![ManagedFieldsEntry {
                manager: Some(ALLOCATIONS.into()),
                ..ManagedFieldsEntry::default()
            }]);
        }
        let mirror = mirror(vec![once]);
        assert_eq!(mirror.unknown(), ["Member a"]);
        mirror.take(Event::Apply(good(member("a", "", 1))));
        assert!(mirror.unknown().is_empty());
    }

    #[test]
    fn a_new_listing_forgets_what_is_gone_and_shows_only_when_complete() {
        let mirror = mirror(vec![good(member("a", "1", 5)), good(member("b", "2", 5))]);
        mirror.take(Event::Init);
        mirror.take(Event::InitApply(good(member("b", "2", 6))));
        assert_eq!(mirror.objects().len(), 2);
        mirror.take(Event::InitDone);
        assert_eq!(mirror.objects().len(), 1);
        assert_eq!(version_of(&mirror, "b").as_deref(), Some("6"));
    }
}

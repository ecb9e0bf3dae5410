//! A copy in memory of the objects of one kind, reduced to what this agent needs of them.
//!
//! A watch ends every 30 s and is opened again, so a connection that died silently is noticed; what the
//! copy holds stays usable meanwhile.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::backoff::Backoff;

/// Seconds after which the API server ends a watch.
const WATCH_SECONDS: u32 = 30;

/// Names an object; the namespace is empty for cluster-scoped kinds.
pub(crate) type Key = (String, String);

#[derive(Debug)]
struct Kept<V> {
    objects: BTreeMap<Key, V>,
    /// Last states of objects that were deleted, until somebody takes them; only where somebody does.
    deleted: Option<Vec<V>>,
    synced: bool,
}

/// Reads the copy. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Mirror<V>(Arc<RwLock<Kept<V>>>);

impl<V> Clone for Mirror<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: Clone + PartialEq> Mirror<V> {
    fn new() -> Self {
        Self(Arc::new(RwLock::new(Kept {
            objects: BTreeMap::new(),
            deleted: None,
            synced: false,
        })))
    }

    /// True once everything was read; it stays so while the API server is away.
    pub(crate) fn synced(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).synced
    }

    /// The objects as they are now.
    pub(crate) fn objects(&self) -> BTreeMap<Key, V> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .objects
            .clone()
    }

    /// Objects of a cluster-scoped kind by name.
    pub(crate) fn by_name(&self) -> BTreeMap<String, V> {
        self.objects()
            .into_iter()
            .map(|((_, name), v)| (name, v))
            .collect()
    }

    /// One object of a cluster-scoped kind.
    pub(crate) fn get(&self, name: &str) -> Option<V> {
        self.named("", name)
    }

    /// One object.
    pub(crate) fn named(&self, namespace: &str, name: &str) -> Option<V> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .objects
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// Last states of the objects deleted since the last call, or since the first.
    pub(crate) fn take_deleted(&self) -> Vec<V> {
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        kept.deleted.replace(Vec::new()).unwrap_or_default()
    }

    /// Changes the copy; answers whether that made a difference.
    fn change(&self, f: impl FnOnce(&mut Kept<V>) -> bool) -> bool {
        f(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn insert(&self, key: Key, value: V) -> bool {
        self.change(|kept| match kept.objects.get(&key) {
            Some(old) if *old == value => false,
            _ => {
                kept.objects.insert(key, value);
                true
            }
        })
    }
}

/// Follows a watch and keeps a mirror.
struct Keeper<V> {
    what: &'static str,
    mirror: Mirror<V>,
    changed: watch::Sender<u64>,
    fresh: BTreeMap<Key, V>,
    failing: bool,
}

/// What was read of one object: its key, and what it was reduced to or why it can't be read.
type Read<V> = (Key, Result<V, String>);

/// Starts to mirror what `select` chooses among the objects that `api` gives, reduced by `reduce`. `changed`
/// counts every difference it makes.
pub(crate) fn mirror<K, V>(
    what: &'static str,
    api: Api<DeserializeGuard<K>>,
    select: watcher::Config,
    changed: &watch::Sender<u64>,
    reduce: impl Fn(&K) -> V + Send + 'static,
) -> Mirror<V>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Clone + Eq + Hash,
    V: Clone + PartialEq + Send + Sync + 'static,
{
    let events = watcher(api, select.timeout(WATCH_SECONDS)).backoff(Backoff::up_to_seconds(5));
    keep(what, events, changed, move |object: DeserializeGuard<K>| {
        (key(&object), object.0.map(|o| reduce(&o)).map_err(|e| e.error))
    })
}

/// Like [`mirror`], asking the API server for the objects' metadata only.
pub(crate) fn mirror_metadata<K, V>(
    what: &'static str,
    api: Api<PartialObjectMeta<K>>,
    changed: &watch::Sender<u64>,
    reduce: impl Fn(&ObjectMeta) -> V + Send + 'static,
) -> Mirror<V>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Clone + Eq + Hash,
    V: Clone + PartialEq + Send + Sync + 'static,
{
    let select = watcher::Config::default().timeout(WATCH_SECONDS);
    let events = watcher(api, select).backoff(Backoff::up_to_seconds(5));
    keep(what, events, changed, move |object: PartialObjectMeta<K>| {
        (key(&object), Ok(reduce(&object.metadata)))
    })
}

fn keep<O, V>(
    what: &'static str,
    events: impl Stream<Item = Result<Event<O>, watcher::Error>> + Send + 'static,
    changed: &watch::Sender<u64>,
    read: impl Fn(O) -> Read<V> + Send + 'static,
) -> Mirror<V>
where
    O: Send + 'static,
    V: Clone + PartialEq + Send + Sync + 'static,
{
    let mirror = Mirror::new();
    let mut keeper = Keeper {
        what,
        mirror: mirror.clone(),
        changed: changed.clone(),
        fresh: BTreeMap::new(),
        failing: false,
    };
    tokio::spawn(async move {
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if std::mem::take(&mut keeper.failing) {
                        tracing::info!(kind = keeper.what, "watch works again");
                    }
                    keeper.take(event, &read);
                }
                Err(error) => keeper.failed(&error),
            }
        }
    });
    mirror
}

impl<V: Clone + PartialEq> Keeper<V> {
    fn take<O>(&mut self, event: Event<O>, read: &impl Fn(O) -> Read<V>) {
        let changed = match event {
            Event::Init => {
                self.fresh.clear();
                false
            }
            Event::InitApply(object) => {
                let (key, read) = read(object);
                // What can't be read any more is still there.
                let known = || {
                    self.mirror
                        .0
                        .read()
                        .unwrap_or_else(PoisonError::into_inner)
                        .objects
                        .get(&key)
                        .cloned()
                };
                let value = match self.readable((key.clone(), read)) {
                    Some((_, value)) => Some(value),
                    None => known(),
                };
                self.fresh.extend(value.map(|value| (key, value)));
                false
            }
            Event::InitDone => {
                let fresh = std::mem::take(&mut self.fresh);
                self.mirror.change(|kept| {
                    let changed = !kept.synced || kept.objects != fresh;
                    kept.objects = fresh;
                    kept.synced = true;
                    changed
                })
            }
            Event::Apply(object) => match self.readable(read(object)) {
                Some((key, value)) => self.mirror.insert(key, value),
                None => false,
            },
            Event::Delete(object) => {
                let (key, last) = read(object);
                self.mirror.change(|kept| {
                    let known = kept.objects.remove(&key);
                    let changed = known.is_some();
                    if let (Some(deleted), Some(last)) = (&mut kept.deleted, last.ok().or(known)) {
                        deleted.push(last);
                    }
                    changed
                })
            }
        };
        if changed {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// An object that this build can't read is passed over: it must not stop the watch for all others.
    fn readable(&self, (key, read): Read<V>) -> Option<(Key, V)> {
        match read {
            Ok(value) => Some((key, value)),
            Err(error) => {
                tracing::error!(
                    kind = self.what,
                    name = key.1,
                    error,
                    "object can't be read; it is passed over"
                );
                None
            }
        }
    }

    fn failed(&mut self, error: &watcher::Error) {
        // The API server forgot the version that the watch began at; everything is read again.
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            tracing::debug!(kind = self.what, "watch expired");
            return;
        }
        if std::mem::replace(&mut self.failing, true) {
            tracing::debug!(kind = self.what, %error, "watch still fails");
        } else {
            tracing::warn!(kind = self.what, %error, "watch fails; what was read before stays in use");
        }
    }
}

fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    type Object = (&'static str, Result<u8, String>);

    fn keeper() -> Keeper<u8> {
        Keeper {
            what: "number",
            mirror: Mirror::new(),
            changed: watch::channel(0).0,
            fresh: BTreeMap::new(),
            failing: false,
        }
    }

    fn read((name, value): Object) -> Read<u8> {
        ((String::new(), name.to_owned()), value)
    }

    #[test]
    fn what_can_no_longer_be_read_stays_as_it_was_until_it_is_deleted() {
        let mut keeper = keeper();
        let list = |keeper: &mut Keeper<u8>, objects: Vec<Object>| {
            keeper.take(Event::Init, &read);
            for object in objects {
                keeper.take(Event::InitApply(object), &read);
            }
            keeper.take(Event::InitDone, &read);
        };
        list(&mut keeper, vec![("a", Ok(1)), ("b", Ok(2))]);
        let unreadable = || Err("odd".to_owned());
        list(
            &mut keeper,
            vec![("a", unreadable()), ("b", Ok(3)), ("c", unreadable())],
        );
        assert_eq!(
            keeper.mirror.by_name(),
            BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 3)])
        );
        keeper.take(Event::Apply(("b", unreadable())), &read);
        assert_eq!(keeper.mirror.get("b"), Some(3));
        keeper.take(Event::Delete(("a", unreadable())), &read);
        assert_eq!(keeper.mirror.get("a"), None);
    }

    #[test]
    fn the_last_state_of_the_deleted_is_there_once() {
        let mut keeper = keeper();
        keeper.take(Event::Apply(("a", Ok(1))), &read);
        keeper.take(Event::Delete(("a", Ok(2))), &read);
        assert_eq!(keeper.mirror.take_deleted(), Vec::<u8>::new(), "nobody had asked");
        keeper.take(Event::Apply(("b", Ok(1))), &read);
        keeper.take(Event::Delete(("b", Ok(2))), &read);
        assert_eq!(keeper.mirror.take_deleted(), [2]);
        assert_eq!(keeper.mirror.take_deleted(), Vec::<u8>::new());
    }
}

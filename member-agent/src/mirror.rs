//! A copy in memory of the objects of one kind, kept by a watch.
//!
//! A watch ends every 20 s and is opened again, so a connection that died silently is noticed 25 s after it
//! did at the latest; what the copy holds stays usable meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::api;
use crate::backoff::Backoff;

/// Seconds after which the API server ends a watch.
const WATCH_SECONDS: u32 = 20;

/// Objects by name.
pub(crate) type Objects<K> = BTreeMap<String, Arc<K>>;

/// Longest wait before the next attempt.
const WAIT: Duration = Duration::from_secs(5);
/// The same where what is missing may stay so for good: rights, or the kind in this API server.
const PATIENT_WAIT: Duration = Duration::from_secs(60);

struct Kept<K> {
    objects: Objects<K>,
    /// Objects that are there and were never read.
    unreadable: BTreeSet<String>,
    state: State,
    trouble: Option<Trouble>,
}

/// Why the copy is missing, or grows old.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Trouble {
    /// The agent may not read the kind.
    pub(crate) forbidden: bool,
    /// One line.
    pub(crate) text: String,
}

/// Whether the API server serves a kind that may come and go.
#[derive(Clone)]
pub(crate) enum Served<K> {
    /// It isn't known yet, and perhaps why.
    Unknown(Option<Trouble>),
    /// Not now.
    No,
    /// By this API.
    Yes(Box<Api<DeserializeGuard<K>>>),
}

/// How much the copy can be trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// Nothing was read yet.
    Unread,
    /// The API server doesn't serve this kind.
    Absent,
    /// Everything was read once; changes follow.
    Synced,
}

/// Reads the copy. Cheap to clone.
pub(crate) struct Mirror<K> {
    copy: Arc<RwLock<Kept<K>>>,
    version: watch::Receiver<u64>,
}

impl<K> Clone for Mirror<K> {
    fn clone(&self) -> Self {
        Self {
            copy: self.copy.clone(),
            version: self.version.clone(),
        }
    }
}

impl<K> Mirror<K> {
    /// How much the copy can be trusted.
    pub(crate) fn state(&self) -> State {
        self.copy.read().unwrap_or_else(PoisonError::into_inner).state
    }

    /// Why nothing was read, or why what was read may be old: rights that were taken away. That the API server is
    /// away is no trouble for a copy that exists.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.copy
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .trouble
            .clone()
    }

    /// True once everything was read.
    pub(crate) fn synced(&self) -> bool {
        self.state() == State::Synced
    }

    /// The objects as they are now.
    pub(crate) fn objects(&self) -> Objects<K> {
        self.copy
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .objects
            .clone()
    }

    /// One object.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<K>> {
        self.copy
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .objects
            .get(name)
            .cloned()
    }

    /// Names of objects that are there and of which no version could be read.
    pub(crate) fn unreadable(&self) -> BTreeSet<String> {
        self.copy
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .unreadable
            .clone()
    }

    /// Says when something changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }
}

/// Keeps a copy; [`Self::run`] does the work.
pub(crate) struct Keeper<K: Resource> {
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    what: &'static str,
    copy: Arc<RwLock<Kept<K>>>,
    version: watch::Sender<u64>,
    fresh: Objects<K>,
    fresh_unreadable: BTreeSet<String>,
    failing: bool,
    patient: bool,
}

/// Makes a mirror of what `select` chooses among the objects that `api` gives, and the keeper that must run for it.
pub(crate) fn mirror<K: Resource>(
    what: &'static str,
    api: Api<DeserializeGuard<K>>,
    select: watcher::Config,
) -> (Mirror<K>, Keeper<K>) {
    let copy = Arc::new(RwLock::new(Kept {
        objects: Objects::new(),
        unreadable: BTreeSet::new(),
        state: State::Unread,
        trouble: None,
    }));
    let (version, changes) = watch::channel(0);
    let mirror = Mirror {
        copy: copy.clone(),
        version: changes,
    };
    let keeper = Keeper {
        api,
        config: select.timeout(WATCH_SECONDS),
        what,
        copy,
        version,
        fresh: Objects::new(),
        fresh_unreadable: BTreeSet::new(),
        failing: false,
        patient: false,
    };
    (mirror, keeper)
}

impl<K> Keeper<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Eq + std::hash::Hash,
{
    /// Asks ever less often, in the end once a minute, for what this agent may never be able to read.
    pub(crate) fn patient(self) -> Self {
        Self {
            patient: true,
            ..self
        }
    }

    /// Follows the watch for ever.
    pub(crate) async fn run(mut self) {
        self.follow().await;
    }

    /// Follows the watch while the kind is served, and holds nothing while it isn't.
    pub(crate) async fn run_while(mut self, mut served: watch::Receiver<Served<K>>) {
        loop {
            let now = served.borrow_and_update().clone();
            match now {
                Served::Yes(api) => {
                    // Of finding out whether it is served.
                    self.troubled(None);
                    if self.now().0 == State::Absent {
                        self.change(|copy| copy.state = State::Unread);
                    }
                    self.api = *api;
                    tokio::select! {
                        () = self.follow() => {}
                        event = served.changed() => if event.is_err() { return },
                    }
                    continue;
                }
                Served::No => {
                    if !matches!(self.now(), (State::Absent, _)) {
                        self.failing = false;
                        self.change(|copy| {
                            copy.objects.clear();
                            copy.state = State::Absent;
                            copy.trouble = None;
                        });
                    }
                }
                Served::Unknown(trouble) => self.troubled(trouble),
            }
            if served.changed().await.is_err() {
                return;
            }
        }
    }

    fn now(&self) -> (State, Option<Trouble>) {
        let copy = self.copy.read().unwrap_or_else(PoisonError::into_inner);
        (copy.state, copy.trouble.clone())
    }

    fn troubled(&self, trouble: Option<Trouble>) {
        if self.now().1 != trouble {
            self.change(|copy| copy.trouble = trouble);
        }
    }

    async fn follow(&mut self) {
        let mut events = pin!(watcher(self.api.clone(), self.config.clone()));
        let mut backoff = Backoff::up_to(if self.patient { PATIENT_WAIT } else { WAIT });
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // A listing that begins isn't one that works.
                    if !matches!(event, Event::Init) {
                        backoff.reset();
                        if std::mem::take(&mut self.failing) {
                            tracing::info!(kind = self.what, "watch works again");
                            self.troubled(None);
                        }
                    }
                    self.take(event);
                }
                Err(error) => {
                    self.failed(&error);
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
    }

    fn take(&mut self, event: Event<DeserializeGuard<K>>) {
        match event {
            Event::Init => {
                self.fresh.clear();
                self.fresh_unreadable.clear();
            }
            Event::InitApply(object) => {
                let name = object.name_any();
                // An object that can't be read any more keeps its last good version.
                let known = self
                    .copy
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .objects
                    .get(&name)
                    .cloned();
                let readable = self.readable(object).map(|(_, object)| object);
                if let Some(object) = readable.or(known) {
                    self.fresh.insert(name, object);
                } else {
                    self.fresh_unreadable.insert(name);
                }
            }
            Event::InitDone => {
                let fresh = std::mem::take(&mut self.fresh);
                let unreadable = std::mem::take(&mut self.fresh_unreadable);
                self.change(|copy| {
                    copy.objects = fresh;
                    copy.unreadable = unreadable;
                    copy.state = State::Synced;
                });
            }
            Event::Apply(object) => {
                let name = object.name_any();
                if let Some((name, object)) = self.readable(object) {
                    self.change(|copy| {
                        copy.unreadable.remove(&name);
                        copy.objects.insert(name, object);
                    });
                } else {
                    self.change(|copy| {
                        if !copy.objects.contains_key(&name) {
                            copy.unreadable.insert(name);
                        }
                    });
                }
            }
            Event::Delete(object) => {
                let name = object.name_any();
                self.change(|copy| {
                    copy.unreadable.remove(&name);
                    copy.objects.remove(&name);
                });
            }
        }
    }

    /// An object that this build can't read must not stop the watch for all others.
    fn readable(&self, object: DeserializeGuard<K>) -> Option<(String, Arc<K>)> {
        match object.0 {
            Ok(mut object) => {
                object.meta_mut().managed_fields = None;
                Some((object.name_any(), Arc::new(object)))
            }
            Err(invalid) => {
                tracing::error!(kind = self.what, name = ?invalid.metadata.name, error = invalid.error,
                    "object can't be read; a version read before stays in use");
                None
            }
        }
    }

    fn failed(&mut self, error: &watcher::Error) {
        let absent = matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(s)) if s.code == 404);
        let forbidden = code(error) == Some(403);
        let error = brief(error);
        let (state, _) = self.now();
        if absent && state == State::Unread {
            self.change(|copy| copy.state = State::Absent);
        } else if forbidden || (state == State::Unread && !absent) {
            self.troubled(Some(Trouble {
                forbidden,
                text: error.clone(),
            }));
        }
        if std::mem::replace(&mut self.failing, true) {
            tracing::debug!(kind = self.what, error, "watch still fails");
        } else if absent {
            tracing::info!(kind = self.what, "the API server doesn't serve this kind (yet)");
        } else {
            tracing::warn!(
                kind = self.what,
                error,
                "watch fails; what was read before stays in use"
            );
        }
    }

    fn change(&self, f: impl FnOnce(&mut Kept<K>)) {
        f(&mut self.copy.write().unwrap_or_else(PoisonError::into_inner));
        self.version.send_modify(|v| *v += 1);
    }
}

/// HTTP status of an answer that says no.
fn code(error: &watcher::Error) -> Option<u16> {
    use watcher::Error;
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status))
        | Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// One line about an error: the library's own text repeats the whole answer.
fn brief(error: &watcher::Error) -> String {
    use watcher::Error;
    match error {
        Error::InitialListFailed(e) | Error::WatchStartFailed(e) | Error::WatchFailed(e) => api::explain(e),
        Error::WatchError(status) => status.message.clone(),
        Error::NoResourceVersion => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ObjectMeta;
    use kube::core::error_boundary::InvalidObject;
    use spillway_crds::member::{EgressNode, EgressNodeSpec};

    use super::*;

    #[test]
    fn an_object_that_cant_be_read_any_more_keeps_its_last_good_version() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let _inside = runtime.enter();
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("an address"));
        let client = kube::Client::try_from(config).expect("a client");
        let (mirror, mut keeper) =
            mirror::<EgressNode>("EgressNode", Api::all(client), watcher::Config::default());
        let unreadable = |name: &str| {
            DeserializeGuard(Err(InvalidObject {
                error: "unknown field".into(),
                metadata: ObjectMeta {
                    name: Some(name.into()),
                    ..ObjectMeta::default()
                },
            }))
        };
        let good = EgressNode::new("n1", EgressNodeSpec::default());
        keeper.take(Event::Apply(DeserializeGuard(Ok(good))));
        keeper.take(Event::Apply(unreadable("n1")));
        for event in [
            Event::Init,
            Event::InitApply(unreadable("n1")),
            Event::InitApply(unreadable("n2")),
            Event::InitDone,
        ] {
            keeper.take(event);
        }
        let names: Vec<_> = mirror.objects().into_keys().collect();
        assert_eq!(names, ["n1"], "its overlay address isn't free");
        assert_eq!(
            mirror.unreadable(),
            ["n2".to_owned()].into(),
            "nor is that of one that was never read"
        );
        keeper.take(Event::Apply(unreadable("n3")));
        keeper.take(Event::Delete(unreadable("n2")));
        assert_eq!(mirror.unreadable(), ["n3".to_owned()].into());
        let good = EgressNode::new("n3", EgressNodeSpec::default());
        keeper.take(Event::Apply(DeserializeGuard(Ok(good))));
        assert!(mirror.unreadable().is_empty());
    }
}

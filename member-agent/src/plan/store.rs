//! Writes plans into this cluster's API server, and reads them back after a restart.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::{Api, Client};
use spillway_core::plan::{Digest, Resource, ResourceKey};
use spillway_crds::SINGLETON;
use spillway_crds::member::{EgressPlan, EgressPlanSpec, Grants};
use tokio::sync::{Mutex, watch};

use super::contents::{Contents, Entry, Local, Unfit, Update};
use super::objects::{self, KINDS, api_resource};
use crate::api::{self, Failure};
use crate::backoff::Backoff;
use crate::observed::Observed;

/// Writes under way at the same time.
const CONCURRENCY: usize = 16;

/// Why a plan wasn't applied. The plan before it is in place again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// It doesn't fit what this cluster has.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The API server refused an object.
    #[error("{failure}")]
    Refused {
        /// The resource; `None` for the plan's head.
        key: Option<ResourceKey>,
        /// The API server's words.
        failure: Failure,
    },
}

/// The plan's objects. Owns all writes to them.
pub(crate) struct Store {
    client: Client,
    contents: RwLock<Arc<Contents>>,
    version: watch::Sender<u64>,
    observed: Observed,
    /// Whoever writes holds this.
    writing: Mutex<Local>,
}

impl Store {
    /// Reads what an earlier run left. Waits for the API server and the kinds as long as it takes.
    pub(crate) async fn load(client: Client, observed: Observed) -> Self {
        let mut backoff = Backoff::up_to(Duration::from_secs(5));
        let mut failing = false;
        let contents = loop {
            match read(&client).await {
                Ok(contents) => break contents,
                Err(error) if std::mem::replace(&mut failing, true) => {
                    tracing::debug!(%error, "the plan in place still can't be read");
                }
                Err(error) => tracing::warn!(%error, "the plan in place can't be read yet; trying again"),
            }
            tokio::time::sleep(backoff.wait()).await;
        };
        if let Some(head) = &contents.head {
            observed.found();
            tracing::info!(
                hub = head.hub_id,
                epoch = head.epoch,
                digest = head.digest,
                resources = contents.entries.len(),
                "carrying on with the plan in place"
            );
        }
        let local = Local::of(contents.head.as_ref());
        Self {
            client,
            contents: RwLock::new(Arc::new(contents)),
            version: watch::Sender::new(0),
            observed,
            writing: Mutex::new(local),
        }
    }

    /// What the objects hold.
    pub(crate) fn contents(&self) -> Arc<Contents> {
        self.contents
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Says when the contents changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Makes `update` the plan of this cluster: resources first, then the head, removals last, so that a node
    /// that sees the new head finds all it needs. Waits as long as the API server is away. Applying the same
    /// update again writes nothing. Where an object is refused, what was written before it is undone.
    pub(crate) async fn apply(&self, update: &Update) -> Result<(), ApplyError> {
        let started = std::time::Instant::now();
        let outcome = self.realise(update).await;
        self.observed.applied(started.elapsed(), outcome.is_ok());
        outcome
    }

    async fn realise(&self, update: &Update) -> Result<(), ApplyError> {
        let local = self.writing.lock().await;
        let before = self.contents();
        let changes = before.changes(update, &local)?;
        let started = std::time::Instant::now();
        let (written, removed) = (changes.writes.len(), changes.removes.len());
        // All at once, whatever their kind: nodes look at none of them before the head says that all are there.
        let writes: Vec<_> = changes
            .writes
            .iter()
            .map(|(key, (resource, digest))| self.write_naming_it(key, resource, digest))
            .collect();
        // Each to its end, also where another fails: what is cut off in its course might still come to pass.
        let outcomes: Vec<_> = stream::iter(writes).buffered(CONCURRENCY).collect().await;
        if let Some((key, failure)) = outcomes.into_iter().find_map(Result::err) {
            self.undo(&before).await;
            return Err(ApplyError::Refused {
                key: Some(key),
                failure,
            });
        }
        if let Some(head) = &changes.head
            && let Err(failure) = self.write_head(head).await
        {
            self.undo(&before).await;
            return Err(ApplyError::Refused { key: None, failure });
        }
        // The new plan holds from here on: an object that can't be deleted is for the repair loop, not a reason
        // to refuse the plan.
        let removals: Vec<_> = changes
            .removes
            .iter()
            .map(|key| self.remove_or_say(key))
            .collect();
        stream::iter(removals)
            .buffer_unordered(CONCURRENCY)
            .collect::<Vec<()>>()
            .await;
        if written + removed > 0 || changes.head.is_some() {
            tracing::info!(
                digest = %update.target,
                written,
                removed,
                full = update.full,
                elapsed_ms = started.elapsed().as_millis(),
                "plan applied"
            );
        }
        Ok(())
    }

    /// Has every node remove what it has programmed, or takes that back. Before the first plan a head with
    /// an empty digest says so.
    pub(crate) async fn set_teardown(&self, wanted: bool) -> Result<(), Failure> {
        let mut local = self.writing.lock().await;
        local.teardown = wanted;
        let head = self.contents().head.clone();
        if head.is_none() && !wanted || head.as_ref().is_some_and(|h| h.teardown == wanted) {
            return Ok(());
        }
        let head = EgressPlanSpec {
            teardown: wanted,
            grants: local.grants.clone(),
            ..head.unwrap_or_default()
        };
        self.write_head(&head).await
    }

    /// Has every node go by these from now on, whatever the plan says. Waits as long as the API server is away.
    pub(crate) async fn set_grants(&self, grants: &Grants) -> Result<(), Failure> {
        let mut local = self.writing.lock().await;
        local.grants.clone_from(grants);
        match self.contents().head.clone() {
            Some(head) if head.grants != *grants => {
                let grants = grants.clone();
                self.write_head(&EgressPlanSpec { grants, ..head }).await
            }
            _ => Ok(()),
        }
    }

    /// The next plan isn't one to be torn down. What is in place stays as it is until then.
    pub(crate) async fn expect_no_teardown(&self) {
        self.writing.lock().await.teardown = false;
    }

    /// Puts the objects `keys` and the head (if asked) back to what the contents say.
    pub(super) async fn restore(
        &self,
        keys: impl IntoIterator<Item = ResourceKey>,
        head: bool,
    ) -> Result<(), Failure> {
        let _writing = self.writing.lock().await;
        let contents = self.contents();
        for key in keys {
            match contents.entries.get(&key) {
                Some(Entry {
                    digest,
                    resource: Some(resource),
                }) => self.write(&key, resource, digest).await?,
                Some(_) => {}
                None => self.remove(&key).await?,
            }
        }
        match &contents.head {
            Some(spec) if head => self.write_head(spec).await,
            _ => Ok(()),
        }
    }

    /// After a refusal: back to `before`, as far as the API server lets us.
    async fn undo(&self, before: &Contents) {
        let now = self.contents();
        let changed: Vec<_> = now
            .entries
            .iter()
            .filter(|(key, entry)| before.entries.get(*key) != Some(entry))
            .map(|(key, _)| key.clone())
            .collect();
        for key in changed {
            let outcome = match before.entries.get(&key) {
                Some(Entry {
                    digest,
                    resource: Some(resource),
                }) => self.write(&key, resource, digest).await,
                Some(_) => continue,
                None => self.remove(&key).await,
            };
            if let Err(error) = outcome {
                tracing::error!(resource = %key, %error, "an object of a refused plan can't be put back");
            }
        }
    }

    async fn write_naming_it(
        &self,
        key: &ResourceKey,
        resource: &Resource,
        digest: &Digest,
    ) -> Result<(), (ResourceKey, Failure)> {
        let outcome = self.write(key, resource, digest).await;
        outcome.map_err(|failure| (key.clone(), failure))
    }

    async fn remove_or_say(&self, key: &ResourceKey) {
        if let Err(error) = self.remove(key).await {
            tracing::error!(resource = %key, %error, "an object that left the plan stays; nodes wait for it to go");
            // It isn't part of the plan any more; the repair loop tries again to delete what isn't.
            self.edit(|contents| drop(contents.entries.remove(key)));
        }
    }

    async fn write(&self, key: &ResourceKey, resource: &Resource, digest: &Digest) -> Result<(), Failure> {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &api_resource(key.kind));
        let object = objects::object(key, resource, digest);
        let what = format!("writing {key}");
        insist(|| api::apply(&api, &what, &key.name, &object)).await?;
        self.observed.0.writes.inc(["apply"]);
        self.edit(|contents| {
            let entry = Entry {
                digest: *digest,
                resource: Some(resource.clone()),
            };
            contents.entries.insert(key.clone(), entry);
        });
        Ok(())
    }

    async fn remove(&self, key: &ResourceKey) -> Result<(), Failure> {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &api_resource(key.kind));
        let what = format!("deleting {key}");
        let params = DeleteParams::default();
        insist(|| api::call_delete(&what, api.delete(&key.name, &params))).await?;
        self.observed.0.writes.inc(["delete"]);
        self.edit(|contents| drop(contents.entries.remove(key)));
        Ok(())
    }

    async fn write_head(&self, spec: &EgressPlanSpec) -> Result<(), Failure> {
        let api = Api::<EgressPlan>::all(self.client.clone());
        let object = objects::head(spec);
        insist(|| api::apply(&api, "writing the plan's head", SINGLETON, &object)).await?;
        self.observed.0.writes.inc(["apply"]);
        self.edit(|contents| contents.head = Some(spec.clone()));
        Ok(())
    }

    fn edit(&self, f: impl FnOnce(&mut Contents)) {
        let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
        f(Arc::make_mut(&mut contents));
        drop(contents);
        self.version.send_modify(|v| *v += 1);
    }
}

/// Repeats a call until the API server answers; only a refusal is a failure.
async fn insist<T, F>(mut request: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut backoff = Backoff::up_to(Duration::from_secs(5));
    loop {
        match request().await {
            Err(error @ Failure::Away { .. }) => tracing::warn!(%error, "trying again"),
            other => return other,
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

async fn read(client: &Client) -> Result<Contents, Failure> {
    let mut entries = BTreeMap::new();
    for kind in KINDS {
        let api = Api::<DynamicObject>::all_with(client.clone(), &api_resource(kind));
        let what = format!("listing planned objects of kind {}", kind.as_str());
        for object in api::call(&what, api.list(&ListParams::default())).await? {
            let (key, digest, resource) = objects::read(kind, &object);
            if resource.is_none() {
                tracing::error!(resource = %key, "a planned object can't be read; the hub will be asked for all of the plan");
            }
            // What can't be read counts as different from everything, so that it is written anew.
            let digest = if resource.is_some() {
                digest
            } else {
                Digest::default()
            };
            entries.insert(key, Entry { digest, resource });
        }
    }
    let api = Api::<EgressPlan>::all(client.clone());
    let head = api::call("reading the plan's head", api.get_opt(SINGLETON)).await?;
    Ok(Contents {
        entries,
        head: head.map(|h| h.spec),
    })
}

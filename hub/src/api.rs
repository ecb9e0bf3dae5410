//! Calls to the API server: bounded in time, each writer with a name of its own.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Field manager of conditions and summaries.
pub(crate) const MANAGER: &str = "spillway-hub";
/// Field manager of recorded numbers.
pub(crate) const ALLOCATIONS: &str = "spillway-hub-alloc";
/// Field manager of what a member told the replica that holds its stream.
pub(crate) const LINK: &str = "spillway-hub-link";
/// Field manager of certificates' serial numbers.
pub(crate) const ENROLMENT: &str = "spillway-hub-enroll";

/// Longest time that one call may take. The client's own retries are within it.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);

/// A call that didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The API server answered with an error, or didn't.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// No answer in time.
    #[error("no answer from the API server in {0:?}")]
    Slow(Duration),
    /// This replica no longer holds the lease.
    #[error("this replica's lease ran out")]
    NotLeader,
}

impl Failure {
    /// The object has changed since it was read, or another one has its name.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(s)) if s.code == 409)
    }

    /// The object doesn't exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(s)) if s.code == 404)
    }
}

/// Awaits a call for at most `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::Slow(limit)),
    }
}

/// Which object a status is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Guard {
    /// Exactly the version that was read.
    Version,
    /// Any version of the object that was read, but no other object of that name.
    Object,
}

/// Applies fields of a status under the name of `manager`: fields that it owned and that are missing now
/// are removed, others' fields stay.
pub(crate) async fn apply_status<K>(
    api: &Api<K>,
    manager: &str,
    meta: &ObjectMeta,
    guard: Guard,
    status: &impl Serialize,
    limit: Duration,
) -> Result<K, Failure>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let name = meta.name.as_deref().unwrap_or_default();
    let mut metadata = json!({"name": name, "uid": meta.uid});
    if let Some(namespace) = &meta.namespace {
        metadata["namespace"] = json!(namespace);
    }
    if guard == Guard::Version {
        metadata["resourceVersion"] = json!(meta.resource_version);
    }
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": metadata,
        "status": status,
    });
    let params = PatchParams::apply(manager).force();
    within(limit, api.patch_status(name, &params, &Patch::Apply(&patch))).await
}

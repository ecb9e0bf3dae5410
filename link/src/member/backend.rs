//! What the member agent must provide: a place for the plan and the identity, and its reports.

use std::collections::BTreeMap;

use async_trait::async_trait;
use spillway_core::plan::{Digest, Resource, ResourceKey, digest_of};
use tokio::sync::watch;

use crate::MemberReport;
use crate::pki::MemberIdentity;

/// The plan that the member holds, as far as the protocol needs to know it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Held {
    /// Hub that made it; empty where there is none.
    pub hub_id: String,
    /// Epoch of that hub.
    pub epoch: u64,
    /// Content digests of its resources.
    pub digests: BTreeMap<ResourceKey, Digest>,
}

impl Held {
    /// The plan's digest; `None` where no plan was ever accepted.
    pub fn digest(&self) -> Option<Digest> {
        (!self.hub_id.is_empty()).then(|| digest_of(&self.digests))
    }
}

/// A whole update that was checked: it leads from what is held to exactly `target`.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedUpdate {
    /// Hub that made the plan.
    pub hub_id: String,
    /// Its epoch.
    pub epoch: u64,
    /// The plan's digest once the update is applied.
    pub target: Digest,
    /// What to write, each with the digest of its content as the hub computed it.
    pub upserts: BTreeMap<ResourceKey, (Resource, Digest)>,
    /// What to delete. Always explicit, for a whole plan too.
    pub removes: Vec<ResourceKey>,
    /// The update carries the whole plan: `upserts` is all there is to be, whatever was there before.
    pub full: bool,
}

/// Why the member keeps its old plan; ends up on the hub, in the status of the object at fault.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}{reason}", resource.as_ref().map(|r| format!("{r}: ")).unwrap_or_default())]
pub struct RefusedUpdate {
    /// The resource at fault; `None` where it is the plan as a whole.
    pub resource: Option<ResourceKey>,
    /// What is wrong and what to do about it, in one or two sentences.
    pub reason: String,
}

/// What was to be stored can't be stored now.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("can't be stored: {0}")]
pub struct StoreError(pub String);

/// Storage of the member.
#[async_trait]
pub trait MemberBackend: Send + Sync + 'static {
    /// What the member holds now. Asked before each update, so the truth after a failed `apply` too.
    fn held(&self) -> Held;

    /// Persists the update. When it returns, a restarted agent must find it. On an error (or where it
    /// is dropped half-way after [`super::MemberConfig::apply_limit`]) nodes must still see the old plan;
    /// the hub offers the update again later.
    async fn apply(&self, update: VerifiedUpdate) -> Result<(), RefusedUpdate>;

    /// The newest report. Sent at the start of every session and whenever it changes.
    fn reports(&self) -> watch::Receiver<MemberReport>;

    /// Stores a renewed identity. It is used only after this succeeded; until then the old one is.
    async fn store_identity(&self, identity: &MemberIdentity) -> Result<(), StoreError>;
}

//! What the hub process must provide: tokens, plans, revocations, and a place for what members tell.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use spillway_core::plan::{Digest, Plan, ResourceKey};
use tokio::sync::watch;

use super::LinkEvent;
use crate::MemberReport;
use crate::pki::{Serial, Token, TrustState};

/// A cluster that wants to become a member. The key's possession is proved.
#[derive(Clone, Debug)]
pub struct EnrollRequest {
    /// The presented token.
    pub token: Token,
    /// Name that the cluster wants; a valid member name.
    pub member: String,
    /// Serial number that its certificate will have.
    pub serial: Serial,
    /// From when that certificate is valid.
    pub valid_from: SystemTime,
    /// SHA-256 of its public key (SPKI). The answer to an enrolment may get lost, so a backend may let
    /// the same token through again for the same key, and only for that.
    pub key: Digest,
    /// What the member holds of the hub's CAs once it has the answer.
    pub trust: TrustState,
}

/// A new certificate for a member, and the CAs that come with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Renewal {
    /// The stream's or call's certificate, which asks.
    pub old: SessionInfo,
    /// Serial number of the new one.
    pub new_serial: Serial,
    /// From when the new one is valid.
    pub valid_from: SystemTime,
    /// What the member holds of the hub's CAs once it has the answer.
    pub trust: TrustState,
}

/// The cluster may have the certificate; everything about it is recorded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Enrolled;

/// Why a cluster may not join.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EnrollRefusal {
    /// No such token, or its hash differs.
    #[error("the hub knows no such token")]
    TokenUnknown,
    /// It was used before.
    #[error("the token was used before")]
    TokenUsed,
    /// It is too old.
    #[error("the token has expired")]
    TokenExpired,
    /// It was made for another name.
    #[error("the token was made for another member")]
    TokenForOtherMember,
    /// A member of that name has joined already.
    #[error("a member of that name has joined already")]
    NameTaken,
    /// The request itself is wrong.
    #[error("the request is invalid: {0}")]
    Invalid(String),
    /// The hub can't record it now; trying again later helps.
    #[error("the hub can't enrol members at the moment: {0}")]
    Unavailable(String),
}

/// A plan as the hub offers it to a member.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedPlan {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The hub stands for it even where the member loses all, or more than half (and over ten), of the
    /// resources it holds. The member judges by what *it* holds, which may be several plans behind, so
    /// this says how sure the hub is of its state (all caches in sync, everything read), and isn't about
    /// one change. Without it the member refuses such a plan.
    pub removal_intended: bool,
}

/// A member's stream. At most one is live for a member; a newer one ends the older first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionInfo {
    /// Name of the member, from its certificate.
    pub member: String,
    /// Serial number of its certificate, 32 hex digits.
    pub serial: String,
    /// From when the certificate is valid.
    pub not_before: SystemTime,
    /// Until when the certificate is valid.
    pub not_after: SystemTime,
    /// Counts the streams of this process.
    pub id: u64,
    /// Where it comes from.
    pub peer: Option<SocketAddr>,
    /// Version of the member agent.
    pub agent_version: String,
    /// Protocol version of the member.
    pub protocol: u32,
    /// Digest of the plan it held when it connected.
    pub held: Option<Digest>,
}

/// Why a member keeps its old plan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Digest of the refused plan.
    pub digest: Digest,
    /// The resource at fault (`kind/name`), empty where it is the plan as a whole.
    pub resource: String,
    /// What to do about it.
    pub reason: String,
}

impl Refusal {
    pub(crate) fn of(digest: Digest, key: Option<&ResourceKey>, reason: impl Into<String>) -> Self {
        Self {
            digest,
            resource: key.map(ToString::to_string).unwrap_or_default(),
            reason: reason.into(),
        }
    }
}

/// The hub cannot do it now; the member tries again later.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the hub can't do that at the moment: {0}")]
pub struct Unavailable(pub String);

/// Storage and decisions of the hub. The calls for one stream come one after the other, in the order in
/// which things happened, and a slow one delays that member only.
#[async_trait]
pub trait HubBackend: Send + Sync + 'static {
    /// Checks the token, uses it up and records the member with the serial number, all before answering.
    async fn enroll(&self, request: EnrollRequest) -> Result<Enrolled, EnrollRefusal>;

    /// A member gets a new certificate. It isn't handed out when this fails.
    async fn renewed(&self, renewal: &Renewal) -> Result<(), Unavailable> {
        let _ = renewal;
        Ok(())
    }

    /// True where the member should renew before its time: what it holds, with this certificate, isn't `now`.
    /// Asked every [`super::HubConfig::revocation_interval`] on live streams; answer from memory.
    fn outdated(&self, member: &str, serial: &str, now: &TrustState) -> bool {
        let _ = (member, serial, now);
        false
    }

    /// True where the session's certificate is no longer good, also because the member was deleted. Asked at every
    /// connection, renewal and plan, and every [`super::HubConfig::revocation_interval`] on live streams;
    /// answer from memory.
    fn revoked(&self, session: &SessionInfo) -> bool;

    /// The member's plan, newest value only. `None` until there is one: the stream is held open meanwhile.
    /// When the sender goes away, the last value stays.
    fn plan(&self, member: &str) -> watch::Receiver<Option<Arc<PublishedPlan>>>;

    /// A stream has begun.
    async fn connected(&self, session: &SessionInfo);

    /// That stream has ended.
    async fn disconnected(&self, session: &SessionInfo, why: &str);

    /// The member has persisted the plan with this digest, just now or before it connected. Told again
    /// when it still holds it after it refused another.
    async fn acknowledged(&self, session: &SessionInfo, digest: Digest);

    /// The member keeps its old plan. The same plan is offered again, ever more rarely.
    async fn refused(&self, session: &SessionInfo, refusal: Refusal);

    /// The member's newest report.
    async fn reported(&self, session: &SessionInfo, report: MemberReport);

    /// Something to count. Answer at once.
    fn happened(&self, event: LinkEvent) {
        let _ = event;
    }

    /// The member wants to leave. Once this succeeds, the member forgets the hub.
    async fn leave(&self, session: &SessionInfo) -> Result<(), Unavailable>;
}

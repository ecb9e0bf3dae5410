//! The hub's side: the listening socket, enrolment, and one session a connected member.

mod backend;
mod enroll;
mod event;
mod outbox;
mod registry;
mod server;
mod session;
#[cfg(test)]
mod simulation;

pub use backend::{
    EnrollRefusal, EnrollRequest, Enrolled, HubBackend, PublishedPlan, Refusal, Renewal, SessionInfo,
    Unavailable,
};
pub(crate) use enroll::read as read_refusal;
pub use event::{Crowd, LinkEvent, StreamEnd};
pub use server::serve;
#[cfg(test)]
pub(crate) use server::serve_on;
pub(crate) use session::inventory;

use std::time::Duration;

/// Settings of a hub's endpoint.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Identity of the hub, the same on all replicas, kept for the federation's life.
    pub hub_id: String,
    /// Rises whenever the hub was restored from a backup. Members refuse a hub that fell behind.
    pub epoch: u64,
    /// Lifetime of members' certificates; renewed at half.
    pub member_lifetime: Duration,
    /// Lifetime of the endpoint's own certificate; renewed at half.
    pub server_lifetime: Duration,
    /// How long after its end a member's certificate still serves to renew itself (and for nothing
    /// else), so that clusters survive a hub or themselves being down for longer than a lifetime.
    pub renewal_grace: Duration,
    /// Longest time for a TLS handshake.
    pub handshake_limit: Duration,
    /// Longest life of a connection without a certificate. Joining takes seconds.
    pub anonymous_limit: Duration,
    /// Time between the hub's pings.
    pub ping_interval: Duration,
    /// A member silent for this long is cut off.
    pub silence_limit: Duration,
    /// Time between checks of a live stream's certificate.
    pub revocation_interval: Duration,
    /// First wait before a refused plan is offered again; doubles up to 20 times this.
    pub retry_refused: Duration,
    /// A member that is asked to renew before its time does so within this, at random.
    pub renewal_spread: Duration,
    /// Wait before a member is asked for that once more.
    pub retry_renewal: Duration,
}

impl HubConfig {
    /// The usual settings.
    pub fn new(hub_id: impl Into<String>, epoch: u64) -> Self {
        Self {
            hub_id: hub_id.into(),
            epoch,
            member_lifetime: Duration::from_secs(24 * 3600),
            server_lifetime: Duration::from_secs(7 * 24 * 3600),
            renewal_grace: Duration::from_secs(30 * 24 * 3600),
            handshake_limit: Duration::from_secs(10),
            anonymous_limit: Duration::from_secs(60),
            ping_interval: Duration::from_secs(10),
            silence_limit: Duration::from_secs(30),
            revocation_interval: Duration::from_secs(1),
            retry_refused: Duration::from_secs(3),
            renewal_spread: Duration::from_secs(5),
            retry_renewal: Duration::from_secs(30),
        }
    }
}

/// Why the endpoint ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its certificate can't be made.
    #[error(transparent)]
    Pki(#[from] crate::pki::PkiError),
    /// The TLS settings are wrong.
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The gRPC server ended.
    #[error("the gRPC server ended: {0}")]
    Grpc(#[from] tonic::transport::Error),
}

//! The member's side: enrolment, and the loop that keeps a stream to the hub.

mod backend;
mod channel;
mod enroll;
mod link;
mod renew;
mod session;
mod state;

pub use backend::{Held, MemberBackend, RefusedUpdate, StoreError, VerifiedUpdate};
#[cfg(test)]
pub(crate) use channel::over;
pub use enroll::{enroll, enroll_with};
pub use link::{Link, LinkHandle};
pub use state::{ConnectionState, DisconnectReason};

use std::time::Duration;

use crate::pki::{Pin, Token};

/// Settings of a member's link.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// Endpoints of the hub, `host:port` (IPv6 in brackets), tried in order.
    pub endpoints: Vec<String>,
    /// Version of the agent, for the hub's status.
    pub agent_version: String,
    /// Longest wait for a TCP connection, and for the TLS handshake.
    pub dial_limit: Duration,
    /// First wait after a failure; doubles.
    pub backoff_start: Duration,
    /// Longest wait between attempts.
    pub backoff_limit: Duration,
    /// A hub silent for this long is left.
    pub silence_limit: Duration,
    /// Longest time that one `apply` may take.
    pub apply_limit: Duration,
}

impl MemberConfig {
    /// The usual settings.
    pub fn new(endpoints: Vec<String>, agent_version: impl Into<String>) -> Self {
        Self {
            endpoints,
            agent_version: agent_version.into(),
            dial_limit: Duration::from_secs(5),
            backoff_start: Duration::from_millis(200),
            backoff_limit: Duration::from_secs(30),
            silence_limit: Duration::from_secs(30),
            apply_limit: Duration::from_secs(120),
        }
    }
}

/// What [`enroll()`] needs.
#[derive(Clone, Debug)]
pub struct EnrollParams {
    /// Endpoints of the hub, tried in order while they can't be reached.
    pub endpoints: Vec<String>,
    /// Pin of the hub's CA, checked before the token is sent.
    pub pin: Pin,
    /// The token.
    pub token: Token,
    /// Name that the member will have.
    pub member: String,
    /// Longest time for one endpoint: connection, handshake, answer, each.
    pub limit: Duration,
}

/// Why a cluster didn't become a member.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EnrollError {
    /// No endpoint answers. The last one tried is named.
    #[error("the hub can't be reached at {endpoint}: {cause}")]
    HubUnreachable {
        /// Endpoint.
        endpoint: String,
        /// What the system said.
        cause: String,
    },
    /// What answers isn't the pinned hub. The token was not sent.
    #[error("{endpoint} shows a CA with the pin {}, not {expected}", got.map_or_else(|| "(none)".to_owned(), |p| p.to_string()))]
    PinMismatch {
        /// Endpoint.
        endpoint: String,
        /// The pin asked for.
        expected: Pin,
        /// The pin of the CA that the endpoint shows, if it shows one.
        got: Option<Pin>,
    },
    /// It shows the pinned CA but no valid certificate signed by it, or doesn't speak TLS 1.3. The token
    /// was not sent.
    #[error("{endpoint} isn't a hub endpoint: {cause}")]
    NotTheHub {
        /// Endpoint.
        endpoint: String,
        /// What the check said.
        cause: String,
    },
    /// The hub refuses.
    #[error(transparent)]
    Refused(#[from] crate::hub::EnrollRefusal),
    /// The hub answered what can't be understood, or broke off.
    #[error("the hub's answer can't be used: {0}")]
    Protocol(String),
}

/// Why the hub hasn't let the member go.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LeaveError {
    /// The hub didn't answer in time; it isn't connected, or busy.
    #[error("the hub didn't answer in time")]
    NoAnswer,
    /// `run` has ended.
    #[error("the link isn't running")]
    Stopped,
}

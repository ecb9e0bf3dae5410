//! How it goes with the hub, for the agent to show.

use spillway_core::plan::Digest;

/// State of the connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ConnectionState {
    /// No stream; trying.
    Connecting {
        /// Why the last attempt or stream ended; `None` before the first one ended.
        reason: Option<DisconnectReason>,
    },
    /// A stream stands.
    Connected {
        /// Endpoint that was dialled.
        endpoint: String,
        /// Identity of the hub.
        hub_id: String,
        /// Serial number of the certificate in use.
        serial: String,
        /// Digest of the plan acknowledged on this stream.
        acknowledged: Option<Digest>,
        /// The newest update was refused, for this reason.
        refused: Option<String>,
    },
    /// The hub has let the member go.
    Left,
    /// `run` has returned.
    Stopped,
}

/// Why there is no stream.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DisconnectReason {
    /// No connection to the endpoint.
    #[error("the hub can't be reached at {endpoint}: {cause}")]
    Unreachable {
        /// Endpoint tried.
        endpoint: String,
        /// What the system said.
        cause: String,
    },
    /// What answers isn't our hub: its certificate isn't signed by our CA.
    #[error("{endpoint} isn't our hub: {cause}")]
    NotOurHub {
        /// Endpoint tried.
        endpoint: String,
        /// What the check said.
        cause: String,
    },
    /// The hub doesn't take our certificate.
    #[error("the hub doesn't accept this member's certificate: {0}")]
    NotAccepted(String),
    /// Our certificate has ended. It can be renewed for some time after that; later the cluster must
    /// join again.
    #[error("this member's certificate has ended: {0}")]
    Expired(String),
    /// The certificate was revoked or the member deleted on the hub.
    #[error("the hub has revoked this member: {0}")]
    Revoked(String),
    /// The hub fell behind what this member holds.
    #[error(
        "the hub is at epoch {offered}, behind the {held} that this member holds: it was restored from \
         an old backup; raise its epoch"
    )]
    StaleHub {
        /// The hub's.
        offered: u64,
        /// Ours.
        held: u64,
    },
    /// The identity can't be used.
    #[error("this member's identity can't be used: {0}")]
    BadIdentity(String),
    /// The hub ended the stream, e.g. because it restarts.
    #[error("the hub ended the stream: {0}")]
    Closed(String),
    /// Nothing came from the hub for too long.
    #[error("the hub went silent")]
    Silent,
    /// A new certificate is put to use.
    #[error("reconnecting with the renewed certificate")]
    Renewed,
}

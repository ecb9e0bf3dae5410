//! What happens on the endpoint that nobody has to act on, but somebody counts.

use tonic::{Code, Status};

/// Something that happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkEvent {
    /// A connection didn't get through the TLS handshake: a stranger, a wrong CA, or too slow.
    HandshakeFailed,
    /// A connection had to go, as there were too many of its kind.
    Displaced(Crowd),
    /// An update was put on a member's stream.
    UpdateSent,
    /// A member's stream ended, or wasn't accepted.
    Ended(StreamEnd),
}

/// Kinds of connections of which there may be so many.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Crowd {
    /// The TLS handshake isn't over.
    Handshake,
    /// Shows no certificate.
    Stranger,
    /// Shows a member's.
    Member,
}

impl Crowd {
    /// One word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Stranger => "stranger",
            Self::Member => "member",
        }
    }
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamEnd {
    /// The member has left the federation.
    Left,
    /// The member ended it, or the connection broke.
    Closed,
    /// A newer one of the same member began.
    Replaced,
    /// Nothing was heard for too long.
    Silent,
    /// The certificate was revoked.
    Revoked,
    /// The certificate has ended.
    Expired,
    /// The member holds a plan of a later epoch.
    StaleHub,
    /// This replica ends.
    Shutdown,
    /// The member said what makes no sense.
    Protocol,
}

impl StreamEnd {
    /// One word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Closed => "closed",
            Self::Replaced => "replaced",
            Self::Silent => "silent",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::StaleHub => "stale_hub",
            Self::Shutdown => "shutdown",
            Self::Protocol => "protocol",
        }
    }

    /// By the code with which this side ends a stream; the others are what a broken connection gives.
    pub(super) fn of(end: &Status) -> Self {
        match end.code() {
            Code::Aborted => Self::Replaced,
            Code::DeadlineExceeded => Self::Silent,
            Code::PermissionDenied => Self::Revoked,
            Code::Unauthenticated => Self::Expired,
            Code::FailedPrecondition => Self::StaleHub,
            Code::Unavailable => Self::Shutdown,
            // The latter is what a message gives that is too large.
            Code::InvalidArgument | Code::OutOfRange => Self::Protocol,
            _ => Self::Closed,
        }
    }
}

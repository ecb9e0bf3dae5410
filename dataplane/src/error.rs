//! What can go wrong between us and the kernel.

use std::io;

use crate::Changes;

/// Result with this package's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, in words for whoever runs the node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("{what}: {source}")]
    Netlink {
        /// What was asked.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A socket couldn't be opened; the capability is missing, or the kernel lacks the subsystem.
    #[error("open {what}: {source}")]
    Open {
        /// Which socket.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// `nft` couldn't be run.
    #[error("run nft (is it installed and on PATH?): {0}")]
    NftMissing(io::Error),
    /// `nft` refused what it was given.
    #[error("nft {what}: {message}")]
    Nft {
        /// What was asked of it.
        what: String,
        /// Its own words, shortened.
        message: String,
    },
    /// `nft` printed something this build can't read.
    #[error("nft printed {what} in a form that this build can't read: {detail}")]
    NftUnreadable {
        /// Which object.
        what: String,
        /// Why.
        detail: String,
    },
    /// A kernel setting couldn't be written.
    #[error("set {path} to {value}: {source}")]
    Sysctl {
        /// Path below /proc/sys.
        path: String,
        /// Wanted value.
        value: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The desired state contradicts itself or the node.
    #[error("{0}")]
    Impossible(String),
    /// A dump kept changing while it was read.
    #[error("{0}: the kernel's tables changed faster than they could be read")]
    Unstable(String),
    /// No answer in time.
    #[error("{0}: no answer within {1} s")]
    TimedOut(String, u64),
    /// Some steps of an apply failed.
    #[error("{} of the steps failed: {}", failures.len(), list(failures))]
    Incomplete {
        /// What was done all the same.
        done: Changes,
        /// What failed.
        failures: Vec<Error>,
    },
    /// The thread that owns the sockets has ended.
    #[error("the kernel thread has ended")]
    Ended,
}

fn list(failures: &[Error]) -> String {
    failures
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl Error {
    /// The kernel's error number, where this is the kernel's refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } | Self::Open { source, .. } | Self::Sysctl { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}

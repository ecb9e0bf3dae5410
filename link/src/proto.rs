//! The generated messages and services.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    reason = "generated; documented in proto/link.proto"
)]

use std::fmt;

tonic::include_proto!("spillway.link.v1");

impl fmt::Debug for EnrollRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrollRequest")
            .field("token", &"[redacted]")
            .field("member", &self.member)
            .finish_non_exhaustive()
    }
}

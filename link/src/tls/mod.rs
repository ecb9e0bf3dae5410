//! TLS 1.3 and nothing older, without resumption: a resumed session keeps the certificate of the first
//! handshake, so that neither a rotation nor a revocation would be seen.

mod client;
mod lobby;
mod server;
mod verify;

pub(crate) use client::{DialError, Trust, dial};
pub(crate) use lobby::Place;
pub(crate) use server::{Accepted, Endpoint, accept};
pub(crate) use verify::PinOutcome;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// HTTP/2, which gRPC runs on.
const ALPN: &[u8] = b"h2";

/// The one crypto provider of this project.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

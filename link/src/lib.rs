//! How hub and members talk: certificates, tokens, enrolment, and the stream of plans and reports.
//!
//! ```text
//!  hub process                                        member agent
//!  HubBackend (tokens, plans, status)                 MemberBackend (plan objects, nodes, identity)
//!      ▲ hub::serve                                       ▲ member::Link::run
//!  hub::session ◄──── gRPC over TLS 1.3, one port ────► member::session
//!      │ hub::outbox: which update is due (pure)          │ frames::Staging: pieces → whole update (pure)
//!  pki::CertificateAuthority                          pki::MemberIdentity (key never leaves the cluster)
//! ```
//!
//! This crate owns sessions, the protocol and the certificates' contents; storage belongs to the two
//! backends. A member's name is only ever taken from its verified certificate.
#![forbid(unsafe_code)]

mod frames;
#[doc(hidden)]
pub mod fuzz;
pub mod hub;
pub mod member;
pub mod pki;
pub mod proto;
mod reports;
#[cfg(test)]
mod simulated;
mod tls;
mod wire;

use spillway_core::plan::Digest;
use spillway_crds::hub::{MemberNode, MemberRanges};

/// Version of the protocol that this build speaks.
pub const PROTOCOL: u32 = 1;
/// Port on which hubs listen unless told otherwise.
pub const DEFAULT_PORT: u16 = 9443;
/// Name in the hub's certificate. Clients ask for it whatever address they dial.
pub const SERVER_NAME: &str = "hub.spillway.internal";

/// What a member tells about itself. The newest report replaces all earlier ones.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MemberReport {
    /// The member's nodes, sorted by name.
    pub nodes: Vec<MemberNode>,
    /// Digest of the plan that every node has programmed; `None` while they differ.
    pub programmed: Option<Digest>,
    /// Version of the member agent.
    pub agent_version: String,
    /// The member's ranges; `None` before they were looked for, and from agents that don't tell.
    pub ranges: Option<MemberRanges>,
}

/// True for a name that a member may have: a DNS label (RFC 1123) of at most 63 characters.
pub fn is_member_name(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 63 && bytes.iter().all(|c| inner(*c)) && edge(bytes.first()) && edge(bytes.last())
}

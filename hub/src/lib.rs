//! The hub: source of truth for the federation.
//!
//! ```text
//!  API server ─ watches ─► mirror (memory) ─► reconcile: snapshot → core::resolve
//!      ▲                                          │            │
//!      │            leader only:  allocations ◄───┤            └─► plans ─► link ─► members
//!      ├──────────────────────── statuses ◄───────┘                          │
//!      └──────────────── report: what members tell, by whoever holds the stream ◄── backend
//! ```
//!
//! Every replica mirrors, resolves and serves. The one that holds the Lease records allocations and
//! writes statuses. What one replica has written comes to the others, and back to itself, by the watch.
#![forbid(unsafe_code)]

mod absent;
mod allocate;
mod api;
mod args;
mod authority;
mod backend;
mod conditions;
mod enroll;
mod health;
mod lease;
mod memory;
mod mirror;
mod moves;
mod observed;
mod plans;
mod presence;
mod reconcile;
mod report;
mod rotation;
mod run;
mod snapshot;
mod status;
mod tokens;

pub use args::Args;
pub use run::{run, start};

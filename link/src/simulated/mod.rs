//! The real server and the real client on a network that is made here, in time that is made here: every protocol
//! invariant of docs/design.md that needs both ends, under crashes, delays, partitions and a relay that lies.
//!
//! ```text
//!   faults, slow, slices ──► world: hosts, what they hold on disk, what must hold at every moment
//!                              │                          ▲
//!   meddling ──► meddler       │ hub.rs, member.rs: backends around serve_on() and Link::run()
//!                   │          ▼
//!                  net: bytes, late, in order, or not at all for a while
//! ```
//!
//! Time stands still while anything can run and jumps where nothing can (tokio's paused clock), so a minute costs
//! milliseconds. It is made by hand, as the known simulators lose bytes for good where TCP sends them again after a
//! partition, and can't crash a process that shares a runtime with others.

mod faults;
mod hub;
mod meddler;
mod meddling;
mod member;
mod net;
mod slices;
mod slow;
mod world;

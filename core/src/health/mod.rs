//! Whom a node counts on: what its probes found, judged without asking anybody. Pure; time is passed in.
//!
//! ```text
//!  answers, requests ─► peer      each probed node: unknown, alive, dead, held down
//!                    ├► own       this node itself: does it hear, has it a carrier, do its colleagues count it
//!                    └► tracker ─► Liveness ─► node::compile: next hops, egress IPs held
//!                                     ▲
//!  what it holds, who confirms ─► handover    what it keeps until a successor has it
//!  message   the datagrams              reason   why an address moved, in words
//!  announce  what neighbours are told once more
//! ```
//!
//! Moments are [`Moment`]s, durations since any start that never goes back.

pub mod announce;
mod damper;
pub mod handover;
mod leaving;
pub mod message;
mod own;
mod peer;
pub mod reason;
mod role;
#[cfg(test)]
mod simulation;
mod timing;
mod tracker;

use std::time::Duration;

pub use handover::Handover;
pub use leaving::Leaving;
#[doc(hidden)]
pub use message::Message;
pub use message::Said;
pub use own::{Condition, Uplink};
pub use peer::Heard;
pub use role::{Assignment, Role};
pub use timing::Timing;
pub use tracker::{Change, Tracker};

/// A moment: how long after some start. Moments of one process compare with each other only.
pub type Moment = Duration;

//! The plan as objects of this cluster: written when the hub sends one, read back after a restart.
//!
//! ```text
//!  hub ──► Store::apply ──► PlannedMember, PlannedPeer, PlannedGateway, PlannedPolicy, then EgressPlan
//!               │  ▲ load after a restart, repair when somebody else touched them
//!               ▼  │
//!            Contents (in memory: what the objects hold)
//! ```

mod contents;
mod objects;
mod repair;
mod store;

#[cfg(test)]
pub(crate) use contents::Entry;
pub(crate) use contents::{Contents, Update};
pub(crate) use repair::{PlanMirrors, repair};
pub(crate) use store::{ApplyError, Store};

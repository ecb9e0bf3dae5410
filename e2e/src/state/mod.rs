//! What an arena is made of, and where its files are.
//!
//! [`ArenaSpec`] is what a user asks for; [`Plan`] is what follows from it: every machine with its namespace and
//! addresses. The plan is written to the arena's directory before the first object is created, so that `down` finds
//! all of it whatever happened to the `up` that made it.

mod dirs;
mod plan;
mod provider;
mod spec;

pub use dirs::Dirs;
pub use plan::{ClusterPlan, MachinePlan, NodePlan, Plan};
pub use provider::{Need, Provider};
pub use spec::{ArenaSpec, ClusterSpec, Enforcer};

/// The arena meant when no name is given.
pub const DEFAULT_NAME: &str = "spillway";

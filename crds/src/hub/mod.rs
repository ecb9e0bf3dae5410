//! Kinds that users write in the hub cluster.

mod gateway;
mod member;
mod policy;

pub use gateway::*;
pub use member::*;
pub use policy::*;

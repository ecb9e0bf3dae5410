//! `spillway failover`: which node answers for which egress IP, and moving them away from a node.

mod drain;
mod status;

pub use drain::{drain, undrain};
pub use status::status;

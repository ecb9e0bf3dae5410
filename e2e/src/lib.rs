//! Real Kubernetes clusters on one machine, and the scenarios that run on them.

pub mod image;
pub mod probe;
pub mod provision;

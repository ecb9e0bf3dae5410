//! The hub in its cluster.

pub mod endpoints;
pub mod install;
pub mod uninstall;

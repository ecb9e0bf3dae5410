//! The hub in its cluster.

pub mod endpoints;
pub mod install;
pub mod rotate_ca;
pub mod uninstall;

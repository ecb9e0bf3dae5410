//! The hub in its cluster.

pub mod backup;
pub mod endpoints;
pub mod install;
mod owners;
pub mod restore;
pub mod rotate_ca;
pub mod uninstall;

//! The whole desired state of one node's kernel, as a value.

pub mod flows;
pub mod interval;
pub mod nft;
pub mod state;

//! The whole desired state of one node's kernel, as a value.

pub mod nft;
pub mod state;

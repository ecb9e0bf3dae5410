//! Kinds that the member agent keeps in its own cluster, so that nodes work while the hub is away.

mod connection;
mod grants;
mod network;
mod node;
mod plan;

pub use connection::*;
pub use grants::*;
pub use network::*;
pub use node::*;
pub use plan::*;

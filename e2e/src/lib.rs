//! Real Kubernetes clusters on one machine, and the scenarios that run on them.
//!
//! ```text
//! scenario   what a test holds: Arena, Cluster, Node, Pod, Outside
//! lifecycle  up, images, power, down
//! ├ control_plane, node   machines: what they run, their namespaces and root directory
//! ├ kind                  the other make of machines: kind's containers
//! ├ wire                  bridges, router, the outside
//! ├ pki, state            certificates; the plan on disk
//! ├ provision, image      programs and images
//! └ probe                 the traffic program inside pods and outside
//! ```

mod connect;
pub mod control_plane;
pub mod federation;
pub mod image;
pub mod kind;
pub mod lifecycle;
pub mod node;
pub mod pki;
pub mod probe;
pub mod provision;
pub mod scenario;
pub mod state;
pub mod status;
mod wait;
pub mod wire;

pub use scenario::{
    Arena, Cluster, Mark, Node, Output, Outside, Pod, PodRequest, Protocol, Record, connect, eventually,
};
pub use state::{ArenaSpec, ClusterSpec, Need, Provider};

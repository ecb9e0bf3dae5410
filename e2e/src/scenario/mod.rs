//! What scenarios are written with: an arena, its clusters, nodes and pods, and what the outside server saw.
//!
//! ```no_run
//! # async fn story() -> anyhow::Result<()> {
//! use spillway_e2e::{Arena, ArenaSpec};
//! let arena = Arena::up(&ArenaSpec::parse_short("story", "a:1")?).await?;
//! let a = arena.cluster("a").await?;
//! let pod = a.pod("default", "client", &[("app", "client")], None).await?;
//! let mark = arena.outside().mark()?;
//! pod.exec(&["probe", "tcp", "198.51.100.10:7000"]).await?.success()?;
//! let seen = arena.outside().records_since(mark)?;
//! assert_eq!(seen[0].src, arena.node("a-n1")?.plan().ipv4);
//! arena.down().await
//! # }
//! ```

mod arena;
mod cluster;
mod node;
mod outside;
mod pod;

pub use crate::{connect::connect, wait::eventually};
pub use arena::Arena;
pub use cluster::Cluster;
pub use node::Node;
pub use outside::{Mark, Outside, Protocol, Record};
pub use pod::{Output, Pod, PodRequest};

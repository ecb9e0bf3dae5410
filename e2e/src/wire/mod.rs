//! The network around the clusters: a bridge per partition, a router, and the outside.
//!
//! ```text
//!            sw-X-out  198.51.100.10, .11            the outside server
//!               │ eth0
//!               │ outside
//!            sw-X-rtr  .1 on every leg               forwards all, translates nothing
//!               │ part1        │ part2
//!  sw-X-wire   br1            br2                    one segment a partition
//!             ┌─┴──┬─────┐     └──┐
//!          a-cp  a-n1  b-n1     c-n1                 each a namespace with eth0
//! ```
//!
//! The router has no route to any pod range and no reverse path filter: a packet that leaves a node with a pod's
//! address still reaches the outside server, which records it. A leak is seen, not swallowed.

pub mod address;
mod build;
mod fault;
mod hidden;
pub mod netns;
mod sources;

pub use build::{
    CARD, be_a_router, borrow_switch, bridge, build, build_router, build_switch, plug, port, route_pods,
    unplug,
};
pub use fault::{Direction, set_cable, set_half_open, set_path_mtu, too_big_sent};
pub use hidden::{Nat, set_hidden};
pub use sources::{sources, watch_sources};

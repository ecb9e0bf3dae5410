//! The whole desired state of one node's kernel, as a value.
//!
//! ```text
//! NodeInputs ─► peers    tunnel device, forwarding entries, neighbours, overlay routes
//!            ├► encrypted  WireGuard under the tunnel: device, table, rule
//!            ├► relays   whom this node reaches through others, and between whom it passes packets on
//!            ├► exits    which ways lead to a gateway now (gateways, with what the probes found)
//!            ├► own      this node's ports of egress IPs, where pods' own nodes translate
//!            ├► forwarded  stateless gateways of this node: who may leave with which port, whose is a reply
//!            ├► held     gateways that translate and that this node carries: grants, egress IPs
//!            ├► carried  both kinds' egress IPs: routes, neighbours, proxies
//!            ├► sandbox  pods' addresses, as the CNI gave them out
//!            ├► guard    what is dropped because nobody knows yet whose it is
//!            ├► select   pods into classes; flatten: a class's overlapping policies into disjoint intervals, each with
//!            │           one outcome: a verdict, or several by protocol and port
//!            ├► index    a number a gateway in use: mark, rule, table
//!            ├► ruleset  the nftables tables out of all these, with their sets
//!            ├► flows    which connection-tracking entries agree with it
//!            └► drops    which rule drops for which reason
//! ```

#[cfg(test)]
mod bandwidth_tests;
mod carried;
mod compile;
pub mod drops;
mod encrypted;
#[cfg(test)]
mod encrypted_tests;
mod exits;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod flatten;
pub mod flows;
mod forwarded;
pub mod gateways;
mod guard;
mod held;
pub mod index;
pub mod inputs;
pub mod interval;
pub mod nft;
#[cfg(test)]
mod node_ip_tests;
#[cfg(test)]
mod oracle_tests;
pub mod outcome;
mod own;
mod peers;
#[cfg(test)]
mod port_tests;
mod problems;
#[cfg(test)]
mod relayed_tests;
mod relays;
mod ruleset;
pub mod sandbox;
pub mod scope;
mod select;
pub mod state;
#[cfg(test)]
mod stateless_tests;
#[cfg(test)]
mod tests;
mod watched;

pub(crate) use compile::local_union;
pub use compile::{Compiled, compile, compile_numbered};
pub use problems::problems;
pub use watched::{called, encrypted, reachable, watched};

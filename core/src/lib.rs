//! The pure model of Spillway: what the hub decides and what a node's kernel must hold, as values.
//!
//! ```text
//!  hub objects + recorded allocations                   plan objects + this node's pods
//!            │ resolve                                            │ node::compile
//!            ▼                                                    ▼
//!  Plan a member, statuses, new allocations             DesiredState of the kernel
//!            │ plan::Delta                                        │ (dataplane diffs and applies)
//!            ▼                                                    ▼
//!        the member                                           the kernel
//! ```
//!
//! Nothing here does I/O, reads a clock or draws a random number: equal input gives equal output, on
//! every replica and after every restart.
#![forbid(unsafe_code)]

pub mod address;
pub mod alloc;
pub mod bandwidth;
pub mod eip;
pub mod health;
pub mod node;
pub mod order;
pub mod overlay;
pub mod plan;
pub mod ports;
pub mod ranges;
pub mod resolve;
pub mod slices;
pub mod wireguard;

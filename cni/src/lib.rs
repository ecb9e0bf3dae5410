//! The chained CNI plugin: a pod waits until its node has programmed it, and so its first packet already leaves
//! as its policies say.
//!
//! ```text
//!  kubelet ─► runtime ─► the CNI's plugins ─► spillway-cni ── protocol ──► node agent (a unix socket)
//!                                                  └─ cache: whom a policy could select, for when no agent answers
//! ```
//!
//! | module | |
//! |---|---|
//! | [`config`] | what the runtime hands to a plugin, and how results and errors are written (CNI spec 0.3.1 to 1.1.0) |
//! | [`plugin`] | the decision: go on, wait, or refuse |
//! | [`protocol`] | one line of JSON each way between plugin and node agent |
//! | [`cache`] | the file that the node agent leaves for the time when it doesn't answer |
//!
//! The plugin changes nothing by itself: it hands on the result of the plugin before it as it came.
#![forbid(unsafe_code)]

pub mod cache;
pub mod config;
pub mod plugin;
pub mod protocol;

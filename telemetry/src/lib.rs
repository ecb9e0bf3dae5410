//! What the three daemons show of themselves over HTTP: `/healthz`, `/readyz` and `/metrics`.
//!
//! ```text
//!  daemon ── counts as it works ──────► hub, member, node: every metric there is, by name
//!         ── refresh, when scraped ──►    │ what is a state, read at that moment and at no other
//!         ── checks, watchdog ───────► http ◄── kubelet, Prometheus
//! ```
//!
//! All metrics of all daemons are declared here, so that names and labels are looked at side by side, and
//! `docs/reference/metrics.md` is generated from the same declarations.
//!
//! # Labels are bounded
//! A counter's label values are `&'static str`: only code can name them, never an object. Label values from objects
//! are for gauges alone, which are replaced as a whole at every scrape, so that what is gone goes, up to a limit that
//! each declares. They are names of members, gateways and egress IPs, which the hub's own limits bound; never of pods,
//! namespaces, nodes or policies, of which there may be any number.
#![forbid(unsafe_code)]

mod book;
mod health;
mod http;
pub mod hub;
pub mod member;
pub mod node;
mod process;
mod reference;
pub mod text;

pub use book::{Book, Counters, Gauges, LiveCounter, LiveGauge, LiveHistogram};
pub use health::{Check, Health, Watchdog};
pub use http::{Metrics, Routes, bind, get, routes, serve};
pub use reference::reference;

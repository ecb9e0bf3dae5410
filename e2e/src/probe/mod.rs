//! The program that sends and records test traffic. It is the outside server, which notes who came from where, and the
//! client in the pods, which says what the server saw.
//!
//! ```text
//! cli ── server ── Log (record): one JSON line per connection, datagram, echo request, SYN
//!     │        └── raw: what the kernel answers itself, and what never becomes a connection
//!     ├── client, icmp: one attempt          ├── watch: many attempts, or one long connection
//!     ├── throughput, flood: bytes and datagrams per second
//!     └── flows: hundreds of long connections, each byte checked
//! ```
//! Threads and blocking sockets on purpose, `flows` aside: a measuring program should have no scheduler of its own.

mod cli;
mod client;
mod flood;
mod flows;
mod icmp;
mod packet;
mod raw;
mod record;
mod server;
mod throughput;
mod watch;

pub use cli::main;
pub use flood::Flood;
pub use flows::{FlowKind, FlowReport, FlowsReport, Gap};
pub use record::{Answer, Protocol, Record};
pub use throughput::Throughput;
pub use watch::Attempt;

/// TCP and UDP: tells the client its address, then echoes.
pub const ECHO_PORT: u16 = 7000;
/// TCP: a line every 10 ms from the server.
pub const PUSH_PORT: u16 = 7001;
/// TCP: takes all bytes and reports their number. UDP: takes all datagrams and reports their number when asked.
pub const SINK_PORT: u16 = 7002;
/// TCP: sends bytes until the client hangs up.
pub const SOURCE_PORT: u16 = 7003;
/// TCP: long-lived connections of numbered, checked records.
pub const FLOW_PORT: u16 = 7004;
/// TCP: as [`ECHO_PORT`], for what tells ports apart. The last of the ports.
pub const SECOND_ECHO_PORT: u16 = 7005;

#[cfg(test)]
mod tests;

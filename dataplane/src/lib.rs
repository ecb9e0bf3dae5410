//! What the node agent asks of a kernel, and the kernel that does it.
//!
//! ```text
//!   core::node::compile ──► DesiredState ──► Kernel::apply ──► LinuxKernel: one thread owns every socket
//!                                                 │              ├─ nft        our tables, one transaction each
//!            NodeInputs ◄── Facts ◄── Kernel::facts              ├─ link, fdb, neighbours, routes, rules,
//!                                                 │              │  proxies, sysctls
//!         apply again  ◄── Drift ◄── Kernel::drift               ├─ wireguard  under encrypted paths
//!                                                                ├─ announce   gratuitous ARP, unsolicited NA
//!                                                                └─ conntrack  flows to cut
//! ```
//!
//! State lives in the kernel: an apply observes, compares and writes the difference, so that a second apply
//! writes nothing, an agent's restart disturbs nothing, and what somebody else changed is repaired. Only from one
//! state to the next, while nobody else was seen to touch what is ours, the difference between the two is written
//! at once and the kernel observed afterwards: one pod's change is then one message to the kernel, a next hop that
//! died one message a family, one policy's change one run of `nft`. A write that doesn't fit, an error, drift and a repeated apply all lead back to observing
//! first. What is ours is told by its own marks: two nftables tables of one name, one device, route and rule protocol number
//! [`PROTOCOL`]; nothing else is ever removed.
//!
//! # The order of one apply
//! 1. **The nftables table**, in one transaction. Its guards drop what carries a routing mark but would leave
//!    through anything but the tunnel, and what arrives by the tunnel without a grant. Standing first, they
//!    turn every half-way state below into a drop: marked packets whose rule isn't there yet are dropped rather
//!    than routed by the main table, and a tunnel device never receives before it is guarded.
//! 2. The tunnel device and its addresses.
//! 3. The `netdev` table that hooks into the device: it gives replies to egress IPs their way to the peer.
//! 4. The WireGuard device with its peers.
//! 5. Forwarding entries and neighbours, routes, rules, kernel settings.
//! 6. Proxies last: nobody outside is told to send here before the way on exists. New ones are announced at once.
//!
//! Removal runs the other way round (proxies, rules, routes, neighbours, forwarding entries, the `netdev` table,
//! devices), and the first table goes last of all, so that taking things away is guarded too. Every step is tried even if one before it
//! failed, except that nothing is built while the table couldn't be written.

mod changes;
mod error;
mod facts;
pub mod linux;
pub mod nft;
mod recording;
mod wireguard;

use std::net::IpAddr;

use async_trait::async_trait;
use spillway_core::node::flows::Flows;
use spillway_core::node::state::DesiredState;
use spillway_crds::hub::PortRange;
use tokio::sync::watch;

pub use changes::{Change, Changes, Operation};
pub use error::{Error, Result};
pub use facts::{Capabilities, Device, Facts};
pub use linux::{LinuxKernel, Options};
pub use recording::RecordingKernel;
pub use wireguard::{Choice, Encryption, Implementation, NotAPrivateKey, PrivateKey, SESSION};

/// Route and rule protocol number of everything that is ours (`/etc/iproute2/rt_protos` leaves it free).
pub const PROTOCOL: u8 = 87;

/// What has been noticed since the kernel was opened. Both counters only grow; a receiver that sees either
/// change has something to do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Drift {
    /// How often the kernel was found to hold something else than what was last applied, changed by others.
    /// The remedy is to apply again.
    pub repairs: u64,
    /// How often the facts (devices, addresses, routes of others) changed. The remedy is to compile again.
    pub facts: u64,
    /// What the last comparison found to repair.
    pub found: Changes,
}

/// How much of an egress IP's ports this node's connections use.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PortCount {
    /// Connections in each of the ranges asked for, in their order.
    pub connections: Vec<u32>,
    /// Connections with the one destination (protocol, address and port) that has most of them. A port serves one
    /// connection a destination, so this many ports are taken where they are scarcest.
    pub busiest: u32,
}

/// What a rule of ours has counted since it was written.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RuleCount {
    /// Family of its table.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// What tells it from the chain's other rules, as [`nft::stamp`] makes it.
    pub stamp: String,
    /// Packets.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// One node's kernel.
#[async_trait]
pub trait Kernel: Send + Sync {
    /// What the node's network looks like and what its kernel can do. `underlay` are the node's own addresses;
    /// the device that bears the first one found is the uplink.
    async fn facts(&self, underlay: &[IpAddr]) -> Result<Facts>;

    /// Makes the kernel hold `desired` and nothing else of ours. Answers what was changed.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when some step failed; the table stands, and the other steps were still tried. Any other
    /// error: the table couldn't be written, and nothing else was. It is safe to apply again.
    async fn apply(&self, desired: &DesiredState) -> Result<Changes>;

    /// What [`Kernel::apply`] would change, without changing it.
    async fn plan(&self, desired: &DesiredState) -> Result<Changes>;

    /// Deletes the connection tracking entries that [`Flows::cut`] condemns; answers how many. Meant to follow an
    /// apply: what is cut before the rules stand comes back the old way.
    async fn cut(&self, flows: &Flows) -> Result<usize>;

    /// Announces every egress IP that `addresses` names and this node answers for, as on take-over.
    async fn announce(&self, addresses: &[IpAddr]) -> Result<()>;

    /// Who encrypts, and when it last agreed on keys with each peer.
    async fn encryption(&self) -> Result<Encryption>;

    /// Counts the connections of ours by egress IP and range of ports, and answers in the order asked. Holds up nothing
    /// else.
    async fn port_use(&self, of: &[(IpAddr, Vec<PortRange>)]) -> Result<Vec<PortCount>>;

    /// What the rules with a counter have counted, in all tables of ours that there are. Holds up nothing else.
    async fn counts(&self) -> Result<Vec<RuleCount>>;

    /// Fires when others touched what is ours, or the facts changed.
    fn drift(&self) -> watch::Receiver<Drift>;
}

#[async_trait]
impl<K: Kernel + ?Sized> Kernel for std::sync::Arc<K> {
    async fn facts(&self, underlay: &[IpAddr]) -> Result<Facts> {
        (**self).facts(underlay).await
    }

    async fn apply(&self, desired: &DesiredState) -> Result<Changes> {
        (**self).apply(desired).await
    }

    async fn plan(&self, desired: &DesiredState) -> Result<Changes> {
        (**self).plan(desired).await
    }

    async fn cut(&self, flows: &Flows) -> Result<usize> {
        (**self).cut(flows).await
    }

    async fn announce(&self, addresses: &[IpAddr]) -> Result<()> {
        (**self).announce(addresses).await
    }

    async fn encryption(&self) -> Result<Encryption> {
        (**self).encryption().await
    }

    async fn port_use(&self, of: &[(IpAddr, Vec<PortRange>)]) -> Result<Vec<PortCount>> {
        (**self).port_use(of).await
    }

    async fn counts(&self) -> Result<Vec<RuleCount>> {
        (**self).counts().await
    }

    fn drift(&self) -> watch::Receiver<Drift> {
        (**self).drift()
    }
}

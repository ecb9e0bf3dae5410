//! The WireGuard device under encrypted paths.
//!
//! One trait, so that who encrypts makes no difference above it. Today there is one implementation, in this process
//! ([`userspace`]): it works on every kernel with a TUN device, at the price of ending with the process.

mod key;
mod tun;
pub(crate) mod userspace;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use spillway_core::node::state::{WireGuardDevice, WireGuardPeer};
use spillway_core::wireguard::PublicKey;

pub use key::{NotAPrivateKey, PrivateKey};

use crate::{Changes, Operation, Result};

/// How long a session is good after its handshake: WireGuard's `REJECT_AFTER_TIME`.
pub const SESSION: Duration = Duration::from_secs(180);

/// Who encrypts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Implementation {
    /// This process.
    Userspace,
}

impl Implementation {
    /// Name in status and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
        }
    }
}

/// What is known of the WireGuard device and its peers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Encryption {
    /// Who encrypts; absent where there is no device.
    pub implementation: Option<Implementation>,
    /// Time since the last handshake with each peer; `None` before the first.
    pub peers: BTreeMap<PublicKey, Option<Duration>>,
}

/// A WireGuard device of this node. What isn't WireGuard's about it (that it is up, its MTU, its alias) is written with the
/// other devices'.
#[async_trait]
pub(crate) trait WireGuard: Send {
    /// Who encrypts.
    fn implementation(&self) -> Implementation;

    /// What the device was last brought to, if it is there.
    fn held(&self) -> Option<WireGuardDevice>;

    /// Makes the device, if it isn't there, and brings its peers to those of `wanted`. A peer that stays keeps its session
    /// and the endpoint that it was last heard from.
    async fn apply(&mut self, wanted: &WireGuardDevice) -> Result<()>;

    /// Takes the device away.
    async fn remove(&mut self) -> Result<()>;

    /// Time since the last handshake by peer.
    async fn peers(&mut self) -> BTreeMap<PublicKey, Option<Duration>>;
}

/// What leads from one device to another, for the record. `None` stands for no device.
pub(crate) fn changes(held: Option<&WireGuardDevice>, wanted: Option<&WireGuardDevice>) -> Changes {
    let mut changes = Changes::default();
    let none = BTreeMap::new();
    let peers = |device: Option<&WireGuardDevice>| device.map_or(none.clone(), |d| d.peers.clone());
    match (held, wanted) {
        (None, Some(new)) => changes.push(Operation::Add, device(new)),
        (Some(old), None) => {
            changes.push(Operation::Remove, device(old));
            return changes;
        }
        (Some(old), Some(new)) if (&old.name, old.port, old.mtu) != (&new.name, new.port, new.mtu) => {
            changes.push(Operation::Change, device(new));
        }
        _ => {}
    }
    let (old, new) = (peers(held), peers(wanted));
    for (key, peer) in &new {
        match old.get(key) {
            None => changes.push(Operation::Add, describe(key, peer)),
            Some(before) if before != peer => changes.push(Operation::Change, describe(key, peer)),
            Some(_) => {}
        }
    }
    for (key, peer) in old.iter().filter(|(key, _)| !new.contains_key(*key)) {
        changes.push(Operation::Remove, describe(key, peer));
    }
    changes
}

fn device(device: &WireGuardDevice) -> String {
    format!(
        "device {} wireguard port {} mtu {}",
        device.name, device.port, device.mtu
    )
}

fn describe(key: &PublicKey, peer: &WireGuardPeer) -> String {
    let address = peer.address.map(|a| a.to_string()).unwrap_or_default();
    format!(
        "wireguard peer {key} endpoint {} address {address}",
        peer.endpoint
    )
}

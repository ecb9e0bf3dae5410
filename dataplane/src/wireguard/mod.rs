//! The WireGuard device under encrypted paths.
//!
//! One trait, so that who encrypts makes no difference above it: the kernel ([`kernel`]), whose device outlives the agent, or
//! this process ([`userspace`]), on every kernel with a TUN device. [`Encryptor`] decides which.

pub(crate) mod kernel;
mod key;
mod tun;
pub(crate) mod userspace;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use netlink_packet_route::link::InfoKind;
use spillway_core::node::state::{WireGuardDevice, WireGuardPeer};
use spillway_core::wireguard::PublicKey;

use self::kernel::InKernel;
use self::userspace::Userspace;
pub use key::{NotAPrivateKey, PrivateKey};

use crate::{Changes, Operation, Result};

/// How long a session is good after its handshake: WireGuard's `REJECT_AFTER_TIME`.
pub const SESSION: Duration = Duration::from_secs(180);

/// Who encrypts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Implementation {
    /// The kernel.
    Kernel,
    /// This process.
    Userspace,
}

impl Implementation {
    /// Name in status and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// Who is to encrypt.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Choice {
    /// The kernel where it makes a WireGuard device, else this process.
    #[default]
    Auto,
    /// The kernel. Where it can't, nothing passes on encrypted paths.
    Kernel,
    /// This process.
    Userspace,
}

/// What is known of the WireGuard device and its peers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Encryption {
    /// Who encrypts; absent before it had to be decided.
    pub implementation: Option<Implementation>,
    /// Why that one.
    pub reason: String,
    /// What keeps the device from being as it should; absent where nothing does.
    pub problem: Option<String>,
    /// Time since the last handshake with each peer; `None` before the first.
    pub peers: BTreeMap<PublicKey, Option<Duration>>,
}

/// A WireGuard device of this node. What isn't WireGuard's about it (that it is up, its MTU, its alias) is written with the
/// other devices'.
#[async_trait]
pub(crate) trait WireGuard: Send {
    /// Who encrypts.
    fn implementation(&self) -> Implementation;

    /// The kind of its interface. One of another kind was made by somebody else.
    fn kind(&self) -> InfoKind;

    /// What [`Self::apply`] would change. `there`: an interface of that name and this kind exists.
    async fn plan(&mut self, wanted: &WireGuardDevice, there: bool) -> Result<Changes>;

    /// Makes the device, if it isn't there, and brings its peers to those of `wanted`. A peer that stays keeps its session
    /// and the endpoint that it was last heard from.
    async fn apply(&mut self, wanted: &WireGuardDevice, there: bool) -> Result<()>;

    /// Takes the device away.
    async fn remove(&mut self) -> Result<()>;

    /// Time since the last handshake by peer.
    async fn peers(&mut self) -> Result<BTreeMap<PublicKey, Option<Duration>>>;
}

/// Who encrypts on this node. Decided when it is first needed, since asking the kernel may load a module, and kept then.
pub(crate) struct Encryptor {
    key: PrivateKey,
    choice: Choice,
    driver: Option<Box<dyn WireGuard>>,
    reason: String,
    /// How the last attempt to bring the device to what is wanted failed.
    problem: Option<String>,
}

impl Encryptor {
    pub(crate) fn new(key: PrivateKey, choice: Choice) -> Self {
        Self {
            key,
            choice,
            driver: None,
            reason: String::new(),
            problem: None,
        }
    }

    /// Whoever encrypts, in the calling thread's network namespace.
    ///
    /// # Errors
    /// Where the kernel must and can't.
    pub(crate) fn driver(&mut self) -> Result<&mut dyn WireGuard> {
        let driver = match self.driver.take() {
            Some(driver) => driver,
            None => self.decide()?,
        };
        Ok(self.driver.insert(driver).as_mut())
    }

    fn decide(&mut self) -> Result<Box<dyn WireGuard>> {
        let kernel = || InKernel::open(self.key.clone());
        let userspace = || Userspace::new(self.key.clone());
        let (driver, reason): (Box<dyn WireGuard>, String) = match self.choice {
            Choice::Userspace => (Box::new(userspace()), "the agent's --wireguard says so".into()),
            Choice::Kernel => (Box::new(kernel()?), "the agent's --wireguard says so".into()),
            Choice::Auto => match kernel() {
                Ok(driver) => (Box::new(driver), "the kernel has WireGuard".into()),
                Err(error) => {
                    let why = format!("the kernel has no WireGuard for us: {error}");
                    (Box::new(userspace()), why)
                }
            },
        };
        let implementation = driver.implementation().as_str();
        tracing::info!(implementation, reason, "who encrypts");
        self.reason = reason;
        Ok(driver)
    }

    /// Notes how an attempt went.
    pub(crate) fn note<T>(&mut self, result: &Result<T>) {
        self.problem = result.as_ref().err().map(ToString::to_string);
    }

    /// Takes the device away that this process made, if it made one.
    pub(crate) async fn remove(&mut self) -> Result<()> {
        self.problem = None;
        match &mut self.driver {
            Some(driver) => driver.remove().await,
            None => Ok(()),
        }
    }

    /// See [`crate::Kernel::encryption`].
    pub(crate) async fn encryption(&mut self) -> Result<Encryption> {
        let (implementation, peers) = match &mut self.driver {
            Some(driver) => (Some(driver.implementation()), driver.peers().await?),
            None => (None, BTreeMap::new()),
        };
        Ok(Encryption {
            implementation,
            reason: self.reason.clone(),
            problem: self.problem.clone(),
            peers,
        })
    }
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

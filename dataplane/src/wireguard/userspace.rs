//! WireGuard in this process, over a TUN device.
//!
//! A thread of its own, started by whoever first needs it and so in that one's network namespace, has a runtime whose
//! threads encrypt. The device ends with the process: what was to go through it meets an `unreachable` route until the
//! next process has made it anew and shaken hands, which takes a round trip a peer.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use gotatun::device::configure::PeerMut;
use gotatun::device::{Device, DeviceBuilder, Peer};
use gotatun::udp::socket::UdpSocketFactory;
use gotatun::x25519;
use netlink_packet_route::link::InfoKind;
use spillway_core::node::state::{WireGuardDevice, WireGuardPeer};
use spillway_core::wireguard::PublicKey;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::tun::Tun;
use super::{Implementation, PrivateKey, WireGuard, changes};
use crate::{Changes, Error, Result};

/// How long new peers are waited for to answer the first handshake; WireGuard itself goes on trying.
const FIRST_HANDSHAKE: Duration = Duration::from_secs(5);

/// Time after which a peer that is to be called through a relay from now on is looked at for the first time, and the longest
/// from one look to the next; each wait is twice the one before.
const SETTLING: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(4)];

/// Bytes of the UDP socket's buffers, as far as the kernel lets us: bursts come faster than a thread wakes up.
const BUFFER: usize = 4 << 20;

type Handshakes = BTreeMap<PublicKey, Option<Duration>>;

enum Command {
    Apply(Box<WireGuardDevice>, oneshot::Sender<io::Result<()>>),
    Remove(oneshot::Sender<()>),
    Peers(oneshot::Sender<Handshakes>),
}

/// The device, as seen from the kernel's thread.
pub(crate) struct Userspace {
    key: PrivateKey,
    /// The thread, once there is one.
    commands: Option<mpsc::Sender<Command>>,
    /// What the device was last brought to. Empty where there is none, also after it failed.
    held: watch::Sender<Option<WireGuardDevice>>,
}

impl Userspace {
    /// Nothing is made before it is needed.
    pub(crate) fn new(key: PrivateKey) -> Self {
        Self {
            key,
            commands: None,
            held: watch::Sender::new(None),
        }
    }

    /// The way to the thread, which is started in the calling thread's network namespace where there is none.
    fn thread(&mut self) -> io::Result<&mpsc::Sender<Command>> {
        if let Some(commands) = self.commands.take_if(|c| c.is_closed()) {
            drop(commands);
            tracing::warn!("the thread that encrypts has ended; it is started anew");
        }
        if self.commands.is_none() {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(thread::available_parallelism().map_or(2, usize::from).min(4))
                .thread_name("wireguard")
                .enable_all()
                .build()?;
            let (sender, commands) = mpsc::channel(4);
            let tunnel = Tunnel {
                key: self.key.clone(),
                held: self.held.clone(),
                live: None,
                settling: None,
            };
            thread::Builder::new()
                .name("wireguard".into())
                .spawn(move || runtime.block_on(tunnel.run(commands)))?;
            self.commands = Some(sender);
        }
        self.commands
            .as_ref()
            .ok_or_else(|| io::Error::other("no thread"))
    }

    async fn ask<T>(&mut self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> io::Result<T> {
        let ended = || io::Error::other("the thread that encrypts has ended");
        let (answer, answered) = oneshot::channel();
        let commands = self.thread()?;
        commands.send(command(answer)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())
    }
}

#[async_trait]
impl WireGuard for Userspace {
    fn implementation(&self) -> Implementation {
        Implementation::Userspace
    }

    fn kind(&self) -> InfoKind {
        InfoKind::Tun
    }

    async fn plan(&mut self, wanted: &WireGuardDevice, there: bool) -> Result<Changes> {
        let held = self.held.borrow();
        Ok(changes(held.as_ref().filter(|_| there), Some(wanted)))
    }

    async fn apply(&mut self, wanted: &WireGuardDevice, there: bool) -> Result<()> {
        // Somebody deleted it, and the thread may not have noticed yet.
        if !there && self.held.borrow().is_some() {
            self.remove().await?;
        }
        let wanted = Box::new(wanted.clone());
        let done = self.ask(|answer| Command::Apply(wanted, answer)).await;
        done.flatten().map_err(|source| Error::Open {
            what: "userspace WireGuard device",
            source,
        })
    }

    async fn remove(&mut self) -> Result<()> {
        if self.commands.is_none() {
            return Ok(());
        }
        self.ask(Command::Remove).await.map_err(|source| Error::Open {
            what: "userspace WireGuard device",
            source,
        })
    }

    async fn peers(&mut self) -> Result<Handshakes> {
        if self.commands.is_none() {
            return Ok(Handshakes::new());
        }
        Ok(self.ask(Command::Peers).await.unwrap_or_default())
    }
}

type Transports = (UdpSocketFactory, Tun, Tun);

/// A device at work.
struct Live {
    device: Device<Transports>,
    wanted: WireGuardDevice,
    mtu: watch::Sender<u16>,
}

/// Peers that are to be called through a relay from now on.
///
/// WireGuard answers to wherever it last heard somebody. While a direct way is still open, what is under way on it leads both
/// ends back to it one after the other, and when it closes at last neither looks for another. So each goes on calling by way
/// of the relay for a while; whoever hears that follows.
struct Settling {
    peers: BTreeMap<PublicKey, SocketAddr>,
    wait: Duration,
    next: Instant,
}

/// The thread's inside.
struct Tunnel {
    key: PrivateKey,
    held: watch::Sender<Option<WireGuardDevice>>,
    live: Option<Live>,
    settling: Option<Settling>,
}

impl Tunnel {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut waiting = None;
        loop {
            let command = if let Some(command) = waiting.take() {
                command
            } else {
                tokio::select! {
                    command = commands.recv() => match command {
                        Some(command) => command,
                        None => break,
                    },
                    () = failed(&mut self.live) => {
                        tracing::error!("the userspace WireGuard device has failed; it is made anew");
                        self.stop().await;
                        continue;
                    }
                    () = due(self.settling.as_ref().map(|s| s.next)) => {
                        self.settle().await;
                        continue;
                    }
                }
            };
            match command {
                Command::Apply(wanted, answer) => {
                    let new = self.apply(*wanted).await;
                    let fresh = match new {
                        Ok(fresh) => {
                            let _ = answer.send(Ok(()));
                            fresh
                        }
                        Err(error) => {
                            self.stop().await;
                            let _ = answer.send(Err(error));
                            continue;
                        }
                    };
                    // Peers that still have a session with an earlier process send under it until it is replaced, so
                    // this end begins.
                    let Some(live) = &self.live else { continue };
                    let greetings = fresh
                        .iter()
                        .map(|key| timeout(FIRST_HANDSHAKE, live.device.force_handshake(key)));
                    tokio::select! {
                        command = commands.recv() => match command {
                            Some(command) => waiting = Some(command),
                            None => break,
                        },
                        _ = join_all(greetings) => {}
                    }
                }
                Command::Remove(answer) => {
                    self.stop().await;
                    let _ = answer.send(());
                }
                Command::Peers(answer) => {
                    let _ = answer.send(self.peers().await);
                }
            }
        }
        self.stop().await;
    }

    async fn stop(&mut self) {
        if let Some(live) = self.live.take() {
            live.device.stop().await;
        }
        self.held.send_replace(None);
    }

    /// Has those called through their relay again that went back to a direct way.
    async fn settle(&mut self) {
        let (Some(mut settling), Some(live)) = (self.settling.take(), &self.live) else {
            return;
        };
        if let Err(error) = live.call_through_relays(&settling.peers).await {
            tracing::warn!(%error, "peers can't be called through their relays; trying again");
        }
        settling.wait *= 2;
        if settling.wait <= SETTLING[1] {
            settling.next = Instant::now() + settling.wait;
            self.settling = Some(settling);
        }
    }

    /// What of `wanted` has to settle: peers that weren't called through a relay before, or through another, and those that
    /// still have to and are to be called as before.
    fn settling(&mut self, wanted: &WireGuardDevice) -> Option<Settling> {
        let before = self.live.as_ref().map(|live| &live.wanted.peers);
        let moved = |key: &PublicKey| {
            let before = before.and_then(|peers| peers.get(key));
            before.is_some_and(|b| b.endpoint != wanted.peers[key].endpoint)
        };
        let moved = wanted.relayed().into_iter().filter(moved);
        let moved: BTreeMap<_, _> = moved.map(|key| (key, wanted.peers[&key].endpoint)).collect();
        let mut old = self.settling.take();
        if let Some(old) = &mut old {
            old.peers
                .retain(|key, at| wanted.peers.get(key).is_some_and(|p| p.endpoint == *at));
        }
        if moved.is_empty() {
            return old;
        }
        let mut peers = old.map(|old| old.peers).unwrap_or_default();
        peers.extend(moved);
        Some(Settling {
            peers,
            wait: SETTLING[0],
            next: Instant::now() + SETTLING[0],
        })
    }

    /// Answers which peers are new and can be called.
    async fn apply(&mut self, wanted: WireGuardDevice) -> io::Result<Vec<x25519::PublicKey>> {
        self.settling = self.settling(&wanted);
        if let Some(live) = &self.live
            && (&live.wanted.name, live.wanted.port) != (&wanted.name, wanted.port)
        {
            self.stop().await;
        }
        let fresh = if let Some(live) = &mut self.live {
            live.change(&wanted).await?
        } else {
            free(wanted.port).await;
            self.live = Some(Live::start(&self.key, &wanted).await?);
            callable(&wanted.peers)
        };
        self.held.send_replace(Some(wanted));
        Ok(fresh)
    }

    async fn peers(&self) -> Handshakes {
        let Some(live) = &self.live else {
            return Handshakes::new();
        };
        let peers = live.device.peers().await;
        let entry = |p: gotatun::device::configure::PeerStats| {
            (p.peer.public_key.to_bytes().into(), p.stats.last_handshake)
        };
        peers.into_iter().map(entry).collect()
    }
}

/// Waits until nobody has the UDP port, for a while at most: a device that was stopped closes its sockets a moment later.
async fn free(port: u16) {
    let taken = || std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).is_err();
    for _ in 0..100 {
        if !taken() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends at that moment, if there is one.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Ends when the device does.
async fn failed(live: &mut Option<Live>) {
    match live {
        Some(live) => live.device.wait().await,
        None => std::future::pending().await,
    }
}

fn callable(peers: &BTreeMap<PublicKey, WireGuardPeer>) -> Vec<x25519::PublicKey> {
    let used = peers.iter().filter(|(_, peer)| peer.address.is_some());
    used.map(|(key, _)| x25519(key)).collect()
}

fn x25519(key: &PublicKey) -> x25519::PublicKey {
    (*key.as_bytes()).into()
}

fn peer(key: &PublicKey, wanted: &WireGuardPeer) -> Peer {
    let mut peer = Peer::new(x25519(key)).with_endpoint(wanted.endpoint);
    if let Some(address) = wanted.address {
        peer = peer.with_allowed_ip(address.into());
    }
    peer.keepalive = (wanted.keepalive > 0).then_some(wanted.keepalive);
    peer
}

/// Has a peer called there. Its keepalive is to be set afterwards: one that is turned on is sent at once, and the peer
/// answers to where it comes from.
fn call_at(peer: &mut PeerMut, endpoint: SocketAddr) {
    peer.set_endpoint(Some(endpoint));
    peer.set_keepalive(None);
}

fn bytes(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

impl Live {
    async fn start(key: &PrivateKey, wanted: &WireGuardDevice) -> io::Result<Self> {
        let (mtu, told) = watch::channel(bytes(wanted.mtu));
        let tun = Tun::create(&wanted.name, told)?;
        let device = DeviceBuilder::new()
            .with_default_udp()
            .udp_recv_buffer_size(BUFFER)
            .udp_send_buffer_size(BUFFER)
            .with_ip(tun)
            .with_private_key(key.secret())
            .with_listen_port(wanted.port)
            .with_peers(wanted.peers.iter().map(|(key, wanted)| peer(key, wanted)))
            .build()
            .await
            .map_err(io::Error::other)?;
        Ok(Self {
            device,
            wanted: wanted.clone(),
            mtu,
        })
    }

    /// Calls `peers` at these doors, but for those that were last heard through a relay, whichever.
    async fn call_through_relays(&self, peers: &BTreeMap<PublicKey, SocketAddr>) -> io::Result<()> {
        let relays: BTreeSet<IpAddr> = self.wanted.peers.values().filter_map(|p| p.address).collect();
        let now = self.device.peers().await;
        let strayed: Vec<_> = now
            .iter()
            .filter(|p| !p.peer.endpoint.is_some_and(|at| relays.contains(&at.ip())))
            .filter_map(|p| {
                let key = PublicKey::from(p.peer.public_key.to_bytes());
                Some((
                    p.peer.public_key,
                    *peers.get(&key)?,
                    self.wanted.peers.get(&key)?.keepalive,
                ))
            })
            .collect();
        if strayed.is_empty() {
            return Ok(());
        }
        let called = self.device.write(async |device| {
            for (key, at, keepalive) in strayed {
                device.modify_peer(&key, |peer| call_at(peer, at)).await;
                let keepalive = (keepalive > 0).then_some(keepalive);
                device
                    .modify_peer(&key, |peer| peer.set_keepalive(keepalive))
                    .await;
            }
        });
        called.await.map_err(io::Error::other)
    }

    /// Addresses are taken from peers before others get them.
    async fn change(&mut self, wanted: &WireGuardDevice) -> io::Result<Vec<x25519::PublicKey>> {
        let old = &self.wanted.peers;
        let gone: Vec<_> = old
            .keys()
            .filter(|key| !wanted.peers.contains_key(*key))
            .collect();
        let changed: Vec<_> = wanted
            .peers
            .iter()
            .filter_map(|(key, new)| Some((key, old.get(key)?, new)))
            .filter(|(_, before, new)| before != new)
            .collect();
        let fresh: BTreeMap<_, _> = wanted
            .peers
            .iter()
            .filter(|(key, _)| !old.contains_key(*key))
            .collect();
        self.device
            .write(async |device| {
                for key in gone {
                    device.remove_peer(&x25519(key)).await;
                }
                for (key, before, new) in &changed {
                    device
                        .modify_peer(&x25519(key), |peer| {
                            if before.address != new.address {
                                peer.clear_allowed_ips();
                            }
                            if before.endpoint != new.endpoint {
                                call_at(peer, new.endpoint);
                            }
                        })
                        .await;
                }
                for (key, _, new) in &changed {
                    device
                        .modify_peer(&x25519(key), |peer| {
                            peer.clear_allowed_ips();
                            peer.add_allowed_ips(new.address);
                            peer.set_keepalive((new.keepalive > 0).then_some(new.keepalive));
                        })
                        .await;
                }
                for (key, new) in &fresh {
                    device.add_peer(peer(key, new));
                }
            })
            .await
            .map_err(io::Error::other)?;
        self.mtu.send_if_modified(|mtu| {
            let new = bytes(wanted.mtu);
            std::mem::replace(mtu, new) != new
        });
        let fresh = fresh.into_iter().filter(|(_, peer)| peer.address.is_some());
        let fresh = fresh.map(|(key, _)| x25519(key)).collect();
        self.wanted = wanted.clone();
        Ok(fresh)
    }
}

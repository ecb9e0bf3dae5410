//! A network of hosts with names. Bytes arrive in order and late; where a way is closed they wait, as TCP would send
//! them again. A process that crashes says and hears nothing more, and its peers see its connections end, once
//! that can reach them.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, duplex, split};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::wire::{Dial, Listen, Wire};

/// Bytes that are under way in one direction at most; the sender waits after that.
const WINDOW: usize = 64 << 10;

/// One run of a program on a host.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) host: String,
    /// Cancelled when it crashes.
    pub(super) end: CancellationToken,
}

impl Process {
    pub(super) fn new(host: &str) -> Self {
        Self {
            host: host.into(),
            end: CancellationToken::new(),
        }
    }

    /// Returns never in a process that has crashed: it does nothing more.
    pub(super) async fn alive(&self) {
        if self.end.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

type Pair = (String, String);

pub(super) struct Net {
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    slowest: Duration,
    listeners: BTreeMap<String, (Process, mpsc::UnboundedSender<Wire>)>,
    /// True while bytes pass from the first to the second.
    open: BTreeMap<Pair, watch::Sender<bool>>,
    /// Ends the connections between two hosts, whoever called.
    resets: BTreeMap<Pair, CancellationToken>,
}

impl Net {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                rng: StdRng::seed_from_u64(seed),
                slowest: Duration::from_millis(5),
                listeners: BTreeMap::new(),
                open: BTreeMap::new(),
                resets: BTreeMap::new(),
            }),
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().expect("no test panics with it"))
    }

    /// A number from 0 to 1.
    pub(super) fn chance(&self) -> f64 {
        self.with(|s| s.rng.random())
    }

    /// Everything takes up to so long from now on.
    pub(super) fn delay(&self, slowest: Duration) {
        self.with(|s| s.slowest = slowest);
    }

    fn way(&self, from: &str, to: &str) -> watch::Sender<bool> {
        self.with(|s| {
            let way = s.open.entry((from.into(), to.into()));
            way.or_insert_with(|| watch::channel(true).0).clone()
        })
    }

    /// Nothing passes from one to the other, or everything does again.
    pub(super) fn set_open(&self, from: &str, to: &str, open: bool) {
        self.way(from, to).send_replace(open);
    }

    pub(super) fn open_all(&self) {
        self.with(|s| {
            for way in s.open.values() {
                way.send_replace(true);
            }
        });
    }

    fn pair(a: &str, b: &str) -> Pair {
        (a.min(b).into(), a.max(b).into())
    }

    /// Breaks the connections between the two.
    pub(super) fn reset(&self, a: &str, b: &str) {
        if let Some(token) = self.with(|s| s.resets.remove(&Self::pair(a, b))) {
            token.cancel();
        }
    }

    fn resetting(&self, a: &str, b: &str) -> CancellationToken {
        self.with(|s| s.resets.entry(Self::pair(a, b)).or_default().clone())
    }

    /// Takes as long as bytes do on that way.
    async fn travel(&self, from: &str, to: &str) {
        let time = self.with(|s| s.slowest.mul_f64(s.rng.random::<f64>()));
        tokio::time::sleep(time).await;
        let _ = self.way(from, to).subscribe().wait_for(|open| *open).await;
    }

    /// What calls to the process's host lead to from now on.
    pub(super) fn listen(&self, process: &Process) -> Listener {
        let (calls, accepted) = mpsc::unbounded_channel();
        self.with(|s| s.listeners.insert(process.host.clone(), (process.clone(), calls)));
        Listener(accepted)
    }

    fn listener(&self, host: &str) -> Option<(Process, mpsc::UnboundedSender<Wire>)> {
        let found = self.with(|s| s.listeners.get(host).cloned());
        found.filter(|(process, _)| !process.end.is_cancelled())
    }

    pub(super) fn dialer(self: &Arc<Self>, process: &Process) -> Dialer {
        Dialer {
            net: self.clone(),
            process: process.clone(),
        }
    }
}

/// Calls that come in.
pub(super) struct Listener(mpsc::UnboundedReceiver<Wire>);

#[async_trait]
impl Listen for Listener {
    async fn accept(&mut self) -> io::Result<Wire> {
        match self.0.recv().await {
            Some(wire) => Ok(wire),
            None => std::future::pending().await,
        }
    }
}

/// Calls out of one process.
pub(super) struct Dialer {
    net: Arc<Net>,
    process: Process,
}

#[async_trait]
impl Dial for Dialer {
    async fn dial(&self, address: &str) -> io::Result<Wire> {
        let here = self.process.clone();
        here.alive().await;
        let host = address.split(':').next().unwrap_or_default();
        self.net.travel(&here.host, host).await;
        let answer = self.net.listener(host);
        self.net.travel(host, &here.host).await;
        let Some((there, calls)) = answer else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (near, near_end) = duplex(WINDOW);
        let (far, far_end) = duplex(WINDOW);
        let reset = self.net.resetting(&here.host, host);
        let (near_read, near_write) = split(near_end);
        let (far_read, far_write) = split(far_end);
        let net = &self.net;
        tokio::spawn(carry(
            net.clone(),
            here.clone(),
            there.clone(),
            reset.clone(),
            near_read,
            far_write,
        ));
        tokio::spawn(carry(net.clone(), there, here, reset, far_read, near_write));
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        calls
            .send(Wire::new(far, Some(peer)))
            .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(Wire::new(near, None))
    }

    fn jitter(&self) -> f64 {
        self.net.chance()
    }
}

/// Takes bytes from one process to another until either, or the connection, ends.
async fn carry(
    net: Arc<Net>,
    from: Process,
    to: Process,
    reset: CancellationToken,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) {
    let mut bytes = vec![0; WINDOW / 4];
    let passing = async {
        loop {
            let count = tokio::select! {
                biased;
                () = from.end.cancelled() => 0,
                count = read.read(&mut bytes) => count.unwrap_or(0),
            };
            net.travel(&from.host, &to.host).await;
            if count == 0 {
                let _ = write.shutdown().await;
                return;
            }
            tokio::select! {
                biased;
                () = to.end.cancelled() => return,
                written = write.write_all(&bytes[..count]) => if written.is_err() {
                    return;
                },
            }
        }
    };
    tokio::select! {
        () = passing => {}
        () = reset.cancelled() => {}
    }
}

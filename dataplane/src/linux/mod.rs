//! The real kernel. One thread owns every socket; callers send it commands.

mod announce;
mod conntrack;
mod direct;
mod drift;
pub(crate) mod facts;
#[doc(hidden)]
pub mod fuzz;
pub(crate) mod link;
mod neighbours;
pub(crate) mod netlink;
mod routes;
mod rules;
mod step;
mod sysctls;
mod worker;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use netlink_packet_netfilter::NetfilterMessage;
use netlink_sys::protocols::NETLINK_NETFILTER;
use spillway_core::node::flows::Flows;
use spillway_core::node::state::DesiredState;
use spillway_crds::hub::PortRange;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use self::drift::Hint;
use self::netlink::Requests;
use self::worker::Worker;
use crate::{
    Capabilities, Changes, Choice, Drift, Encryption, Error, Facts, Kernel, PortCount, PrivateKey, Result,
    RuleCount, nft,
};

/// How long after a hint the kernel is compared: others make several changes in a row.
const SETTLE: Duration = Duration::from_millis(20);

/// After a comparison there is none for this many times its duration: somebody who writes without end must not
/// keep the node busy with comparing.
const REST: u32 = 5;

/// How often the kernel is compared without any hint. Proxy neighbours and kernel settings change silently.
const PERIOD: Duration = Duration::from_secs(15);

/// How long a comparison gives way to commands. After that they wait for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// A command for the thread, with the way its answer takes.
enum Command {
    Facts(Vec<IpAddr>, oneshot::Sender<Result<Facts>>),
    Apply(Box<DesiredState>, oneshot::Sender<Result<Changes>>),
    Plan(Box<DesiredState>, oneshot::Sender<Result<Changes>>),
    Cut(Box<Flows>, oneshot::Sender<Result<usize>>),
    Announce(Vec<IpAddr>, oneshot::Sender<Result<()>>),
    Counts(oneshot::Sender<Result<Vec<RuleCount>>>),
    Encryption(oneshot::Sender<Result<Encryption>>),
}

/// How a kernel is opened.
pub struct Options {
    /// Name of our nftables tables.
    pub table: String,
    /// The node's WireGuard key. Without one there are no encrypted paths.
    pub key: Option<PrivateKey>,
    /// Who encrypts.
    pub wireguard: Choice,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            table: crate::nft::TABLE.into(),
            key: None,
            wireguard: Choice::default(),
        }
    }
}

/// The kernel of the network namespace of the thread that opened it.
///
/// Sockets, child processes and /proc/sys all follow the namespace of the thread that opens them, so one thread,
/// started by the opener and so in its namespace, does all of it.
pub struct LinuxKernel {
    commands: mpsc::Sender<Command>,
    drift: watch::Receiver<Drift>,
    /// A socket of its own, for what takes long and must hold up nobody.
    counting: Arc<Mutex<Requests<NetfilterMessage>>>,
}

impl LinuxKernel {
    /// Opens the kernel of the calling thread's network namespace.
    ///
    /// # Errors
    /// Where a socket can't be opened: without `CAP_NET_ADMIN`, or without the subsystem.
    pub fn open() -> Result<Self> {
        Self::open_with(Options::default())
    }

    /// As [`Self::open`], with what isn't as usual.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(options: Options) -> Result<Self> {
        let (commands, inbox) = mpsc::channel(16);
        let (drift_sender, drift) = watch::channel(Drift::default());
        let (opened, was_opened) = std::sync::mpsc::sync_channel(1);
        thread::Builder::new()
            .name("kernel".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(source) => {
                        let _ = opened.send(Err(Error::Open {
                            what: "runtime",
                            source,
                        }));
                        return;
                    }
                };
                runtime.block_on(async move {
                    match Actor::open(drift_sender, options) {
                        Ok((actor, hints, counting)) => {
                            let _ = opened.send(Ok(counting));
                            actor.run(inbox, hints).await;
                        }
                        Err(error) => {
                            let _ = opened.send(Err(error));
                        }
                    }
                });
            })
            .map_err(|source| Error::Open {
                what: "thread",
                source,
            })?;
        let counting = was_opened.recv().map_err(|_| Error::Ended)??;
        Ok(Self {
            commands,
            drift,
            counting: Arc::new(Mutex::new(counting)),
        })
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command + Send) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.commands
            .send(command(answer))
            .await
            .map_err(|_| Error::Ended)?;
        answered.await.map_err(|_| Error::Ended)?
    }
}

/// What was last applied.
struct Applied {
    desired: DesiredState,
    /// What was still different right afterwards: that isn't drift.
    left: Changes,
    /// All of it was taken, and no comparison since has found anything else.
    sound: bool,
}

/// The thread's loop: commands first, comparisons when there is nothing else to do.
struct Actor {
    worker: Worker,
    /// Name of our tables.
    table: String,
    drift: watch::Sender<Drift>,
    applied: Option<Applied>,
    /// The facts last answered, and for which underlay addresses.
    told: Option<(Vec<IpAddr>, (spillway_core::node::state::Facts, Capabilities))>,
}

/// The loop, what it listens to, and a socket of the thread's namespace.
type Opened = (Actor, mpsc::Receiver<Hint>, Requests<NetfilterMessage>);

impl Actor {
    fn open(drift: watch::Sender<Drift>, options: Options) -> Result<Opened> {
        let (sender, hints) = mpsc::channel(64);
        let table = options.table.clone();
        let worker = Worker::open(options)?;
        drift::listen(&sender, &table, worker.watched())?;
        Ok((
            Self {
                worker,
                table,
                drift,
                applied: None,
                told: None,
            },
            hints,
            Requests::open("netfilter netlink socket for counting", NETLINK_NETFILTER)?,
        ))
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Command>, mut hints: mpsc::Receiver<Hint>) {
        let mut pending = Hint::default();
        let mut due = Instant::now() + PERIOD;
        let mut rested = Instant::now();
        let mut overdue = None;
        loop {
            tokio::select! {
                biased;
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                Some(hint) = hints.recv() => {
                    if pending == Hint::default() {
                        due = (Instant::now() + SETTLE).max(rested);
                    }
                    pending = pending.and(hint);
                }
                () = sleep_until(due) => {
                    let started = Instant::now();
                    let give_way_until = *overdue.get_or_insert(started + PATIENCE);
                    // Whatever is compared here was written already; who waits to write comes first.
                    let interrupted = tokio::select! {
                        biased;
                        Some(command) = inbox.recv(), if started < give_way_until => Some(command),
                        () = self.look(pending) => None,
                    };
                    if let Some(command) = interrupted {
                        self.obey(command).await;
                        due = Instant::now() + SETTLE;
                        continue;
                    }
                    overdue = None;
                    pending = Hint::default();
                    due = Instant::now() + PERIOD;
                    rested = Instant::now() + started.elapsed() * REST;
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        // Whoever asked may have gone; the work is done all the same.
        match command {
            Command::Facts(underlay, answer) => {
                let facts = self.worker.facts(&underlay).await;
                if let Ok(facts) = &facts {
                    self.told = Some((underlay, facts::relevant(facts)));
                }
                let _ = answer.send(facts);
            }
            Command::Apply(desired, answer) => {
                let result = self.apply(*desired).await;
                let _ = answer.send(result);
            }
            Command::Plan(desired, answer) => {
                let _ = answer.send(self.worker.plan(&desired).await);
            }
            Command::Cut(flows, answer) => {
                let _ = answer.send(self.worker.cut(&flows));
            }
            Command::Announce(addresses, answer) => {
                let _ = answer.send(self.worker.announce(&addresses));
            }
            Command::Counts(answer) => {
                // On this thread, for its namespace; beside the loop, for nobody to wait.
                let table = self.table.clone();
                tokio::spawn(async move { answer.send(nft::counts(&table).await) });
            }
            Command::Encryption(answer) => {
                let _ = answer.send(self.worker.encryption().await);
            }
        }
    }

    async fn apply(&mut self, desired: DesiredState) -> Result<Changes> {
        // What wasn't as it should be, and is now, is a repair whatever else changes with it.
        let mut repairs = self.applied.as_ref().is_some_and(|held| !held.sound);
        // Not kept while something is written: whoever gives up in between leaves nothing that can be relied on.
        if let Some(held) = self.applied.take()
            && held.sound
            && held.desired != desired
        {
            match self.worker.update(&held.desired, &desired).await {
                Ok(changes) => {
                    self.applied = Some(Applied {
                        desired,
                        left: Changes::default(),
                        sound: true,
                    });
                    return Ok(changes);
                }
                Err(error) => {
                    tracing::debug!(%error, "the difference alone can't be written; comparing everything");
                    repairs = true;
                }
            }
        }
        let mut result = self.worker.apply(&desired).await;
        if repairs {
            result = result.map(Changes::into_repair);
        }
        let left = match &result {
            Ok(_) => Changes::default(),
            Err(_) => self.worker.plan(&desired).await.unwrap_or_default(),
        };
        self.applied = Some(Applied {
            desired,
            left,
            sound: result.is_ok(),
        });
        result
    }

    /// Compares what the hint is about; without a hint, everything.
    async fn look(&mut self, hint: Hint) {
        let periodic = hint == Hint::default();
        if hint.ours || periodic {
            self.compare().await;
        }
        if hint.facts || periodic {
            self.compare_facts().await;
        }
    }

    async fn compare(&mut self) {
        let Some(Applied { desired, left, sound }) = &mut self.applied else {
            return;
        };
        match self.worker.verify(desired).await {
            Ok(found) if found.is_empty() => {}
            Ok(found) if found == *left => *sound = false,
            Ok(found) => {
                tracing::warn!(%found, "somebody changed what is ours in the kernel");
                *sound = false;
                // Told once: whoever listens applies again, and that sets what is left.
                left.clone_from(&found);
                self.drift.send_modify(|drift| {
                    drift.repairs += 1;
                    drift.found = found;
                });
            }
            Err(error) => tracing::warn!(%error, "couldn't compare the kernel with what was applied"),
        }
    }

    async fn compare_facts(&mut self) {
        let Some((underlay, told)) = &mut self.told else {
            return;
        };
        match self.worker.facts(underlay).await {
            Ok(facts) => {
                let facts = facts::relevant(&facts);
                if facts != *told {
                    *told = facts;
                    self.drift.send_modify(|drift| drift.facts += 1);
                }
            }
            Err(error) => tracing::warn!(%error, "couldn't read the node's network"),
        }
    }
}

#[async_trait]
impl Kernel for LinuxKernel {
    async fn facts(&self, underlay: &[IpAddr]) -> Result<Facts> {
        self.ask(|answer| Command::Facts(underlay.to_vec(), answer)).await
    }

    async fn apply(&self, desired: &DesiredState) -> Result<Changes> {
        self.ask(|answer| Command::Apply(Box::new(desired.clone()), answer))
            .await
    }

    async fn plan(&self, desired: &DesiredState) -> Result<Changes> {
        self.ask(|answer| Command::Plan(Box::new(desired.clone()), answer))
            .await
    }

    async fn cut(&self, flows: &Flows) -> Result<usize> {
        self.ask(|answer| Command::Cut(Box::new(flows.clone()), answer))
            .await
    }

    async fn announce(&self, addresses: &[IpAddr]) -> Result<()> {
        self.ask(|answer| Command::Announce(addresses.to_vec(), answer))
            .await
    }

    async fn encryption(&self) -> Result<Encryption> {
        self.ask(Command::Encryption).await
    }

    async fn port_use(&self, of: &[(IpAddr, Vec<PortRange>)]) -> Result<Vec<PortCount>> {
        let (counting, of) = (self.counting.clone(), of.to_vec());
        let counted = tokio::task::spawn_blocking(move || {
            let mut requests = counting.lock().unwrap_or_else(PoisonError::into_inner);
            conntrack::port_use(&mut requests, &of)
        });
        counted.await.map_err(|_| Error::Ended)?
    }

    async fn counts(&self) -> Result<Vec<RuleCount>> {
        self.ask(Command::Counts).await
    }

    fn drift(&self) -> watch::Receiver<Drift> {
        self.drift.clone()
    }
}

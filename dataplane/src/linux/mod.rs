//! The real kernel. One thread owns every socket; callers send it commands.

mod netlink;

use std::net::IpAddr;
use std::thread;

use async_trait::async_trait;
use spillway_core::node::flows::Flows;
use spillway_core::node::state::DesiredState;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{Changes, Drift, Error, Facts, Kernel, Result};

/// A command for the thread, with the way its answer takes.
enum Command {
    Facts(Vec<IpAddr>, oneshot::Sender<Result<Facts>>),
    Apply(Box<DesiredState>, oneshot::Sender<Result<Changes>>),
    Plan(Box<DesiredState>, oneshot::Sender<Result<Changes>>),
    Cut(Box<Flows>, oneshot::Sender<Result<usize>>),
    Announce(Vec<IpAddr>, oneshot::Sender<Result<()>>),
}

/// The kernel of the network namespace of the thread that opened it.
///
/// Sockets, child processes and /proc/sys all follow the namespace of the thread that opens them, so one thread,
/// started by the opener and so in its namespace, does all of it.
pub struct LinuxKernel {
    commands: mpsc::Sender<Command>,
    drift: watch::Receiver<Drift>,
}

impl LinuxKernel {
    /// Opens the kernel of the calling thread's network namespace.
    ///
    /// # Errors
    /// Where a socket can't be opened: without `CAP_NET_ADMIN`, or without the subsystem.
    pub fn open() -> Result<Self> {
        let (commands, _inbox) = mpsc::channel(16);
        let (_drift_sender, drift) = watch::channel(Drift::default());
        let _ = thread::current();
        Ok(Self { commands, drift })
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

    fn drift(&self) -> watch::Receiver<Drift> {
        self.drift.clone()
    }
}

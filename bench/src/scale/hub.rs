//! The hub's process, and what it takes of the machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use spillway_e2e::eventually;
use spillway_link::pki::Pin;
use tokio::process::{Child, Command};

/// Ticks of a second in /proc, on every Linux that Rust knows.
const TICKS: u64 = 100;

/// A hub in a process of its own.
pub(crate) struct Hub {
    kubeconfig: PathBuf,
    port: u16,
    pin: Pin,
    process: Child,
}

impl Hub {
    /// Starts one and waits until it serves.
    pub(crate) async fn start(client: &Client, kubeconfig: &Path) -> Result<Self> {
        let port = free_port()?;
        let process = spawn(kubeconfig, port)?;
        let pin = published(client).await?;
        let mut hub = Self {
            kubeconfig: kubeconfig.into(),
            port,
            pin,
            process,
        };
        hub.listens().await?;
        Ok(hub)
    }

    /// Starts the next process, at the same address.
    pub(crate) async fn again(&mut self) -> Result<()> {
        self.process = spawn(&self.kubeconfig, self.port)?;
        self.listens().await
    }

    async fn listens(&mut self) -> Result<()> {
        let (port, process) = (self.port, std::cell::RefCell::new(&mut self.process));
        eventually(Duration::from_secs(60), "the hub listens", || async {
            ensure!(process.borrow_mut().try_wait()?.is_none(), "the hub ended");
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            Ok(())
        })
        .await
    }

    /// Ends it without a word.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn pin(&self) -> Pin {
        self.pin
    }

    fn proc(&self, file: &str) -> Result<String> {
        let id = self.process.id().context("the hub has ended")?;
        Ok(std::fs::read_to_string(format!("/proc/{id}/{file}"))?)
    }

    /// Processor time so far, of user and kernel.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let stat = self.proc("stat")?;
        // Behind the name, which may hold anything: fields 3 on (proc(5)).
        let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        Ok(Duration::from_millis((ticks(11) + ticks(12)) * 1000 / TICKS))
    }

    /// Most memory so far, MiB.
    pub(crate) fn most_memory(&self) -> Result<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok());
        Ok(kib.context("no VmHWM")? / 1024.0)
    }
}

fn spawn(kubeconfig: &Path, port: u16) -> Result<Child> {
    let program = std::env::current_exe()?.with_file_name("spillway-hub");
    let listen = format!("127.0.0.1:{port}");
    Command::new(&program)
        .args([
            "--replica-name",
            "scale",
            "--listen",
            &listen,
            "--http-listen",
            "127.0.0.1:0",
            "--log",
            "warn",
        ])
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The pin as the command line reads it.
async fn published(client: &Client) -> Result<Pin> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), spillway_crds::NAMESPACE);
    let pin = std::cell::Cell::new(None);
    eventually(Duration::from_secs(60), "the hub's pin is published", || async {
        let info = api.get("spillway-hub-info").await?;
        let data = info.data.unwrap_or_default();
        let text = data.get("ca_pin").context("no pin")?;
        pin.set(Some(text.parse().map_err(|e| anyhow::anyhow!("the pin: {e}"))?));
        Ok(())
    })
    .await?;
    pin.get().context("no pin")
}

//! What an operator may set.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use kube::Client;
use spillway_cni::config::{Entry, PLUGIN};

use super::Cni;
use super::cache::CacheFile;
use super::install::{Installer, Places};
use super::server::{Server, serve};
use crate::cluster::Cluster;
use crate::observed::Observed;

/// How a pod's first packets are kept from leaving otherwise than its policies say.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Mode {
    /// As `Chain` where that is possible, as `Guard` where it isn't.
    Auto,
    /// A plugin in the CNI's chain makes it wait for this agent. Where that is impossible, nothing holds it.
    Chain,
    /// What it sends to destinations of policies is dropped until this agent knows it. The CNI's files are left alone; a
    /// plugin that was installed before goes.
    Guard,
    /// Not at all; a plugin that was installed before goes.
    #[default]
    Off,
}

/// Flags about the CNI plugin. Paths are those of this container; socket and state must be the node's too.
#[derive(Args, Clone, Debug)]
pub(crate) struct Flags {
    /// How a pod's first packets are kept from leaving otherwise than its policies say.
    #[arg(long = "cni-mode", env = "SPILLWAY_CNI_MODE", value_enum, default_value_t)]
    mode: Mode,
    /// Where the container runtime looks for CNI plugins.
    #[arg(
        long = "cni-bin-dir",
        env = "SPILLWAY_CNI_BIN_DIR",
        default_value = "/opt/cni/bin"
    )]
    bin_dir: PathBuf,
    /// Where the container runtime looks for networks.
    #[arg(
        long = "cni-conf-dir",
        env = "SPILLWAY_CNI_CONF_DIR",
        default_value = "/etc/cni/net.d"
    )]
    conf_dir: PathBuf,
    /// Where the plugin finds this agent.
    #[arg(long = "cni-socket", env = "SPILLWAY_CNI_SOCKET", default_value = spillway_cni::protocol::SOCKET)]
    socket: PathBuf,
    /// Seconds for which a pod is held before it is refused and kubelet tries again.
    #[arg(long = "cni-wait", env = "SPILLWAY_CNI_WAIT", default_value_t = 15,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    wait: u32,
}

/// All of it, begun as the flags say.
pub(crate) struct Plugin {
    /// The loop's part.
    pub(crate) cni: Cni,
    /// What runs beside it; none where no pod is held.
    running: Option<(Arc<Installer>, PathBuf)>,
}

impl Flags {
    /// Begins. `state` is the agent's directory on the node, `namespace` that of Spillway's own pods.
    pub(crate) fn begin(&self, state: &Path, namespace: &str) -> Plugin {
        let cache = state.join("cni.json");
        let here = std::env::current_exe().unwrap_or_default();
        let places = Places {
            plugin: here.with_file_name(PLUGIN),
            programs: self.bin_dir.clone(),
            networks: self.conf_dir.clone(),
        };
        let entry = Entry {
            socket: self.socket.clone(),
            cache: cache.clone(),
            wait: self.wait,
            namespace: namespace.to_owned(),
            ..Entry::default()
        };
        let installer = Installer::new(places, entry);
        match self.mode {
            Mode::Auto | Mode::Chain => Plugin {
                cni: Cni::chained(cache, installer.clone(), self.mode == Mode::Auto),
                running: Some((installer, self.socket.clone())),
            },
            Mode::Guard | Mode::Off => {
                // An earlier agent may have been told otherwise.
                let gone = installer.remove().and_then(|()| CacheFile::new(cache).clear());
                if let Err(error) = gone {
                    tracing::warn!(error, "what an earlier agent left can't be removed");
                }
                let cni = if self.mode == Mode::Guard {
                    Cni::guarded()
                } else {
                    Cni::off()
                };
                Plugin { cni, running: None }
            }
        }
    }
}

impl Plugin {
    /// Answers the plugin and keeps it in place for ever; ends with what makes that impossible.
    pub(crate) async fn run(
        self,
        cluster: Cluster,
        client: Client,
        node: String,
        observed: Observed,
    ) -> anyhow::Error {
        let Some((installer, socket)) = self.running else {
            return std::future::pending().await;
        };
        let server = Server::new(self.cni, cluster, client, node, observed);
        tokio::select! {
            error = serve(server, &socket) => {
                anyhow::Error::new(error).context(format!("serve the CNI plugin at {}", socket.display()))
            }
            () = installer.watch() => anyhow::anyhow!("the watch of the CNI's directories has ended"),
        }
    }
}

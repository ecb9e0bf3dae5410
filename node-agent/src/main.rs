//! The node agent: brings this node's kernel into the state that the plan and the node's pods ask for, and
//! keeps it there. The kernel's state outlives the agent.
#![forbid(unsafe_code)]

mod agent;
mod backoff;
mod cluster;
mod cni;
mod disk;
mod failover;
mod gate;
mod health;
mod kernel;
mod keys;
mod mirror;
mod observed;
mod paths;
mod pods;
mod ports;
mod show;
mod status;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use kube::{Client, Config};
use spillway_core::node::inputs::Settings;
use spillway_core::wireguard::PublicKey;
use spillway_dataplane::{LinuxKernel, Options};
use spillway_telemetry::{Book, Metrics};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Programs this node's egress data path.
#[derive(Debug, Parser)]
#[command(name = "spillway-node-agent", version)]
struct Arguments {
    /// Kubernetes name of this node.
    #[arg(long, env = "NODE_NAME", global = true, default_value = "")]
    node: String,
    /// Namespace of this pod. No policy selects pods of it: the member agent must reach the hub whatever
    /// policies say.
    #[arg(long, env = "POD_NAMESPACE", global = true, default_value = spillway_crds::NAMESPACE)]
    namespace: String,
    /// Directory in which the last inputs are kept.
    #[arg(
        long,
        env = "SPILLWAY_STATE_DIR",
        global = true,
        default_value = "/var/lib/spillway"
    )]
    state_dir: PathBuf,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(
        long,
        env = "SPILLWAY_HEALTH_LISTEN",
        global = true,
        default_value = "127.0.0.1:8082"
    )]
    health_listen: SocketAddr,
    /// Port at which /metrics is answered to other machines; 0 for none.
    #[arg(long, env = "SPILLWAY_METRICS_PORT", default_value = "0")]
    metrics_port: u16,
    /// Address of this node that has the port.
    #[arg(long, env = "SPILLWAY_METRICS_ADDRESS", default_value = "127.0.0.1")]
    metrics_address: IpAddr,
    /// Bits of the packet mark that choose a gateway: 2 to 8 contiguous ones above the low 16 that neither
    /// the CNI nor kube-proxy uses.
    #[arg(long, env = "SPILLWAY_MARK_MASK", global = true, default_value = "0xff000000", value_parser = mask)]
    mark_mask: u32,
    /// Who encrypts where a path must be encrypted.
    #[arg(
        long,
        env = "SPILLWAY_WIREGUARD",
        global = true,
        value_enum,
        ignore_case = true,
        default_value_t
    )]
    wireguard: kernel::WireGuard,
    /// Whether this node may be one of a stateless gateway, which needs the kernel's netdev egress hook.
    #[arg(
        long,
        env = "SPILLWAY_EGRESS_HOOK",
        value_enum,
        ignore_case = true,
        default_value_t
    )]
    egress_hook: kernel::Use,
    #[command(flatten)]
    cni: cni::Flags,
    #[command(flatten)]
    probing: failover::Probing,
    /// Log filter, such as `info` or `info,spillway_dataplane=debug`.
    #[arg(long, env = "SPILLWAY_LOG", global = true, default_value = "info")]
    log: String,
    /// Format of the log.
    #[arg(long, env = "SPILLWAY_LOG_FORMAT", global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what the kernel should hold and how what it holds differs; change nothing.
    Show {
        /// Print the differences only.
        #[arg(long)]
        diff: bool,
    },
    /// Print what the agent on this node measures.
    Metrics,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn mask(text: &str) -> Result<u32, String> {
    let digits = text
        .strip_prefix("0x")
        .ok_or("write it in hexadecimal, such as 0xff000000")?;
    u32::from_str_radix(digits, 16).map_err(|e| e.to_string())
}

/// A client whose connections to a vanished API server are noticed within a minute.
async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer()
        .await
        .context("no way to the API server: neither a kubeconfig nor a service account is there")?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(45));
    config.write_timeout = Some(Duration::from_secs(30));
    Client::try_from(config).context("the API server's client can't be built")
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_new(&arguments.log)
        .with_context(|| format!("{:?} is no log filter", arguments.log))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    anyhow::ensure!(
        !arguments.node.is_empty(),
        "NODE_NAME (or --node) must name this node"
    );
    let settings = Settings {
        mark_mask: arguments.mark_mask,
        namespace: arguments.namespace.clone(),
        ..Settings::default()
    };
    if let Some(problem) = settings.problem() {
        anyhow::bail!(problem);
    }
    if let Some(Command::Metrics) = arguments.command {
        let text = spillway_telemetry::get(arguments.health_listen, "/metrics").await?;
        std::io::stdout().write_all(text.as_bytes())?;
        return Ok(());
    }
    let disk = disk::Disk::new(&arguments.state_dir);
    let wireguard = arguments.wireguard.into();
    let open = |key| {
        let options = Options {
            key,
            wireguard,
            ..Options::default()
        };
        LinuxKernel::open_with(options).context("open the kernel; NET_ADMIN is needed")
    };
    match arguments.command {
        Some(Command::Show { diff }) => {
            // The key is the agent's alone.
            let kernel = open(None)?;
            show::show(std::io::stdout(), &kernel, &disk, &arguments.node, settings, diff).await
        }
        None | Some(Command::Metrics) => {
            let key = keys::load_or_make(&arguments.state_dir);
            let public = key.public();
            Box::pin(run(arguments, settings, disk, open(Some(key))?, public)).await
        }
    }
}

/// The port is the whole node's: if somebody else has it, the agent works on without.
async fn answer(listen: SocketAddr, routes: spillway_telemetry::Routes) {
    match spillway_telemetry::bind(listen).await {
        Ok(listener) => spillway_telemetry::serve(listener, routes).await,
        Err(error) => tracing::error!(%error, "health and metrics can't be served"),
    }
}

async fn run(
    arguments: Arguments,
    settings: Settings,
    disk: disk::Disk,
    kernel: LinuxKernel,
    public: PublicKey,
) -> anyhow::Result<()> {
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("another TLS provider was installed first");
    }
    // As PID 1 of its container a process gets no default action for SIGTERM.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let plugin = arguments.cni.begin(&arguments.state_dir, &arguments.namespace);
    let node = arguments.node;
    tracing::info!(node, version = env!("CARGO_PKG_VERSION"), "starting");
    let client = client().await?;
    let standing = health::Standing::new();
    let mut book = Book::default();
    let observed = observed::Observed::new(&mut book);
    let (reports, reported) = watch::channel(None);
    let cluster = cluster::Cluster::watch(&client, &node);
    let cni = plugin.cni.clone();
    let (failover, prober_ended) = failover::Failover::start(arguments.probing, observed.clone())?;
    let farewell = failover.farewell();
    let kernel = Arc::new(kernel);
    let agent = agent::Agent::new(
        kernel.clone(),
        disk,
        standing.clone(),
        observed.clone(),
        reports,
        cni,
        failover,
        &node,
        settings,
        arguments.egress_hook,
    );
    let (port_use, used) = watch::channel(None);
    let counting = ports::count(
        kernel.clone(),
        ports::PERIOD,
        agent.shares(),
        port_use,
        observed.clone(),
    );
    let (encryption, encrypted) = watch::channel(None);
    let watching = paths::watch(kernel.clone(), public, agent.paths(), encryption);
    let shown = observed.clone();
    let metrics = Metrics::new(book, move || {
        let (observed, kernel) = (shown.clone(), kernel.clone());
        async move { observed.refresh(&kernel).await }
    });
    let routes = spillway_telemetry::routes(standing.health(), metrics);
    tokio::spawn(answer(arguments.health_listen, routes.clone()));
    if arguments.metrics_port != 0 {
        let listen = SocketAddr::new(arguments.metrics_address, arguments.metrics_port);
        tokio::spawn(answer(listen, routes));
    }
    tokio::select! {
        error = plugin.run(cluster.clone(), client.clone(), node.clone(), observed) => return Err(error),
        () = agent.run(cluster) => anyhow::bail!("the apply loop has ended"),
        () = counting => anyhow::bail!("the counting of ports has ended"),
        () = watching => anyhow::bail!("the watch over encrypted paths has ended"),
        () = status::keep(client, node, reported, used, encrypted) => anyhow::bail!("the status writer has ended"),
        _ = prober_ended => anyhow::bail!("the prober has ended"),
        () = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            farewell.say().await;
        } => {}
    }
    tracing::info!("ending; the kernel keeps its state");
    Ok(())
}

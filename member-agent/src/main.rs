//! The member agent: brings the hub's plan into this cluster as objects, gives its nodes their overlay
//! addresses, and reports back.
#![forbid(unsafe_code)]

mod agent;
mod api;
mod backoff;
mod connection;
mod control;
mod enrol;
mod health;
mod identity;
mod leave;
mod mirror;
mod network;
mod observed;
mod overlay;
mod plan;
mod progress;
mod published;
mod report;
mod status;
mod taint;
mod tasks;
mod uplink;

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Brings the hub's plan into this cluster and reports back.
#[derive(Debug, Parser)]
#[command(name = "spillway-member-agent", version)]
struct Arguments {
    /// Namespace in which the join token and the identity are kept.
    #[arg(long, env = "POD_NAMESPACE", default_value = spillway_crds::NAMESPACE)]
    namespace: String,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "SPILLWAY_HEALTH_LISTEN", default_value = "[::]:8081")]
    health_listen: SocketAddr,
    /// Ranges of this cluster that can't be found out, such as a CNI's own pod range, separated by commas.
    #[arg(long, env = "SPILLWAY_EXTRA_CIDRS", default_value = "")]
    extra_cidrs: String,
    /// Log filter, such as `info` or `info,spillway_link=debug`.
    #[arg(long, env = "SPILLWAY_LOG", default_value = "info")]
    log: String,
    /// Format of the log.
    #[arg(long, env = "SPILLWAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_new(&arguments.log)
        .with_context(|| format!("{:?} is no log filter", arguments.log))?
        // Our own watches say once when one fails, and once when it works again.
        .add_directive("kube_runtime::watcher=error".parse()?);
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    match arguments.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("another TLS provider was installed first");
    }
    let settings = agent::Settings {
        namespace: arguments.namespace,
        health: arguments.health_listen,
        extra: network::parse_ranges(&arguments.extra_cidrs)?,
    };
    // As PID 1 of its container a process gets no default action for SIGTERM.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespace = settings.namespace,
        "starting"
    );
    let client = api::client().await?;
    tokio::select! {
        broken = agent::run(client, settings) => Err(broken),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

//! Puts the parts together.

use std::future::Future;
use std::io::IsTerminal as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use kube::{Client, Config};
use spillway_link::hub::{HubConfig, serve};
use spillway_telemetry::hub::HubMetrics;
use spillway_telemetry::{Book, Metrics, bind, routes, serve as serve_http};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, LogFormat};
use crate::authority;
use crate::backend::Backend;
use crate::health::Standing;
use crate::lease::{Elector, Leadership};
use crate::observed::Observed;
use crate::plans::Plans;
use crate::presence::Presence;
use crate::reconcile::Reconciler;
use crate::rotation::Rotation;
use crate::snapshot::Mirrors;
use crate::status::StatusWriter;
use crate::tokens::Tokens;

/// A connection to the API server that is silent for this long is given up: longer than a watch lasts.
const SILENCE: Duration = Duration::from_secs(40);
/// Longest time for the streams to end at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// The program: logging, runtime, signals.
pub fn start(args: &Args) -> anyhow::Result<()> {
    // A filter that can't be read must not keep the reason from being logged.
    let filter = EnvFilter::try_new(&args.log);
    let log = tracing_subscriber::fmt()
        .with_env_filter(
            filter
                .as_ref()
                .map_or_else(|_| EnvFilter::new("info"), EnvFilter::clone),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    filter.with_context(|| format!("--log {:?}", args.log))?;
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        bail!("another TLS provider is installed already");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut config = Config::infer().await.context("no way to the API server")?;
        config.read_timeout = Some(SILENCE);
        let client = Client::try_from(config).context("no way to the API server")?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Box::pin(run(args.clone(), client, shutdown)).await
    })
}

/// Runs a replica until `shutdown` completes. An error means that the process must end.
pub async fn run(args: Args, client: Client, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let overlay = args.overlay()?;
    let stop = CancellationToken::new();
    let standing = Standing::new();
    let mut book = Book::default();
    let observed = Observed(HubMetrics::new(&mut book));
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);

    let http = bind(args.http_listen).await?;
    let mirrors = Mirrors::follow(&client, &mut tasks);
    // What isn't there before everything is in sync.
    let later: Arc<OnceLock<(Leadership, Arc<Backend>)>> = Arc::default();
    let copies = mirrors.clone();
    let health = standing.health(move || copies.unsynced());
    let metrics = Metrics::new(book, {
        let (mirrors, observed, later) = (mirrors.clone(), observed.clone(), later.clone());
        move || {
            let streams = later.get().map_or(0, |(_, backend)| backend.streams());
            observed.refresh(&mirrors.snapshot(), streams, later.get().map(|(l, _)| l));
            std::future::ready(())
        }
    });
    tasks.spawn(async move {
        serve_http(http, routes(health, metrics)).await;
        "health endpoint"
    });
    let start = async {
        let identity = authority::identity(&client, &args.namespace).await?;
        while let Err(error) = authority::publish(&client, &args.namespace, &identity, &args.endpoints).await
        {
            tracing::warn!(%error, "the hub's address and pin can't be published; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        mirrors.synced().await;
        anyhow::Ok(identity)
    };
    let identity = tokio::select! {
        identity = start => identity?,
        ended = tasks.join_next() => return Err(broken(ended)),
        () = &mut shutdown => return Ok(()),
    };

    let (elector, leadership) = Elector::new(client.clone(), &args.namespace, &args.replica_name);
    let elector_stop = CancellationToken::new();
    let mut election = tokio::spawn(elector.run(elector_stop.clone()));
    let plans = Arc::new(Plans::default());
    let (outcomes, follow) = watch::channel(None);
    let reconciler = Reconciler {
        client: client.clone(),
        mirrors: mirrors.clone(),
        overlay,
        tunnel: args.tunnel(),
        encryption: args.encryption.into(),
        plans: plans.clone(),
        leadership: leadership.clone(),
        outcomes,
        observed: observed.clone(),
        watchdog: standing.watchdog.clone(),
    };
    tasks.spawn(async move {
        reconciler.run().await;
        "reconcile loop"
    });
    let statuses = StatusWriter::new(
        client.clone(),
        mirrors.clone(),
        leadership.clone(),
        &args.replica_name,
    );
    tasks.spawn(async move {
        statuses.run(follow).await;
        "status writer"
    });
    let presence = Presence {
        client: client.clone(),
        namespace: args.namespace.clone(),
        members: mirrors.members.clone(),
        leadership: leadership.clone(),
    };
    tasks.spawn(async move {
        presence.run().await;
        "presence of replicas"
    });
    let tokens = Tokens::new(&client, &args.namespace, leadership.clone());
    tasks.spawn(async move {
        tokens.run().await;
        "removal of old tokens"
    });

    let (authorities, trusted) = watch::channel(Arc::new(identity.authorities));
    let rotation = Rotation {
        client: client.clone(),
        namespace: args.namespace.clone(),
        endpoints: args.endpoints.clone(),
        members: mirrors.members.clone(),
        leadership: leadership.clone(),
        authorities,
    };
    tasks.spawn(async move {
        rotation.run().await;
        "rotation of the CA"
    });

    let backend = Arc::new(Backend::new(
        &client,
        &args.namespace,
        &args.replica_name,
        mirrors.members.clone(),
        plans,
        identity.restored_to,
        observed,
    ));
    _ = later.set((leadership, backend.clone()));
    backend.adopt();
    let listener = bind(args.listen).await?;
    let config = HubConfig::new(&identity.hub_id, identity.epoch);
    let serving = serve(
        listener,
        trusted,
        config,
        backend.clone(),
        mirrors.synced(),
        stop.clone().cancelled_owned(),
    );
    let mut serving = std::pin::pin!(serving);
    standing.serves(true);
    tracing::info!(
        replica = args.replica_name,
        hub = identity.hub_id,
        listen = %args.listen,
        "the hub serves members"
    );

    let outcome = tokio::select! {
        ended = &mut serving => Err(match ended {
            Ok(()) => anyhow!("the link's endpoint ended"),
            Err(error) => anyhow::Error::new(error).context("the link's endpoint broke"),
        }),
        ended = tasks.join_next() => Err(broken(ended)),
        ended = &mut election => Err(match ended {
            Ok(()) => anyhow!("the election ended"),
            Err(panic) => anyhow!("the election broke: {panic}"),
        }),
        () = &mut shutdown => Ok(()),
    };
    standing.serves(false);
    outcome?;
    tracing::info!("shutting down");
    stop.cancel();
    if tokio::time::timeout(DRAIN, &mut serving).await.is_err() {
        tracing::warn!("some streams didn't end in time");
    }
    backend.flush(DRAIN).await;
    elector_stop.cancel();
    // The lease given back lets the next leader begin at once; without that it only takes longer.
    let _ = tokio::time::timeout(DRAIN, election).await;
    Ok(())
}

fn broken(ended: Option<Result<&'static str, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok(name)) => anyhow!("the {name} ended"),
        Some(Err(panic)) => anyhow!("a task broke: {panic}"),
        None => anyhow!("no task is running"),
    }
}

//! Puts the parts together.
//!
//! ```text
//!  hub ◄─ report ── Nodes, EgressNodes          HubConnection, token ──► connection ──► progress
//!   │                                                                        │              ▼
//!   └─ plan ──► plan::Store ──► Planned*, EgressPlan    overlay ──► EgressNode    status ──► conditions
//!                                                       network ──► ClusterNetwork
//! ```

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use spillway_telemetry::{Book, Metrics, bind, routes};
use tokio::sync::watch;

use crate::connection::Connection;
use crate::health;
use crate::identity::{IdentityStore, TOKEN_SECRET};
use crate::mirror::{Mirror, mirror};
use crate::observed::Observed;
use crate::plan::{PlanMirrors, Store, repair};
use crate::progress::Progress;
use crate::published::Published;
use crate::tasks::Tasks;
use crate::uplink::MemberReport;
use crate::{network, overlay, report, status, taint};

/// Settings of the process.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Namespace of the Secrets.
    pub(crate) namespace: String,
    /// Address of the health port.
    pub(crate) health: SocketAddr,
    /// Ranges of this cluster that can't be found out.
    pub(crate) extra: BTreeSet<IpNet>,
}

/// Whether a copy was read.
fn synced<K>(mirror: &Mirror<K>) -> health::Synced
where
    Mirror<K>: Clone + Send + Sync + 'static,
{
    let mirror = mirror.clone();
    Box::new(move || mirror.synced())
}

/// Runs the agent; returns only what broke it.
pub(crate) async fn run(client: Client, settings: Settings) -> anyhow::Error {
    let listener = match bind(settings.health).await {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let mut tasks = Tasks::default();
    let all = Config::default;

    let (nodes, keeper) = mirror("Node", Api::all(client.clone()), all());
    tasks.spawn("watch Node", keeper.run());
    let (egress, keeper) = mirror("EgressNode", Api::all(client.clone()), all());
    tasks.spawn("watch EgressNode", keeper.run());
    let (hub, keeper) = mirror("HubConnection", Api::all(client.clone()), all());
    tasks.spawn("watch HubConnection", keeper.run());
    let (tokens, keeper) = mirror(
        "Secret",
        Api::namespaced(client.clone(), &settings.namespace),
        all().fields(&format!("metadata.name={TOKEN_SECRET}")),
    );
    tasks.spawn("watch the join token", keeper.run());
    let (services, keeper) = mirror("ServiceCIDR", Api::all(client.clone()), all());
    // Kubernetes before 1.33 doesn't serve it.
    tasks.spawn("watch ServiceCIDR", keeper.patient().run());
    let (api_server, keeper) = mirror(
        "EndpointSlice",
        Api::namespaced(client.clone(), "default"),
        all().labels("kubernetes.io/service-name=kubernetes"),
    );
    tasks.spawn("watch EndpointSlice", keeper.run());
    let (networks, keeper) = mirror("ClusterNetwork", Api::all(client.clone()), all());
    tasks.spawn("watch ClusterNetwork", keeper.run());
    let foreign = network::start(&client, &mut tasks);
    let plan = PlanMirrors::start(&client, &mut tasks);

    let loaded = Arc::new(AtomicBool::new(false));
    let mut book = Book::default();
    let observed = Observed::new(&mut book);
    let progress = Published::new(Progress::default());
    let placed: Arc<OnceLock<Arc<Store>>> = Arc::default();
    let health = health::health(
        vec![
            ("nodes", synced(&nodes)),
            ("EgressNodes", synced(&egress)),
            ("HubConnections", synced(&hub)),
            ("the join token's Secret", synced(&tokens)),
        ],
        loaded.clone(),
    );
    let metrics = Metrics::new(book, {
        let (observed, progress, placed) = (observed.clone(), progress.clone(), placed.clone());
        let (nodes, egress) = (nodes.clone(), egress.clone());
        move || {
            let contents = placed.get().map(|s| s.contents()).unwrap_or_default();
            observed.refresh(&progress.get(), &contents, &nodes, &egress);
            std::future::ready(())
        }
    });
    let ranges = Published::new(network::ClusterRanges::default());
    tasks.spawn(
        "health port",
        spillway_telemetry::serve(listener, routes(health, metrics)),
    );
    tasks.spawn(
        "cluster ranges",
        network::run(
            client.clone(),
            network::Sources {
                nodes: nodes.clone(),
                services,
                api_server,
                foreign,
                egress: egress.clone(),
                existing: networks,
            },
            settings.extra.clone(),
            ranges.clone(),
        ),
    );
    let (reports, report) = watch::channel(MemberReport::default());
    tasks.spawn(
        "report",
        report::run(nodes.clone(), egress.clone(), ranges, reports),
    );

    tasks.spawn("agent", async move {
        // Nothing of the rest makes sense before it is known what an earlier run left.
        let store = Arc::new(Store::load(client.clone(), observed.clone()).await);
        _ = placed.set(store.clone());
        loaded.store(true, Ordering::Relaxed);
        let connection = Connection {
            hub: hub.clone(),
            tokens,
            identities: IdentityStore::new(client.clone(), &settings.namespace),
            store: store.clone(),
            reports: report,
            progress: progress.clone(),
            observed,
        };
        let statuses = status::Sources {
            nodes: nodes.clone(),
            egress: egress.clone(),
            hub,
            head: plan.head().clone(),
            store: store.clone(),
            progress,
        };
        let mut tasks = Tasks::default();
        let tainted = taint::Sources {
            nodes: nodes.clone(),
            egress: egress.clone(),
            store: store.clone(),
        };
        tasks.spawn("startup taints", taint::run(client.clone(), tainted));
        tasks.spawn(
            "overlay addresses",
            overlay::run(client.clone(), store.clone(), nodes, egress),
        );
        tasks.spawn("plan repair", repair(store, plan));
        tasks.spawn("status", status::run(client, statuses));
        tasks.spawn("connection", connection.run());
        let broken = tasks.failed().await;
        tracing::error!(error = %broken, "a part of the agent broke");
    });
    tasks.failed().await
}

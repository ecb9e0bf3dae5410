//! Bringing an arena up.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{Clock, Lock, down::take_down, forward, images, power};
use crate::{
    connect::connect,
    control_plane,
    image::{self, Image},
    node::{
        config,
        machine::{Bind, Daemon, Machine, MachineSpec, arena_program},
    },
    provision::Toolbox,
    state::{ArenaSpec, ClusterPlan, Dirs, Plan, Provider},
    wait::eventually,
    wire::{self, address, netns},
};

/// Name of the outside server's machine directory.
pub(super) const OUTSIDE: &str = "outside";

/// How long a control plane may take on a busy machine.
const API_START: Duration = Duration::from_secs(120);

/// How long nodes may take to become Ready after their control plane.
const NODES_START: Duration = Duration::from_secs(120);

/// The taint that a control plane keeps.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// An arena that is up.
pub struct Built {
    /// Its plan, as on disk.
    pub plan: Plan,
    /// The programs it runs.
    pub toolbox: Toolbox,
}

/// Provisions what is missing, then brings the arena up. Returns when every node is Ready and can run pods.
///
/// A failure takes everything down again unless `keep_failed`; the error then says where the logs are.
pub async fn up(spec: &ArenaSpec, keep_failed: bool) -> Result<Built> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "an arena needs root: it makes network namespaces and mounts"
    );
    let clock = Clock::start();
    let mut plan = spec.plan()?;
    let dirs = Dirs::new(&plan.name)?;
    let versions: BTreeSet<_> = plan.clusters.iter().map(|c| c.spec.kubernetes).collect();
    let provider = plan.provider;
    let (toolbox, tools, images) = tokio::task::spawn_blocking(move || -> Result<_> {
        let toolbox = Toolbox::ensure(&versions.into_iter().collect::<Vec<_>>())?;
        let (tools, images) = match provider {
            Provider::Namespaces => (None, vec![image::pause(&toolbox)?, image::probe(&toolbox)?]),
            Provider::Kind => (Some(toolbox.kind(true)?), vec![image::probe(&toolbox)?]),
            Provider::KindUpstream => (Some(toolbox.kind(false)?), vec![image::probe(&toolbox)?]),
        };
        Ok((toolbox, tools, images))
    })
    .await??;
    let lock = {
        let dirs = dirs.clone();
        tokio::task::spawn_blocking(move || Lock::take(&dirs)).await??
    };
    if dirs.state().exists() || dirs.disk().exists() {
        bail!(
            "arena {0} exists already; `arena down --name {0}` removes it, and --name picks another",
            plan.name
        );
    }
    let context = Arc::new(Context {
        dirs: dirs.clone(),
        toolbox: toolbox.clone(),
        images,
        clock,
    });
    let built = match tools {
        None => build(&context, &mut plan).await,
        Some(tools) => super::kind::build(&context, tools, &mut plan).await,
    };
    if let Err(e) = built {
        if keep_failed {
            return Err(e.context(format!(
                "the arena doesn't come up; its logs are in {}",
                dirs.state().join("logs").display()
            )));
        }
        let cleanup = tokio::task::spawn_blocking(move || take_down(&dirs)).await?;
        lock.remove();
        let e = e
            .context("the arena doesn't come up and was removed again (--keep-failed keeps it and its logs)");
        return Err(match cleanup {
            Ok(()) => e,
            Err(more) => e.context(format!("{more:#}")),
        });
    }
    clock.say(&format!("arena {} is up", plan.name));
    Ok(Built { plan, toolbox })
}

pub(super) struct Context {
    pub(super) dirs: Dirs,
    pub(super) toolbox: Toolbox,
    pub(super) images: Vec<Image>,
    pub(super) clock: Clock,
}

async fn build(context: &Arc<Context>, plan: &mut Plan) -> Result<()> {
    let listeners = forward::open(plan)?;
    for cluster in &mut plan.clusters {
        cluster.kubectl = context.toolbox.kubernetes(&cluster.spec.kubernetes, "kubectl");
    }
    context.dirs.create()?;
    context.dirs.save(plan)?;
    let shared = Arc::new(plan.clone());
    {
        let (context, plan) = (context.clone(), shared.clone());
        tokio::task::spawn_blocking(move || -> Result<()> {
            forward::spawn(&context.dirs, &plan, &listeners)?;
            wire::build(&plan)?;
            boot_outside(&context, &plan)
        })
        .await??;
    }
    context.clock.say("wire, router and outside server");
    every_cluster(&shared, |index| {
        let (context, plan) = (context.clone(), shared.clone());
        async move { build_cluster(&context, &plan, &plan.clusters[index]).await }
    })
    .await
}

/// Does something for every cluster at once.
pub(super) async fn every_cluster<F>(plan: &Plan, work: impl Fn(usize) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut clusters = tokio::task::JoinSet::new();
    for (index, cluster) in plan.clusters.iter().enumerate() {
        let (name, work) = (cluster.spec.name.clone(), work(index));
        clusters.spawn(async move { work.await.with_context(|| format!("cluster {name}")) });
    }
    // All are waited for, also after a failure: what still starts must not outrun the clean-up.
    let mut results = Vec::new();
    while let Some(result) = clusters.join_next().await {
        results.push(result?);
    }
    results.into_iter().collect()
}

pub(super) fn boot_outside(context: &Context, plan: &Plan) -> Result<()> {
    let dirs = &context.dirs;
    let dir = dirs.machine(OUTSIDE);
    let program = arena_program()?.with_file_name("probe");
    ensure!(
        program.is_file(),
        "the `probe` program isn't built: run `cargo build -p spillway-e2e --bins`"
    );
    let inside = dir.join("root/opt/probe");
    fs::create_dir_all(&inside)?;
    fs::copy(&program, inside.join("probe")).with_context(|| format!("copy {}", program.display()))?;
    let mut command = vec![
        "/opt/probe/probe".to_owned(),
        "serve".to_owned(),
        "--log".to_owned(),
        "/var/log/outside/log.jsonl".to_owned(),
    ];
    command.extend(address::outside().flat_map(|a| ["--bind".to_owned(), a.to_string()]));
    Machine::boot(&MachineSpec {
        name: OUTSIDE.to_owned(),
        machine_id: config::machine_id(&plan.outside_netns()),
        netns: plan.outside_netns(),
        dir,
        logs: dirs.logs(OUTSIDE),
        mark: dirs.mark(),
        binds: vec![Bind {
            source: dirs.outside(),
            target: "/var/log/outside".into(),
            read_only: false,
        }],
        path: config::search_path(&context.toolbox, None),
        daemons: vec![Daemon {
            name: "probe".to_owned(),
            command,
            after: vec![],
        }],
    })?;
    Ok(())
}

async fn build_cluster(context: &Arc<Context>, plan: &Arc<Plan>, cluster: &ClusterPlan) -> Result<()> {
    let boot = {
        let (context, plan, cluster) = (context.clone(), plan.clone(), cluster.clone());
        tokio::task::spawn_blocking(move || boot_cluster(&context, &plan, &cluster))
    };
    let (booted, ready) = tokio::join!(boot, cluster_ready(context, cluster));
    booted??;
    ready
}

/// Waits until a cluster that boots can run pods, and gives its nodes what they need for that.
pub(super) async fn cluster_ready(context: &Context, cluster: &ClusterPlan) -> Result<()> {
    let name = &cluster.spec.name;
    let client = api_ready(context, cluster).await?;
    context.clock.say(&format!("{name}: API server ready"));
    furnish_nodes(&client, cluster).await?;
    nodes_ready(&client, cluster).await?;
    services_work(cluster).await?;
    let nodes = cluster.kubernetes_nodes().count();
    context.clock.say(&format!("{name}: {nodes} node(s) Ready"));
    Ok(())
}

/// Boots control plane and nodes at once. Kubelets wait for the API server themselves, and images are imported
/// in the meantime.
fn boot_cluster(context: &Context, plan: &Plan, cluster: &ClusterPlan) -> Result<()> {
    let (dirs, toolbox) = (&context.dirs, &context.toolbox);
    let (spec, authority) = control_plane::prepare(dirs, toolbox, cluster)?;
    power::start(plan, &cluster.control_plane, &spec)?;
    let mut nodes = Vec::new();
    for node in &cluster.nodes {
        let spec = config::prepare(dirs, toolbox, cluster, node, &authority, image::PAUSE)?;
        power::start(plan, &node.machine, &spec).with_context(|| format!("node {}", node.machine.name))?;
        nodes.push(Machine::new(&node.machine.name, dirs.machine(&node.machine.name)));
    }
    std::thread::scope(|scope| {
        let imports: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(move || images::import(node, &context.images)))
            .collect();
        for import in imports {
            import
                .join()
                .unwrap_or_else(|_| bail!("a thread that imports images panicked"))?;
        }
        Ok(())
    })
}

async fn api_ready(context: &Context, cluster: &ClusterPlan) -> Result<Client> {
    let kubeconfig = context.dirs.kubeconfig(&cluster.spec.name);
    eventually(API_START, "its API server is ready", || async {
        let client = connect(&kubeconfig).await?;
        let answer = client
            .request_text(http::Request::get("/readyz").body(Vec::new())?)
            .await?;
        ensure!(answer == "ok", "/readyz: {answer}");
        Ok(client)
    })
    .await
}

/// Gives the Node objects, as soon as kubelets made them, the pod ranges that the arena routes, and their labels.
///
/// Made here beforehand, they would be found not ready by the controller-manager and tainted for its next period, 5 s.
async fn furnish_nodes(client: &Client, cluster: &ClusterPlan) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    for node in cluster.kubernetes_nodes() {
        let name = &node.machine.name;
        let ranges: Vec<String> = node.pod_ranges.iter().map(ToString::to_string).collect();
        let patch = Patch::Merge(json!({
            "metadata": {"labels": node.labels},
            "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
        }));
        eventually(NODES_START, &format!("{name} registers"), || async {
            Ok(api.patch(name, &PatchParams::default(), &patch).await?)
        })
        .await?;
    }
    Ok(())
}

async fn nodes_ready(client: &Client, cluster: &ClusterPlan) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    eventually(NODES_START, "all nodes are Ready", || async {
        let list = nodes.list(&ListParams::default()).await?;
        for planned in cluster.kubernetes_nodes() {
            let name = &planned.machine.name;
            let node = list
                .items
                .iter()
                .find(|n| n.metadata.name.as_ref() == Some(name))
                .with_context(|| format!("no node {name}"))?;
            let ready = node
                .status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .find(|c| c.type_ == "Ready");
            let ready = ready.with_context(|| format!("{name} hasn't reported yet"))?;
            ensure!(
                ready.status == "True",
                "{name}: {}",
                ready.message.as_deref().unwrap_or("not ready")
            );
            let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
            let taint = taints.find(|taint| taint.key != CONTROL_PLANE);
            ensure!(
                taint.is_none(),
                "{name} has taint {}",
                taint.map(|t| t.key.as_str()).unwrap_or_default()
            );
        }
        Ok(())
    })
    .await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    eventually(NODES_START, "the default service account exists", || async {
        accounts.get("default").await?;
        Ok(())
    })
    .await
}

/// Waits until every node reaches the API server's Service: Ready says nothing about kube-proxy.
async fn services_work(cluster: &ClusterPlan) -> Result<()> {
    let range = cluster.spec.service_ranges.first().context("no service range")?;
    let service = SocketAddr::new(control_plane::api_service(*range)?, 443);
    for node in cluster.kubernetes_nodes() {
        let ns = &node.machine.netns;
        eventually(
            NODES_START,
            &format!("Services work on {}", node.machine.name),
            || async {
                let ns = ns.clone();
                let connect = move || {
                    netns::inside(&ns, || {
                        Ok(TcpStream::connect_timeout(&service, Duration::from_secs(1)).map(drop)?)
                    })
                };
                tokio::task::spawn_blocking(connect)
                    .await?
                    .with_context(|| format!("connect to {service}"))
            },
        )
        .await?;
    }
    Ok(())
}

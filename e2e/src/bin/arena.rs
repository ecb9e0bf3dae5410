//! Brings up real Kubernetes clusters on this machine, shows them, breaks them, and takes them down.

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use spillway_e2e::{
    ArenaSpec, Provider,
    kind::runtime,
    lifecycle::{self, forward},
    node::{init, machine::Machine},
    provision::{KubernetesVersion, Toolbox},
    state::{DEFAULT_NAME, Dirs, Plan},
    status,
};
use tokio::signal::unix::{SignalKind, signal};

/// Real Kubernetes clusters on one machine, each node in namespaces of its own, with a server outside that records
/// who it sees. Needs root.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// Which arena; several can stand side by side.
    #[arg(long, global = true, env = "SPILLWAY_ARENA", default_value = DEFAULT_NAME)]
    name: String,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install and build the programs that arenas run, where they are missing: Kubernetes, etcd, containerd, Helm.
    Toolbox,
    /// Bring an arena up; returns when every node is Ready.
    Up {
        /// Clusters as `NAME[:NODES[@PARTITION]]`, separated by commas.
        #[arg(long, default_value = "hub:1,a:2,b:2", conflicts_with = "config")]
        clusters: String,
        /// A YAML file with `clusters:`, each with name, nodes, partition, podRanges, serviceRanges, kubernetes, labels, nodeLabels.
        #[arg(long)]
        config: Option<PathBuf>,
        /// What machines are made of: `namespaces` of this machine, or `kind`'s containers.
        #[arg(long, env = "SPILLWAY_PROVIDER")]
        provider: Option<Provider>,
        /// Kubernetes version of clusters that name none.
        #[arg(long)]
        kubernetes: Option<KubernetesVersion>,
        /// Also give the nodes the images of this workspace's daemons.
        #[arg(long)]
        load: bool,
        /// Leave everything as it is when it doesn't come up.
        #[arg(long)]
        keep_failed: bool,
    },
    /// Show the arena's clusters and machines.
    Status,
    /// Run kubectl as a cluster's administrator.
    Kubectl {
        /// The cluster.
        cluster: String,
        /// Arguments for kubectl.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Print the path of a cluster's kubeconfig, usable by any tool on this machine.
    Kubeconfig {
        /// The cluster.
        cluster: String,
    },
    /// Run a command inside a machine: a node (a-n1) or a control plane (a-cp).
    Exec {
        /// The machine, as NODE or CLUSTER/NODE.
        node: String,
        /// The command; a shell if left out.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Cut a machine's power: silent at once, kernel state lost, disk kept.
    PowerOff {
        /// The machine.
        node: String,
    },
    /// Switch a machine on again.
    PowerOn {
        /// The machine.
        node: String,
    },
    /// The server outside the clusters.
    Outside {
        #[command(subcommand)]
        command: OutsideVerb,
    },
    /// Give every node the images of this workspace's daemons, as cargo built them last.
    Load,
    /// Remove the arena, whatever state it is in.
    Down {
        /// Remove all arenas of this machine.
        #[arg(long)]
        all: bool,
        /// End as an interrupted program does.
        #[arg(long, hide = true)]
        interrupted: bool,
    },
    /// Parts of the arena that run as processes of their own.
    #[command(hide = true)]
    Internal {
        #[command(subcommand)]
        command: InternalVerb,
    },
}

#[derive(Subcommand)]
enum OutsideVerb {
    /// Print what arrived outside: time, protocol, source, destination, payload.
    Log {
        /// Keep printing.
        #[arg(long, short)]
        follow: bool,
        /// Only what arrived in the last so many seconds.
        #[arg(long, value_name = "SECONDS")]
        since: Option<u32>,
        /// Print the records as JSON lines.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum InternalVerb {
    /// Make a machine's namespaces and start its init.
    Boot { spec: PathBuf },
    /// Be a machine's first process.
    Init { spec: PathBuf },
    /// Forward local ports to API servers.
    Forward { targets: Vec<String> },
    /// Become runc, told only of what this machine grants.
    Runc {
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "warn,kube_client=off".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(Args::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("arena: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    // These make namespaces or become a first process, which wants a single thread: before any runtime exists.
    match &args.command {
        Verb::Internal {
            command: InternalVerb::Boot { spec },
        } => return init::boot(spec).map(|()| ExitCode::SUCCESS),
        Verb::Internal {
            command: InternalVerb::Init { spec },
        } => return init::init(spec).map(|()| ExitCode::SUCCESS),
        Verb::Internal {
            command: InternalVerb::Runc { program, arguments },
        } => return runtime::exec(program, arguments).map(|never| match never {}),
        _ => {}
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(dispatch(args))
}

async fn dispatch(args: Args) -> Result<ExitCode> {
    let dirs = Dirs::new(&args.name)?;
    let name = args.name;
    match args.command {
        Verb::Up {
            clusters,
            config,
            provider,
            kubernetes,
            load,
            keep_failed,
        } => {
            let mut spec = match config {
                Some(file) => read_config(&name, &file)?,
                None => ArenaSpec::parse_short(&name, &clusters)?,
            };
            if let Some(provider) = provider {
                spec = spec.on(provider.here());
            }
            if let Some(version) = kubernetes {
                spec.clusters
                    .iter_mut()
                    .filter(|c| c.kubernetes == KubernetesVersion::DEFAULT)
                    .for_each(|c| c.kubernetes = version);
            }
            up(&spec, load, keep_failed).await?;
        }
        Verb::Toolbox => {
            tokio::task::spawn_blocking(|| Toolbox::ensure(&[])).await??;
        }
        Verb::Status => {
            let plan = dirs.load_existing()?;
            say(&status::table(&dirs, &plan).await)?;
        }
        Verb::Kubectl { cluster, args } => {
            let plan = dirs.load_existing()?;
            let kubectl = &plan.cluster(&cluster)?.kubectl;
            let error = Command::new(kubectl)
                .args(args)
                .env("KUBECONFIG", dirs.kubeconfig(&cluster))
                .exec();
            return Err(error).context("run kubectl");
        }
        Verb::Kubeconfig { cluster } => {
            dirs.load_existing()?.cluster(&cluster)?;
            say(&dirs.kubeconfig(&cluster).display().to_string())?;
        }
        Verb::Exec { node, command } => {
            let plan = dirs.load_existing()?;
            let machine = plan.machine(&node)?;
            let command = if command.is_empty() {
                vec!["/bin/bash".to_owned()]
            } else {
                command
            };
            let error = Machine::new(&machine.name, dirs.machine(&machine.name))
                .command(&command)?
                .exec();
            return Err(error).context("run nsenter");
        }
        Verb::PowerOff { node } => {
            let plan = dirs.load_existing()?;
            lifecycle::power_off(&dirs, &plan, plan.machine(&node)?)?;
        }
        Verb::PowerOn { node } => {
            let plan = dirs.load_existing()?;
            lifecycle::power_on(&dirs, &plan, plan.machine(&node)?)?;
        }
        Verb::Outside {
            command: OutsideVerb::Log { follow, since, json },
        } => outside_log(&name, follow, since, json).await?,
        Verb::Load => {
            let plan = dirs.load_existing()?;
            load_images(dirs, plan).await?;
        }
        Verb::Down { all, interrupted } => {
            down(&name, all)?;
            if interrupted {
                return Ok(ExitCode::from(130));
            }
        }
        Verb::Internal {
            command: InternalVerb::Forward { targets },
        } => forward::serve(&targets).await?,
        Verb::Internal { .. } => bail!("not reached from here"),
    }
    Ok(ExitCode::SUCCESS)
}

fn read_config(name: &str, file: &PathBuf) -> Result<ArenaSpec> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let mut spec: ArenaSpec =
        serde_saphyr::from_str(&text).with_context(|| format!("parse {}", file.display()))?;
    if name != DEFAULT_NAME {
        name.clone_into(&mut spec.name);
    }
    Ok(spec)
}

async fn up(spec: &ArenaSpec, load: bool, keep_failed: bool) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let built = tokio::select! {
        built = lifecycle::up(spec, keep_failed) => built?,
        _ = interrupt.recv() => return abandon(&spec.name),
        _ = terminate.recv() => return abandon(&spec.name),
    };
    if load {
        load_images(Dirs::new(&spec.name)?, built.plan).await?;
    }
    let flag = if spec.name == DEFAULT_NAME {
        String::new()
    } else {
        format!(" --name {}", spec.name)
    };
    let first = spec.clusters.first().map(|c| c.name.as_str()).unwrap_or_default();
    eprintln!(
        "\nTry:\n  arena{flag} status\n  arena{flag} kubectl {first} get nodes -o wide\n  arena{flag} outside log --follow\n  arena{flag} down"
    );
    Ok(())
}

/// Becomes `arena down`: replacing the program ends all its threads at once, so nothing is started behind its back.
fn abandon(name: &str) -> Result<()> {
    eprintln!("interrupted: removing arena {name}");
    let error = Command::new(std::env::current_exe()?)
        .args(["--name", name, "down", "--interrupted"])
        .exec();
    Err(error).context("run `arena down`")
}

async fn load_images(dirs: Dirs, plan: Plan) -> Result<()> {
    let imports = tokio::task::spawn_blocking(move || {
        let toolbox = Toolbox::ensure(
            &plan
                .clusters
                .iter()
                .map(|c| c.spec.kubernetes)
                .collect::<Vec<_>>(),
        )?;
        lifecycle::load_workspace(&dirs, &plan, &toolbox)
    })
    .await??;
    eprintln!("{imports} image(s) imported");
    Ok(())
}

fn down(name: &str, all: bool) -> Result<()> {
    let names = if all { Dirs::all() } else { vec![name.to_owned()] };
    let mut failures = Vec::new();
    for name in names {
        match lifecycle::down(&name) {
            Ok(true) => eprintln!("arena {name} is gone"),
            Ok(false) => eprintln!("there is no arena {name}"),
            Err(e) => failures.push(format!("{name}: {e:#}")),
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

async fn outside_log(name: &str, follow: bool, since: Option<u32>, json: bool) -> Result<()> {
    let outside = spillway_e2e::Outside::of(name)?;
    let oldest = since.map(|s| jiff::Timestamp::now() - jiff::SignedDuration::from_secs(i64::from(s)));
    let mut mark = spillway_e2e::Mark::default();
    loop {
        let (records, next) = outside.read(mark)?;
        mark = next;
        for record in records {
            if oldest.is_some_and(|oldest| record.time < oldest) {
                continue;
            }
            say(&if json {
                serde_json::to_string(&record)?
            } else {
                line(&record)
            })?;
        }
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn line(record: &spillway_e2e::Record) -> String {
    let (from, to) = (
        SocketAddr::new(record.src, record.sport),
        SocketAddr::new(record.dst, record.dport),
    );
    format!(
        "{} {:?} {from} -> {to} {:?}",
        record.time, record.proto, record.payload
    )
}

/// Prints a line; a reader that has gone away ends the program quietly.
fn say(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("write to standard output"),
    }
}

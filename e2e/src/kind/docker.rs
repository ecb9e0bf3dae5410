//! The Docker in which kind's containers run.
//!
//! Where this machine has none, it is a daemon in a machine of the arena, with an own network, own files and own
//! processes: when that machine's power is cut, all containers are gone with it.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::image;
use crate::{
    node::{
        cgroup,
        config::machine_id,
        machine::{Bind, Daemon, Machine, MachineSpec, arena_program},
    },
    provision::{KubernetesVersion, Lock, OwnDocker, Toolbox},
    state::{Dirs, Plan, Provider},
    wire::{self, address},
};

/// Name of the daemon's machine.
pub(crate) const MACHINE: &str = "docker";

/// Host number of Docker's own gateway, which leads nowhere: the arena's router is another.
const GATEWAY_HOST: u16 = 254;

/// Where the daemon keeps its images and containers, inside its machine.
const DATA: &str = "var/lib/docker";

/// Where the daemon listens, inside its machine: on its disk, which can be seen from outside.
const SOCKET: &str = "var/docker.sock";

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A way to talk to a Docker daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Docker {
    /// This machine's, by whatever `docker` talks to.
    Found,
    /// The arena's own.
    Own {
        /// Folder of the docker program.
        programs: PathBuf,
        /// The daemon's socket.
        socket: PathBuf,
    },
}

/// Name of the Docker network of all nodes. kind finds it there and doesn't make its own.
pub(crate) fn network(plan: &Plan) -> String {
    match plan.provider {
        Provider::KindUpstream => format!("spillway-{}", plan.name),
        _ => "kind".to_owned(),
    }
}

/// Whether this machine has a Docker that answers.
pub(crate) fn docker_answers() -> bool {
    Docker::Found
        .run(&["version", "--format", "{{.Server.Version}}"])
        .is_ok()
}

/// What the daemon says of a container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Number of its first process, as the daemon's own pid namespace counts.
    pub(crate) pid: i32,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
}

impl Docker {
    /// The arena's own, which needn't run yet.
    pub(crate) fn own(dirs: &Dirs, tools: &OwnDocker) -> Self {
        Self::Own {
            programs: tools.programs(),
            socket: dirs.machine(MACHINE).join("root").join(SOCKET),
        }
    }

    /// Has a command talk to this Docker, whichever program it is that runs `docker`.
    pub(crate) fn prepare(&self, command: &mut Command) {
        if let Self::Own { programs, socket } = self {
            let path = std::env::var("PATH").unwrap_or_default();
            command
                .env("PATH", format!("{}:{path}", programs.display()))
                .env("DOCKER_HOST", format!("unix://{}", socket.display()))
                .env_remove("DOCKER_CONTEXT");
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = match self {
            Self::Found => Command::new("docker"),
            Self::Own { programs, .. } => Command::new(programs.join("docker")),
        };
        command.args(args).stdin(Stdio::null());
        self.prepare(&mut command);
        command
    }

    /// Runs docker; gives its standard output.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output().context("run docker")?;
        ensure!(
            output.status.success(),
            "docker {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// What the daemon says of a container that runs.
    pub(crate) fn container(&self, network: &str, name: &str) -> Result<Container> {
        let format = format!(
            "{{{{.State.Pid}}}} {{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}} \
             {{{{(index .NetworkSettings.Networks \"{network}\").GlobalIPv6Address}}}}"
        );
        let said = self.run(&["inspect", "--format", &format, name])?;
        let words: Vec<&str> = said.split(' ').collect();
        let [pid, ipv4, ipv6] = words[..] else {
            bail!("container {name} isn't on network {network} with both families: {said}")
        };
        Ok(Container {
            pid: pid.parse().with_context(|| said.clone())?,
            ipv4: ipv4.parse().with_context(|| said.clone())?,
            ipv6: ipv6.parse().with_context(|| said.clone())?,
        })
    }

    fn wait(&self, logs: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.run(&["version", "--format", "{{.Server.Version}}"]) {
            if Instant::now() > deadline {
                return Err(error.context(format!("Docker doesn't start; its log is {}", logs.display())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Starts the arena's own Docker in the wire's namespace, which exists, with the node image in it. Makes the node image
/// where the cache has none. `say` is told of each step.
pub(crate) fn start(
    dirs: &Dirs,
    toolbox: &Toolbox,
    tools: (&Path, &OwnDocker),
    version: KubernetesVersion,
    plan: &Plan,
    say: impl Fn(&str),
) -> Result<()> {
    let (kind, tools) = tools;
    let docker = Docker::own(dirs, tools);
    let spec = machine(dirs, toolbox, tools, plan)?;
    let data = spec.dir.join("root").join(DATA);
    cgroup::create(&plan.docker_cgroup())?;
    let cached = image::place(toolbox, kind, tools, version);
    if !cached.is_dir() {
        let _lock = Lock::take(
            &toolbox.cache().join("locks/kind-image"),
            "making kind's node image",
        )?;
        // Whoever held the lock may have made it.
        if !cached.is_dir() {
            let root = image::make(toolbox, tools, version, &cached)?;
            say("Docker takes the node image in");
            let running = boot(&spec, &docker)?;
            image::import(
                |args| docker.command(args),
                root.path(),
                &image::reference(version),
            )?;
            // No container was ever made: what is on disk is an image and nothing else.
            running.kill()?;
            image::keep(&data, &cached)?;
        }
    }
    image::lay_out(&cached, &data)?;
    boot(&spec, &docker).map(drop)
}

fn boot(spec: &MachineSpec, docker: &Docker) -> Result<Machine> {
    let machine = Machine::boot(spec)?;
    docker.wait(&spec.logs.join("dockerd.log"))?;
    Ok(machine)
}

/// Makes the nodes' network: the arena's first segment, with Docker's gateway beside the arena's router.
pub(crate) fn make_network(docker: &Docker, plan: &Plan) -> Result<()> {
    let (v4, v6) = (|host| address::host_v4(1, host), |host| address::host_v6(1, host));
    let subnet4 = ipnet::Ipv4Net::new_assert(v4(0), 24).trunc();
    let subnet6 = ipnet::Ipv6Net::new_assert(v6(0), 64).trunc();
    let args = [
        "network".to_owned(),
        "create".to_owned(),
        "--driver=bridge".to_owned(),
        format!("--opt=com.docker.network.bridge.name={}", wire::bridge(plan, 1)),
        "--opt=com.docker.network.bridge.enable_ip_masquerade=false".to_owned(),
        format!("--subnet={subnet4}"),
        format!("--gateway={}", v4(GATEWAY_HOST)),
        format!("--aux-address=router4={}", v4(address::ROUTER_HOST)),
        "--ipv6".to_owned(),
        format!("--subnet={subnet6}"),
        format!("--gateway={}", v6(GATEWAY_HOST)),
        format!("--aux-address=router6={}", v6(address::ROUTER_HOST)),
        network(plan),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    docker.run(&args).map(drop)
}

/// Removes what of the arena is in this machine's own Docker. A Docker of the arena's own goes with its machine.
pub(crate) fn remove(plan: &Plan) -> Result<()> {
    let Some(docker @ Docker::Found) = &plan.docker else {
        return Ok(());
    };
    for cluster in &plan.clusters {
        let label = format!(
            "label=io.x-k8s.kind.cluster={}",
            super::cluster_name(plan, cluster)
        );
        let containers = docker.run(&["ps", "--all", "--quiet", "--filter", &label])?;
        for container in containers.lines() {
            docker.run(&["rm", "--force", "--volumes", container])?;
        }
    }
    let network = network(plan);
    let filter = format!("name=^{network}$");
    if !docker
        .run(&["network", "ls", "--quiet", "--filter", &filter])?
        .is_empty()
    {
        // The router's port is no container's, so Docker knows nothing of it and takes the bridge away.
        docker.run(&["network", "rm", &network])?;
    }
    Ok(())
}

/// The daemon's machine. What it writes is on the arena's disk, and its firewall rules would be in the wire's namespace
/// if it made any.
fn machine(dirs: &Dirs, toolbox: &Toolbox, tools: &OwnDocker, plan: &Plan) -> Result<MachineSpec> {
    let dir = dirs.machine(MACHINE);
    let arena = arena_program()?;
    let programs = arena
        .parent()
        .context("the arena program is in a folder")?
        .to_owned();
    let opt = dir.join("root/opt/spillway");
    fs::create_dir_all(&opt)?;
    let runc = opt.join("runc");
    fs::write(
        &runc,
        format!(
            "#!/bin/sh\nexec {} internal runc {} \"$@\"\n",
            arena.display(),
            toolbox.bin("runc").display()
        ),
    )?;
    fs::set_permissions(&runc, fs::Permissions::from_mode(0o755))?;
    // kind mounts /lib/modules into its nodes, and Docker would make it in this machine's own /usr.
    let modules = "if [ ! -d /lib/modules ]; then\n\
         mkdir -p /var/lib/usr-lib/upper /var/lib/usr-lib/work\n\
         mount -t overlay overlay -o lowerdir=/usr/lib,upperdir=/var/lib/usr-lib/upper,workdir=/var/lib/usr-lib/work /usr/lib\n\
         mkdir /usr/lib/modules\n\
         fi\n";
    let daemon = [
        "exec dockerd".to_owned(),
        format!("--host=unix:///{SOCKET}"),
        format!("--data-root=/{DATA}"),
        "--exec-root=/run/docker".to_owned(),
        "--pidfile=/run/docker.pid".to_owned(),
        "--storage-driver=overlay2".to_owned(),
        // Its network is a switch of the arena: no rules, no address translation.
        "--bridge=none".to_owned(),
        "--iptables=false".to_owned(),
        "--ip6tables=false".to_owned(),
        format!("--cgroup-parent=/{}", plan.docker_cgroup()),
        "--exec-opt=native.cgroupdriver=cgroupfs".to_owned(),
        "--add-runtime=spillway=/opt/spillway/runc".to_owned(),
        "--default-runtime=spillway".to_owned(),
        // What this machine can't grant: a protection from the out-of-memory killer.
        "--oom-score-adjust=0".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    Ok(MachineSpec {
        name: MACHINE.to_owned(),
        machine_id: machine_id(&format!("{}-docker", plan.name)),
        netns: plan.wire_netns(),
        logs: dirs.logs(MACHINE),
        mark: dirs.mark(),
        binds: vec![Bind::same(toolbox.cache()), Bind::same(programs)],
        path: format!(
            "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            tools.programs().display(),
            tools.helpers().display()
        ),
        daemons: vec![Daemon {
            name: "dockerd".to_owned(),
            command: vec![
                "/bin/sh".to_owned(),
                "-ec".to_owned(),
                format!("{modules}{}", daemon.join(" ")),
            ],
            after: vec![],
        }],
        dir,
    })
}

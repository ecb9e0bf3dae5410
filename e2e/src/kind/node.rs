//! A container of kind as a machine of the arena.
//!
//! Its first process takes the place of a machine's init: commands, signals and the search for pods then work as on
//! any node. Its network namespace gets the name that the plan has for it, and its port on the switch the machine's.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Docker, MACHINE, container_name, network};
use crate::{
    node::{
        config,
        machine::{Machine, MachineSpec},
        process::{self, ProcessId},
    },
    state::{ClusterPlan, Dirs, MachinePlan, NodePlan, Plan, Provider},
    wire::{self, CARD, address, netns},
};

/// Search path of commands in a node.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes a running container the machine that `machine` plans, with the addresses that Docker gave it.
pub(crate) fn adopt(
    dirs: &Dirs,
    plan: &Plan,
    container: &str,
    docker: &Docker,
    machine: &mut MachinePlan,
) -> Result<()> {
    let said = docker.container(&network(plan), container)?;
    (machine.ipv4, machine.ipv6) = (said.ipv4, said.ipv6);
    let init = match docker {
        Docker::Found => ProcessId::of(said.pid),
        Docker::Own { .. } => {
            let daemon = Machine::new(MACHINE, dirs.machine(MACHINE)).init();
            process_in(daemon.context("the arena's Docker doesn't run")?, said.pid)
        }
    };
    let init = init.with_context(|| format!("container {container} has no first process {}", said.pid))?;

    let dir = dirs.machine(&machine.name);
    let spec = MachineSpec {
        name: machine.name.clone(),
        machine_id: config::machine_id(&machine.netns),
        netns: machine.netns.clone(),
        dir: dir.clone(),
        logs: dirs.logs(&machine.name),
        mark: dirs.mark(),
        binds: vec![],
        path: PATH.to_owned(),
        daemons: vec![],
    };
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("machine.json"), serde_json::to_vec_pretty(&spec)?)?;
    fs::write(dir.join("init.json"), serde_json::to_vec(&init)?)?;

    netns::delete(&machine.netns)?;
    netns::run(Command::new("ip").args(["netns", "attach", &machine.netns, &init.pid.to_string()]))?;
    name_port(plan, machine)?;
    connect(docker, machine)
}

/// The process that a namespace of `ancestor` knows by this number.
fn process_in(ancestor: ProcessId, pid: i32) -> Option<ProcessId> {
    process::descendants(ancestor)
        .into_iter()
        .map(|p| p.id)
        .find(|id| {
            let status = fs::read_to_string(format!("/proc/{}/status", id.pid)).unwrap_or_default();
            // From this namespace inwards; a container's first process is number 1 in the last.
            let numbers: Vec<i32> = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))
                .into_iter()
                .flat_map(str::split_whitespace)
                .filter_map(|n| n.parse().ok())
                .collect();
            numbers.get(1) == Some(&pid) && numbers.last() == Some(&1)
        })
}

/// Gives the switch's end of the machine's cable the machine's name.
fn name_port(plan: &Plan, machine: &MachinePlan) -> Result<()> {
    let card = links(&machine.netns)?;
    let card = card
        .iter()
        .find(|link| link["ifname"] == CARD)
        .with_context(|| format!("{} has no {CARD}", machine.name))?;
    let wire = plan.wire_netns();
    let ports = links(&wire)?;
    let port = ports
        .iter()
        .find(|link| link["ifindex"] == card["link_index"])
        .and_then(|link| link["ifname"].as_str())
        .with_context(|| format!("the switch has no port for {}", machine.name))?;
    let wanted = wire::port(machine);
    // Older kernels rename no device that is up.
    netns::ip_batch(
        &wire,
        &[
            format!("link set {port} down"),
            format!("link set {port} name {wanted}"),
            format!("link set {wanted} up"),
        ],
    )
}

fn links(ns: &str) -> Result<Vec<Value>> {
    let output = Command::new("ip")
        .args(["-n", ns, "-json", "link", "show"])
        .output()?;
    ensure!(
        output.status.success(),
        "ip link in {ns}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).with_context(|| format!("ip link in {ns}"))
}

/// Has it forward packets, and send to the arena's router what isn't for its segment. In this machine's Docker it keeps
/// its way to the world, and only what is the arena's goes to the router.
fn connect(docker: &Docker, machine: &MachinePlan) -> Result<()> {
    wire::be_a_router(&machine.netns)?;
    netns::sysctl(&machine.netns, &[("ipv6/conf/default/disable_ipv6", "0")])?;
    let p = machine.partition;
    let (router4, router6) = (
        address::host_v4(p, address::ROUTER_HOST),
        address::host_v6(p, address::ROUTER_HOST),
    );
    let (to4, to6) = match docker {
        Docker::Own { .. } => (vec!["default".to_owned()], vec!["default".to_owned()]),
        Docker::Found => (
            vec![
                ipnet::Ipv4Net::new_assert(address::ROUTER_OUTSIDE_V4, 24)
                    .trunc()
                    .to_string(),
                address::egress_v4(p).to_string(),
            ],
            vec![
                ipnet::Ipv6Net::new_assert(address::ROUTER_OUTSIDE_V6, 64)
                    .trunc()
                    .to_string(),
                address::egress_v6(p).to_string(),
            ],
        ),
    };
    let lines: Vec<String> = to4
        .iter()
        .map(|to| format!("route replace {to} via {router4}"))
        .chain(to6.iter().map(|to| format!("route replace {to} via {router6}")))
        .collect();
    netns::ip_batch(&machine.netns, &lines)
}

/// What a small CNI's agent does on a node for its pods. In upstream's image there is one.
fn route_pods(plan: &Plan, cluster: &ClusterPlan, node: &NodePlan) -> Result<()> {
    match plan.provider {
        Provider::KindUpstream => Ok(()),
        _ => wire::route_pods(cluster, node),
    }
}

/// Gives a node the network of its pods, where the image brings none: the CNI's configuration, routes, masquerading.
pub(crate) fn configure_network(
    dirs: &Dirs,
    plan: &Plan,
    cluster: &ClusterPlan,
    node: &NodePlan,
) -> Result<()> {
    if plan.provider == Provider::KindUpstream {
        return Ok(());
    }
    let init = Machine::new(&node.machine.name, dirs.machine(&node.machine.name)).init();
    let init = init.with_context(|| format!("{} is off", node.machine.name))?;
    let folder = format!("/proc/{}/root/etc/cni/net.d", init.pid);
    let folder = Path::new(&folder);
    route_pods(plan, cluster, node)?;
    fs::create_dir_all(folder)?;
    let file = folder.join(config::CNI_FILE);
    fs::write(&file, config::cni(node)).with_context(|| format!("write {}", file.display()))
}

fn docker_of(plan: &Plan) -> Result<&Docker> {
    plan.docker.as_ref().context("the arena has no Docker yet")
}

fn cluster_of<'a>(plan: &'a Plan, machine: &MachinePlan) -> Result<&'a ClusterPlan> {
    plan.clusters
        .iter()
        .find(|c| c.machines().any(|m| m.name == machine.name))
        .with_context(|| format!("{} is in no cluster", machine.name))
}

/// Kills a machine's container. The cable is pulled already.
pub(crate) fn power_off(plan: &Plan, machine: &MachinePlan) -> Result<()> {
    let container = container_name(plan, cluster_of(plan, machine)?, machine);
    docker_of(plan)?.run(&["kill", &container])?;
    // The name would keep the namespace alive, with all of its rules and routes.
    netns::delete(&machine.netns)
}

/// Starts a machine's container again, with the addresses it had.
pub(crate) fn power_on(dirs: &Dirs, plan: &Plan, machine: &MachinePlan) -> Result<()> {
    let cluster = cluster_of(plan, machine)?;
    let container = container_name(plan, cluster, machine);
    let docker = docker_of(plan)?;
    // Docker gives a container that starts whatever address is free; only one that asked for it gets its own again.
    let network = network(plan);
    docker.run(&["network", "disconnect", &network, &container])?;
    let (ipv4, ipv6) = (machine.ipv4.to_string(), machine.ipv6.to_string());
    docker.run(&[
        "network", "connect", "--ip", &ipv4, "--ip6", &ipv6, &network, &container,
    ])?;
    docker.run(&["start", &container])?;
    let mut now = machine.clone();
    adopt(dirs, plan, &container, docker, &mut now)?;
    ensure!(
        (now.ipv4, now.ipv6) == (machine.ipv4, machine.ipv6),
        "{} came back as {}, {}",
        machine.name,
        now.ipv4,
        now.ipv6
    );
    match cluster
        .kubernetes_nodes()
        .find(|n| n.machine.name == machine.name)
    {
        Some(node) => route_pods(plan, cluster, node),
        None => Ok(()),
    }
}

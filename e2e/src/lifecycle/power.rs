//! Switching machines off and on.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::{
    kind,
    node::{
        cgroup,
        machine::{Machine, MachineSpec},
    },
    state::{Dirs, MachinePlan, Plan, Provider},
    wire,
};

/// Cuts a machine's power: it falls silent at once, and all it had in memory, kernel state included, is lost.
pub fn power_off(dirs: &Dirs, plan: &Plan, machine: &MachinePlan) -> Result<()> {
    let running = Machine::new(&machine.name, dirs.machine(&machine.name));
    ensure!(running.init().is_some(), "{} is off already", machine.name);
    // The cable first: the namespace's kernel would go on answering and forwarding while its processes die.
    wire::set_cable(plan, machine, false)?;
    match plan.provider {
        Provider::Namespaces => {
            running.kill()?;
            wire::unplug(plan, machine)?;
            cgroup::remove(&machine.cgroup)
        }
        Provider::Kind | Provider::KindUpstream => kind::power_off(plan, machine),
    }
}

/// Switches a machine on that was powered off: an empty namespace, the old disk.
pub fn power_on(dirs: &Dirs, plan: &Plan, machine: &MachinePlan) -> Result<()> {
    let dir = dirs.machine(&machine.name);
    ensure!(
        Machine::new(&machine.name, dir.clone()).init().is_none(),
        "{} is on already",
        machine.name
    );
    if plan.provider.is_kind() {
        return kind::power_on(dirs, plan, machine);
    }
    let file = dir.join("machine.json");
    let spec: MachineSpec =
        serde_json::from_slice(&fs::read(&file).with_context(|| format!("{} was never on", machine.name))?)?;
    start(plan, machine, &spec)
}

/// Plugs a machine in, gives it what its firmware and CNI would, and boots it.
pub(super) fn start(plan: &Plan, machine: &MachinePlan, spec: &MachineSpec) -> Result<()> {
    wire::plug(plan, machine)?;
    let node = plan.clusters.iter().find_map(|c| {
        c.nodes
            .iter()
            .find(|n| n.machine.name == machine.name)
            .map(|n| (c, n))
    });
    if let Some((cluster, node)) = node {
        cgroup::create(&machine.cgroup)?;
        wire::route_pods(cluster, node)?;
    }
    Machine::boot(spec)?;
    Ok(())
}

//! A node, or a control plane's machine, as a scenario holds it.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::Output;
use crate::{
    lifecycle,
    node::{machine::Machine, process::Process},
    state::{Dirs, MachinePlan, Plan},
    wire::{self, Direction},
};

/// A machine of the arena.
#[derive(Clone)]
pub struct Node {
    dirs: Dirs,
    arena: Arc<Plan>,
    plan: MachinePlan,
}

impl Node {
    pub(super) fn new(dirs: Dirs, arena: Arc<Plan>, plan: MachinePlan) -> Self {
        Self { dirs, arena, plan }
    }

    /// Its host name, which is also the Node object's.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Its addresses and namespace.
    pub fn plan(&self) -> &MachinePlan {
        &self.plan
    }

    /// The machine itself: processes, commands in its namespaces.
    pub fn machine(&self) -> Machine {
        Machine::new(&self.plan.name, self.dirs.machine(&self.plan.name))
    }

    /// Whether it is switched on.
    pub fn is_on(&self) -> bool {
        self.machine().init().is_some()
    }

    /// Runs a command inside the machine.
    pub async fn exec(&self, command: &[&str]) -> Result<Output> {
        let command = self.machine().command(command)?;
        let output = tokio::process::Command::from(command)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        Ok(Output::from_process(
            &output.with_context(|| format!("run a command on {}", self.name()))?,
        ))
    }

    /// Processes whose program has that name, also those in pods.
    pub fn processes(&self, program: &str) -> Result<Vec<Process>> {
        Ok(self
            .machine()
            .processes()?
            .into_iter()
            .filter(|p| p.program == program)
            .collect())
    }

    /// Sends a signal to every process of that name. A daemon of the machine is started again half a second after it ends.
    pub fn signal(&self, program: &str, signal: Signal) -> Result<()> {
        let hit = self.machine().signal(program, signal)?;
        ensure!(hit > 0, "no {program} runs on {}", self.name());
        Ok(())
    }

    /// Kills every process of that name with SIGKILL.
    pub fn kill(&self, program: &str) -> Result<()> {
        self.signal(program, Signal::SIGKILL)
    }

    /// Stops (`true`) or continues every process: a machine that hangs while its kernel still answers.
    pub fn hang(&self, hung: bool) -> Result<()> {
        self.machine()
            .signal_all(if hung { Signal::SIGSTOP } else { Signal::SIGCONT })
    }

    /// Pulls its cable, or puts it back.
    pub fn cable(&self, connected: bool) -> Result<()> {
        wire::set_cable(&self.arena, &self.plan, connected)
    }

    /// Drops everything in one direction of its cable, as a broken transceiver does; `None` ends it.
    pub fn half_open(&self, dropped: Option<Direction>) -> Result<()> {
        wire::set_half_open(&self.arena, &self.plan, dropped)
    }

    /// Pulls its cable and puts it back, `times` over, each state for half a `period`. It ends plugged in.
    pub async fn flap(&self, period: Duration, times: u32) -> Result<()> {
        let mut ticks = tokio::time::interval(period / 2);
        for _ in 0..times {
            for connected in [false, true] {
                ticks.tick().await;
                self.cable(connected)?;
            }
        }
        Ok(())
    }

    /// Cuts its power: silent at once, kernel state lost, disk kept.
    pub async fn power_off(&self) -> Result<()> {
        let me = self.clone();
        tokio::task::spawn_blocking(move || lifecycle::power_off(&me.dirs, &me.arena, &me.plan)).await?
    }

    /// Switches it on again. Returns when it boots, not when it is Ready.
    pub async fn power_on(&self) -> Result<()> {
        let me = self.clone();
        tokio::task::spawn_blocking(move || lifecycle::power_on(&me.dirs, &me.arena, &me.plan)).await?
    }
}

//! Images into nodes: there is no registry, so each node's containerd is given the archives.

use std::{
    fs::File,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    image::{self, Image},
    node::{config::CONTAINERD_SOCKET, machine::Machine},
    provision::Toolbox,
    state::{ClusterPlan, Dirs, Plan},
};

/// How long containerd may take to come up on a busy machine.
const CONTAINERD_START: Duration = Duration::from_secs(60);

/// Gives a node the images it doesn't have yet; says how many those were. Waits for its containerd.
pub(super) fn import(machine: &Machine, images: &[Image]) -> Result<usize> {
    let have = wait_for_list(machine)?;
    let mut imported = 0;
    for image in images {
        let there = have
            .lines()
            .any(|line| line.starts_with(&format!("{} ", image.reference)) && line.contains(&image.digest));
        if there {
            continue;
        }
        let archive =
            File::open(&image.tar).with_context(|| format!("open image {}", image.tar.display()))?;
        let output = machine
            .command(&ctr(&["images", "import", "-"]))?
            .stdin(archive)
            .output()
            .context("run ctr")?;
        ensure!(
            output.status.success(),
            "import {}: {}",
            image.reference,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        imported += 1;
    }
    Ok(imported)
}

/// The ctr of the node's own containerd is on its search path.
fn ctr<'a>(args: &[&'a str]) -> Vec<&'a str> {
    ["ctr", "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"]
        .iter()
        .chain(args)
        .copied()
        .collect()
}

fn wait_for_list(machine: &Machine) -> Result<String> {
    let deadline = Instant::now() + CONTAINERD_START;
    loop {
        let socket_up = machine
            .command(&["test", "-S", CONTAINERD_SOCKET])?
            .status()?
            .success();
        if socket_up {
            let output = machine
                .command(&ctr(&["images", "ls"]))?
                .stdin(Stdio::null())
                .output()
                .context("run ctr")?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            if Instant::now() > deadline {
                bail!(
                    "containerd doesn't answer: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
        } else if Instant::now() > deadline {
            bail!("containerd didn't start in {CONTAINERD_START:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Makes the images of the workspace's daemons from what cargo built last and gives them to every node that is on.
/// Says how many imports that took.
pub fn load_workspace(dirs: &Dirs, plan: &Plan, toolbox: &Toolbox) -> Result<usize> {
    let images = image::workspace(toolbox)?;
    load(dirs, plan, &images)
}

/// Gives images to every node that is on, all nodes at once.
pub(super) fn load(dirs: &Dirs, plan: &Plan, images: &[Image]) -> Result<usize> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = plan
            .clusters
            .iter()
            .flat_map(ClusterPlan::kubernetes_nodes)
            .map(|node| Machine::new(&node.machine.name, dirs.machine(&node.machine.name)))
            .filter(|machine| machine.init().is_some())
            .map(|machine| scope.spawn(move || import(&machine, images)))
            .collect();
        threads
            .into_iter()
            .map(|t| {
                t.join()
                    .unwrap_or_else(|_| bail!("a thread that imports images panicked"))
            })
            .sum()
    })
}

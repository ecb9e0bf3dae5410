//! Removing an arena, whatever state it is in.

use std::fs;

use anyhow::{Context as _, Result, bail};

use super::Lock;
use crate::{
    kind,
    node::{cgroup, process},
    state::{Dirs, Plan},
    wire::netns,
};

/// What of an arena is still there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Process numbers.
    pub processes: Vec<i32>,
    /// Network namespaces.
    pub namespaces: Vec<String>,
    /// Mount points seen by the machine itself.
    pub mounts: Vec<String>,
    /// Cgroup directories.
    pub cgroups: Vec<String>,
    /// Files and directories.
    pub files: Vec<String>,
}

impl Leftovers {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Looks for all that `plan`'s arena could have left.
pub fn leftovers(dirs: &Dirs, plan: &Plan) -> Result<Leftovers> {
    let names = plan.namespaces();
    let processes = process::marked(&dirs.mark())
        .into_iter()
        .chain(process::in_namespaces(&names))
        .map(|p| p.pid)
        .collect();
    let mut cgroups = Vec::new();
    for name in plan.cgroups() {
        if cgroup::exists(&name)? {
            cgroups.push(name);
        }
    }
    Ok(Leftovers {
        processes,
        namespaces: names.into_iter().filter(|n| netns::path(n).exists()).collect(),
        mounts: mounts(dirs)?,
        cgroups,
        files: [dirs.state(), dirs.disk()]
            .iter()
            .filter(|p| p.exists())
            .map(|p| p.display().to_string())
            .collect(),
    })
}

/// Takes the arena down. Goes on past errors and names them all; says `false` when there was no arena.
///
/// Blocks; from async code call it in `spawn_blocking`.
pub fn down(name: &str) -> Result<bool> {
    let dirs = Dirs::new(name)?;
    if !dirs.state().exists() && !dirs.disk().exists() {
        return Ok(false);
    }
    let lock = Lock::take(&dirs)?;
    take_down(&dirs)?;
    lock.remove();
    Ok(true)
}

/// As [`down`], by the holder of the lock.
pub(super) fn take_down(dirs: &Dirs) -> Result<()> {
    let mut errors = Errors::default();
    // Without a readable plan the marks and the directories are still known.
    let plan = match dirs.load() {
        Ok(plan) => plan,
        Err(e) => {
            errors.attempt("read the plan", Err(e));
            None
        }
    };
    let namespaces = plan.as_ref().map(Plan::namespaces).unwrap_or_default();
    if let Some(plan) = &plan {
        errors.attempt("containers", kind::remove(plan));
    }
    errors.attempt("processes", process::kill_all(|| process::marked(&dirs.mark())));
    errors.attempt(
        "processes in namespaces",
        process::kill_all(|| process::in_namespaces(&namespaces)),
    );
    match mounts(dirs) {
        Ok(mounts) => {
            for mount in mounts.iter().rev() {
                let result =
                    nix::mount::umount2(mount.as_str(), nix::mount::MntFlags::MNT_DETACH).map_err(Into::into);
                errors.attempt(&format!("unmount {mount}"), result);
            }
        }
        Err(e) => errors.attempt("mounts", Err(e)),
    }
    for name in namespaces
        .iter()
        .chain(&plan.as_ref().and_then(Plan::borrowed_namespace))
    {
        errors.attempt(&format!("namespace {name}"), netns::delete(name));
    }
    for name in plan.iter().flat_map(Plan::cgroups) {
        errors.attempt(&format!("cgroup {name}"), cgroup::remove(&name));
    }
    // A child that the killed `up` had forked may have gone from fork to exec only now.
    errors.attempt(
        "late processes",
        process::kill_all(|| process::marked(&dirs.mark())),
    );
    if errors.0.is_empty() {
        for dir in [dirs.disk(), dirs.state()] {
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    errors.attempt(&format!("remove {}", dir.display()), Err(e.into()));
                }
                _ => {}
            }
        }
    }
    if !errors.0.is_empty() {
        // The plan stays, so that `down` can be repeated.
        bail!("the arena isn't wholly gone:\n  {}", errors.0.join("\n  "));
    }
    Ok(())
}

#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    fn attempt(&mut self, what: &str, result: Result<()>) {
        if let Err(e) = result {
            self.0.push(format!("{what}: {e:#}"));
        }
    }
}

/// Mount points of the machine itself below the arena's directories, outer ones first.
fn mounts(dirs: &Dirs) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mounts").context("read the mount table")?;
    let roots = [dirs.state(), dirs.disk()];
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|target| {
            roots
                .iter()
                .any(|root| std::path::Path::new(target).starts_with(root))
        })
        .map(str::to_owned)
        .collect())
}

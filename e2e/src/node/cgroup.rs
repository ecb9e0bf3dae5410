//! A machine's directory in the cgroup tree, below which kubelet and runc put the pods.
//!
//! Nothing of the machine's own tree is changed: the directories are new ones at the top of each hierarchy.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Mount points of all cgroup hierarchies of the given kind (`cgroup`, `cgroup2`).
fn mounted(wanted: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mount table")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (target, kind) = (fields.next()?, fields.next()?);
            (kind == wanted && target.starts_with("/sys/fs/cgroup")).then(|| PathBuf::from(target))
        })
        .collect())
}

/// Where kubelet wants its directory: every v1 hierarchy, or the v2 one where there are no v1 controllers.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let v1 = mounted("cgroup")?;
    let roots = if v1.is_empty() { mounted("cgroup2")? } else { v1 };
    if roots.is_empty() {
        bail!("no cgroup hierarchy is mounted below /sys/fs/cgroup; kubelet needs one");
    }
    Ok(roots)
}

/// Where directories can have come to be: runc makes them in a v2 hierarchy beside v1 ones too.
fn all_hierarchies() -> Result<Vec<PathBuf>> {
    Ok(mounted("cgroup")?
        .into_iter()
        .chain(mounted("cgroup2")?)
        .collect())
}

/// Creates the directory in each hierarchy.
pub fn create(name: &str) -> Result<()> {
    for root in hierarchies()? {
        let dir = root.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("create cgroup {}", dir.display()))?;
        // A v1 cpuset starts empty, and no process may enter it before it has processors and memory.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (root.join(file), dir.join(file));
            if from.exists() && fs::read_to_string(&to).is_ok_and(|have| have.trim().is_empty()) {
                fs::write(&to, fs::read_to_string(&from)?)
                    .with_context(|| format!("write {}", to.display()))?;
            }
        }
    }
    Ok(())
}

/// Removes the directory and all below it; its processes must have been killed. A missing one is no error.
pub fn remove(name: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    for root in all_hierarchies()? {
        let dir = root.join(name);
        while let Err(e) = remove_tree(&dir) {
            // Killed processes leave their cgroup a moment after they can no longer be seen.
            if e.kind() != io::ErrorKind::ResourceBusy || Instant::now() > deadline {
                return Err(e).with_context(|| format!("remove cgroup {}", dir.display()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// Whether any hierarchy has the directory.
pub fn exists(name: &str) -> Result<bool> {
    Ok(all_hierarchies()?.iter().any(|root| root.join(name).exists()))
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

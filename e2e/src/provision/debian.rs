//! What the arena takes from Debian.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::lock::Lock;
use super::process;
use super::progress::{Progress, say};

/// Packages that every arena needs.
pub(crate) const PACKAGES: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "containernetworking-plugins",
    "iproute2",
    "ipset",
    "iptables",
    "iputils-ping",
    "kmod",
    "mount",
    "nftables",
    "procps",
    "runc",
    "tcpdump",
    "util-linux",
];

/// How long another package manager may hold apt's locks.
const LOCK_PATIENCE: Duration = Duration::from_mins(5);

/// Installs those of `packages` that are missing, one process at a time. True when there was something to do.
pub(crate) fn ensure(packages: &[&str], lock: &Path) -> anyhow::Result<bool> {
    if missing(packages)?.is_empty() {
        return Ok(false);
    }
    let _lock = Lock::take(lock, "installing Debian packages")?;
    // Whoever held the lock may have installed them.
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(false);
    }
    let names = missing.join(" ");
    if !nix::unistd::geteuid().is_root() {
        bail!("Debian packages are missing and only root can install them: sudo apt-get install {names}");
    }
    say(&format!("installing Debian packages: {names}"));
    let mut progress = Progress::start("apt-get", 2);
    let result = apt(&["update"], None, &mut progress).and_then(|()| {
        progress.step("update");
        let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
        arguments.extend(&missing);
        apt(&arguments, None, &mut progress)
    });
    match result {
        Ok(()) => progress.finish(),
        Err(error) => {
            progress.abandon();
            return Err(error);
        }
    }
    Ok(true)
}

/// Downloads packages and unpacks them into the folder `target`, without installing them: nothing of them is started,
/// and nothing outside of `target` changes. apt checks each against its signed list. True when there was something to do.
pub(crate) fn unpack(packages: &[&str], target: &Path, lock: &Path) -> anyhow::Result<bool> {
    if target.is_dir() {
        return Ok(false);
    }
    let _lock = Lock::take(lock, "fetching Debian packages")?;
    // Whoever held the lock may have fetched them.
    if target.is_dir() {
        return Ok(true);
    }
    let folder = target.parent().context("a target is in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let scratch = tempfile::tempdir_in(folder)?;
    let root = scratch.path().join("root");
    let mut progress = Progress::start(&format!("fetching {}", packages.join(", ")), 2);
    let fetched = apt(&["update"], None, &mut progress).and_then(|()| {
        progress.step("update");
        let mut arguments = vec!["download"];
        arguments.extend(packages);
        apt(&arguments, Some(scratch.path()), &mut progress)
    });
    if let Err(error) = fetched {
        progress.abandon();
        return Err(error);
    }
    for entry in std::fs::read_dir(scratch.path())? {
        let package = entry?.path();
        if package.extension().is_some_and(|e| e == "deb") {
            let mut command = Command::new("dpkg-deb");
            let finished = process::run(command.arg("--extract").arg(&package).arg(&root), |_| ())?;
            if !finished.status.success() {
                bail!(
                    "dpkg-deb --extract {}: {}",
                    package.display(),
                    finished.tail.join("\n")
                );
            }
        }
    }
    std::fs::rename(&root, target)
        .with_context(|| format!("cannot move packages to {}", target.display()))?;
    progress.finish();
    Ok(true)
}

/// Those of `packages` that dpkg doesn't hold as installed.
fn missing<'a>(packages: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status} ${Package}\n"])
        .args(packages)
        .output()
        .context(
            "the arena takes its system programs from Debian packages, and dpkg-query can't be run here",
        )?;
    // Its exit status is 1 as soon as one package is unknown: only what it printed counts.
    Ok(not_installed(packages, &String::from_utf8_lossy(&output.stdout)))
}

fn not_installed<'a>(packages: &[&'a str], listing: &str) -> Vec<&'a str> {
    let installed: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    packages
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect()
}

/// Runs apt-get in `folder`, waiting while somebody else holds one of its locks.
fn apt(arguments: &[&str], folder: Option<&Path>, progress: &mut Progress) -> anyhow::Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let mut command = Command::new("apt-get");
        command
            .args([
                "--quiet=2",
                "--option=DPkg::Lock::Timeout=300",
                "--option=Acquire::Retries=3",
            ])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        if let Some(folder) = folder {
            command.current_dir(folder);
        }
        let finished = process::run(&mut command, |line| progress.show(line.unwrap_or("working")))?;
        if finished.status.success() {
            return Ok(());
        }
        let tail = finished.tail.join("\n");
        if !is_lock_message(&tail) || Instant::now() >= deadline {
            bail!(
                "apt-get {} failed ({}):\n{tail}\nCheck the network and /etc/apt/sources.list, or run it by hand and start again",
                arguments.join(" "),
                finished.status
            );
        }
        progress.show("another package manager holds apt's lock");
        // The lock has no event to wait for: `apt-get update` knows no lock timeout of its own.
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn is_lock_message(text: &str) -> bool {
    ["Could not get lock", "Unable to lock", "is held by process"]
        .iter()
        .any(|phrase| text.contains(phrase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let listing = "installed runc\nconfig-files ipset\nnot-installed nftables\ninstalled iproute2\n";
        assert_eq!(
            not_installed(&["runc", "ipset", "nftables", "conntrack", "iproute2"], listing),
            ["ipset", "nftables", "conntrack"]
        );
    }

    #[test]
    fn dpkg_is_asked_for_real() {
        assert_eq!(
            missing(&["dpkg", "no-such-package"]).unwrap(),
            ["no-such-package"]
        );
    }

    #[test]
    fn lock_messages_are_told_from_failures() {
        assert!(is_lock_message(
            "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"
        ));
        assert!(is_lock_message("E: Unable to lock directory /var/lib/apt/lists/"));
        assert!(!is_lock_message("E: Unable to locate package x"));
    }
}

//! Named network namespaces: made and deleted with `ip netns`, entered by a thread or a child process.

use std::{
    fs::{self, File},
    io::Write as _,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps the named namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Creates a namespace with its loopback device up.
pub fn create(name: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "add", name]))?;
    run(Command::new("ip").args(["-n", name, "link", "set", "lo", "up"]))
}

/// Deletes the name; the namespace itself goes with its last process. A missing one is no error.
pub fn delete(name: &str) -> Result<()> {
    if path(name).exists() {
        run(Command::new("ip").args(["netns", "del", name]))?;
    }
    Ok(())
}

/// A command that runs in the namespace. It keeps this process's mounts, so /sys shows the machine's own devices.
pub fn command(name: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
    let ns = File::open(path(name)).with_context(|| format!("network namespace {name}"))?;
    let mut command = Command::new(program);
    // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || setns(ns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(Into::into));
    }
    Ok(command)
}

/// Runs `work` on a thread of its own inside the namespace.
///
/// The thread ends afterwards, so nothing else can ever run in the wrong namespace.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let ns = File::open(path(name)).with_context(|| format!("network namespace {name}"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(ns.as_fd(), CloneFlags::CLONE_NEWNET).with_context(|| format!("enter namespace {name}"))?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|_| bail!("a thread in namespace {name} panicked"))
    })
}

/// Sets sysctls below `net/`, written as paths (interface names may hold dots). Keys this kernel doesn't have are skipped.
pub fn sysctl(name: &str, settings: &[(&str, &str)]) -> Result<()> {
    inside(name, || {
        for (key, value) in settings {
            let file = Path::new("/proc/sys/net").join(key);
            if file.exists() {
                fs::write(&file, value)
                    .with_context(|| format!("set {} to {value} in {name}", file.display()))?;
            }
        }
        Ok(())
    })
}

/// Runs several `ip` commands in one process; stops at the first that fails.
pub fn ip_batch(name: &str, lines: &[String]) -> Result<()> {
    feed(
        Command::new("ip").args(["-n", name, "-batch", "-"]),
        &(lines.join("\n") + "\n"),
    )
}

/// Loads an nft file inside the namespace, as one transaction.
pub fn nft(name: &str, rules: &str) -> Result<()> {
    feed(command(name, "nft")?.args(["-f", "-"]), rules)
}

/// Runs a command to its end; its standard error is the error message.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}\n{input}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

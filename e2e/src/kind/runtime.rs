//! runc on a machine that may do less than container runtimes ask for.
//!
//! `docker run --privileged` asks for every capability there is, and Docker for resource limits and a protection from
//! the kernel's out-of-memory killer. On a machine without CAP_SYS_RESOURCE the kernel refuses all three and runc gives
//! up. So they are taken out of what runc is told, as far as this machine can't grant them.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Names of the kernel's capabilities by number (linux/capability.h), without `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Corrects what runc is about to be told and becomes it.
///
/// # Errors
/// When a file that `arguments` name can't be read or written, or runc can't be run.
pub fn exec(runc: &Path, arguments: &[OsString]) -> Result<Infallible> {
    let granted = granted()?;
    for file in told(arguments) {
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let mut value: Value =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))?;
        reduce(&mut value, granted);
        fs::write(&file, serde_json::to_vec(&value)?).with_context(|| format!("write {}", file.display()))?;
    }
    let error = Command::new(runc).args(arguments).exec();
    Err(error).with_context(|| format!("run {}", runc.display()))
}

/// The files that say what a container, or a further process of one, may do.
fn told(arguments: &[OsString]) -> Vec<PathBuf> {
    let pairs = arguments.windows(2);
    pairs
        .filter_map(|pair| match pair[0].to_str() {
            Some("--bundle") => Some(PathBuf::from(&pair[1]).join("config.json")),
            Some("--process") => Some(PathBuf::from(&pair[1])),
            _ => None,
        })
        .filter(|file| file.is_file())
        .collect()
}

/// The capabilities that a process of this machine can have, a bit each.
fn granted() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("read this process's own capabilities")?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let set = set.context("the kernel names no bounding set")?;
    u64::from_str_radix(set.trim(), 16).with_context(|| format!("bounding set {set}"))
}

/// Takes out of a bundle's configuration, or of a process's, what isn't granted.
fn reduce(told: &mut Value, granted: u64) {
    let has = |name: &str| {
        let bit = CAPABILITIES
            .iter()
            .position(|known| name.strip_prefix("CAP_") == Some(known));
        // One that is newer than this list is the kernel's to judge.
        bit.is_none_or(|bit| granted >> bit & 1 == 1)
    };
    let process = if told.get("process").is_some() {
        &mut told["process"]
    } else {
        told
    };
    for set in process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(|sets| sets.values_mut())
        .filter_map(Value::as_array_mut)
    {
        set.retain(|name| name.as_str().is_none_or(has));
    }
    if !has("CAP_SYS_RESOURCE")
        && let Some(process) = process.as_object_mut()
    {
        process.remove("oomScoreAdj");
        process.remove("rlimits");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: u64 = (1 << 41) - 1;

    fn told_to_runc() -> Value {
        json!({"process": {
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_NEWER"], "effective": ["CAP_SYS_RESOURCE"]},
            "oomScoreAdj": -500,
            "rlimits": [{"type": "RLIMIT_NOFILE"}],
            "args": ["/sbin/init"],
        }})
    }

    #[test]
    fn a_machine_that_may_everything_changes_nothing() {
        let mut value = told_to_runc();
        reduce(&mut value, ALL);
        assert_eq!(value, told_to_runc());
    }

    #[test]
    fn what_is_not_granted_is_not_asked_for() {
        let mut value = told_to_runc();
        reduce(&mut value, ALL & !(1 << 24));
        let expected = json!({"process": {
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_NEWER"], "effective": []},
            "args": ["/sbin/init"],
        }});
        assert_eq!(value, expected);
        // `exec` is told the process alone.
        let mut value = told_to_runc()["process"].clone();
        reduce(&mut value, ALL & !(1 << 24));
        assert_eq!(value, expected["process"]);
    }

    #[test]
    fn the_files_are_found_among_the_arguments() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        let arguments = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let bundle = dir.path().to_str().unwrap();
        let create = arguments(&[
            "--log-format",
            "json",
            "create",
            "--bundle",
            bundle,
            "--pid-file",
            "p",
            "id",
        ]);
        assert_eq!(told(&create), [dir.path().join("config.json")]);
        assert!(told(&arguments(&["state", "id"])).is_empty());
    }
}

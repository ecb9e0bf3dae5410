//! Kernel settings: plain files below /proc/sys, which follow the network namespace of the thread.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::step::{Action, Step};
use crate::{Error, Operation, Result};

fn path(name: &str) -> Result<PathBuf> {
    // The names come compiled from cluster objects; none of them may leave the tree.
    if name
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err(Error::Impossible(format!("{name} is no kernel setting")));
    }
    Ok(root().join(name))
}

/// A container's own /proc/sys is read-only. Its deployment mounts the host's elsewhere, writable, and names the
/// place in `SPILLWAY_PROC_SYS`; below `net` it shows the namespace of whoever reads it all the same.
fn root() -> PathBuf {
    std::env::var_os("SPILLWAY_PROC_SYS").map_or_else(|| PathBuf::from("/proc/sys"), PathBuf::from)
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Compares settings; one that can't be read counts as different, and writing tells why.
pub(super) fn steps(wanted: &BTreeMap<String, String>) -> Vec<Step> {
    wanted
        .iter()
        .filter(|(name, value)| {
            let held = path(name).ok().and_then(|p| fs::read_to_string(p).ok());
            held.is_none_or(|held| words(&held) != words(value))
        })
        .map(|(name, value)| Step {
            operation: Operation::Change,
            object: format!("sysctl {name} = {value}"),
            action: Action::Sysctl(name.clone(), value.clone()),
        })
        .collect()
}

/// Writes one setting.
pub(super) fn write(name: &str, value: &str) -> Result<()> {
    fs::write(path(name)?, value).map_err(|source| Error::Sysctl {
        path: name.into(),
        value: value.into(),
        source,
    })
}

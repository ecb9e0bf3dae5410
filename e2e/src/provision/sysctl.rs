//! Kernel limits that several clusters on one machine reach.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::progress::say;

/// inotify instances that one user may hold. A node takes 9, a control plane 8, and a kind node up to 27; the kernel's
/// default is 128 for all of root's processes together, and beyond it programs fail with "too many open files".
const INOTIFY_INSTANCES: u32 = 1024;

const INOTIFY_FILE: &str = "/proc/sys/fs/inotify/max_user_instances";

/// Raises what is too low. True when there was something to do.
pub(crate) fn ensure() -> anyhow::Result<bool> {
    raise(Path::new(INOTIFY_FILE), INOTIFY_INSTANCES)
}

fn raise(file: &Path, wanted: u32) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let Ok(current) = text.trim().parse::<u32>() else {
        bail!("{} holds {:?}, which is no number", file.display(), text.trim());
    };
    if current >= wanted {
        return Ok(false);
    }
    std::fs::write(file, wanted.to_string()).with_context(|| {
        format!(
            "{} is {current}, too low for several clusters; raise it as root to {wanted}",
            file.display()
        )
    })?;
    say(&format!(
        "raised {} from {current} to {wanted} until the next reboot",
        file.display()
    ));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_but_never_lowered() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("limit");
        std::fs::write(&file, "128\n").unwrap();
        assert!(raise(&file, 1024).unwrap());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1024");
        std::fs::write(&file, "8192\n").unwrap();
        assert!(!raise(&file, 1024).unwrap());
        std::fs::write(&file, "max\n").unwrap();
        assert!(raise(&file, 1024).is_err());
    }
}

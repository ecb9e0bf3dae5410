//! A lock between processes, held while one of them fills a place of the cache.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::Context as _;

use super::progress::say;

/// Holds the lock until dropped; the kernel drops it when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock `path`; when somebody else has it, says who waits for `what` and waits.
    pub(crate) fn take(path: &Path, what: &str) -> anyhow::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        let locked = match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                say(&format!("another process is at {what}; waiting for it"));
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
        };
        locked.with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_second_holder_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/lock");
        let first = Lock::take(&path, "a test").unwrap();
        let (sender, receiver) = mpsc::channel();
        let second_path = path.clone();
        let second = std::thread::spawn(move || {
            let lock = Lock::take(&second_path, "a test").unwrap();
            sender.send(()).unwrap();
            drop(lock);
        });
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err());
        drop(first);
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        second.join().unwrap();
    }
}

//! The life of an arena: up, images, power, down.
//!
//! ```text
//! up ── wire::build ── outside server ── forwarder
//!    └─ every cluster at once: control plane ── nodes ── images ── Ready
//! up with kind ── Docker ── node image ── router, outside ── kind, every cluster at once ── nodes adopted ── as above
//! down: processes by mark → by namespace → mounts → namespaces → cgroups → files, past every error
//! ```
//! The plan is on disk before anything else is made, and each process is marked before it runs, so `down` needs
//! nothing from the `up` it cleans up after.

mod down;
pub mod forward;
mod images;
mod kind;
mod power;
mod up;

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context as _, Result};

pub use down::{Leftovers, down, leftovers};
pub use images::load_workspace;
pub use power::{power_off, power_on};
pub use up::{Built, up};

use crate::state::Dirs;

/// Says what happens and how long after the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    pub(crate) fn say(self, line: &str) {
        eprintln!("{:6.1}s  {line}", self.started.elapsed().as_secs_f32());
    }
}

/// Held by whoever changes the arena; the kernel lets go of it when the process dies.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for whoever has it.
    fn take(dirs: &Dirs) -> Result<Self> {
        let path = dirs.lock();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .with_context(|| format!("open {}", path.display()))?;
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                eprintln!(
                    "another command is at work on this arena; waiting for it ({})",
                    path.display()
                );
                file.lock()?;
            }
            // The last holder may have removed the file that this one waited for.
            let current = fs::metadata(&path).map(|m| m.ino());
            if current.is_ok_and(|ino| file.metadata().is_ok_and(|m| m.ino() == ino)) {
                return Ok(Self { path, _file: file });
            }
        }
    }

    /// Removes the lock's file, with the arena.
    fn remove(self) {
        let _somebody_else_may_have = fs::remove_file(&self.path);
    }
}

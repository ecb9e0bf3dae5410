//! The life of an arena: up, images, power, down.
//!
//! ```text
//! up ── wire::build ── outside server ── forwarder
//!    └─ every cluster at once: control plane ── nodes ── images ── Ready
//! down: processes by mark → by namespace → mounts → namespaces → cgroups → files, past every error
//! ```
//! The plan is on disk before anything else is made, and each process is marked before it runs, so `down` needs
//! nothing from the `up` it cleans up after.

mod down;
pub mod forward;
mod images;
mod power;
mod up;

use std::time::Instant;

use anyhow::Result;

pub use down::{Leftovers, down, leftovers};
pub use images::load_workspace;
pub use power::{power_off, power_on};
pub use up::{Built, up};

use crate::{provision::Lock, state::Dirs};

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

/// Held by whoever changes the arena.
fn lock(dirs: &Dirs, what: &str) -> Result<Lock> {
    Lock::take(&dirs.lock(), what)
}

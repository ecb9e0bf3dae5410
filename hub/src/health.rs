//! When a replica is alive, and when it is ready.
//!
//! * **Alive** while resolving, which is nothing but computing, doesn't take for ever. Calls to the API server aren't
//!   looked at: killing the hub doesn't bring that back.
//! * **Ready** once its copies of all objects are in sync and it serves members. Whether it leads has nothing to do with
//!   that: every replica serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spillway_telemetry::{Health, Watchdog};

/// A thousand members with two thousand policies take seconds.
const STUCK: Duration = Duration::from_secs(300);

/// What the probes answer from. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) watchdog: Watchdog,
    serves: Arc<AtomicBool>,
}

impl Standing {
    /// Alive, and not ready.
    pub(crate) fn new() -> Self {
        Self {
            watchdog: Watchdog::new("resolution of plans", STUCK),
            serves: Arc::default(),
        }
    }

    /// Members are served, or no longer.
    pub(crate) fn serves(&self, serves: bool) {
        self.serves.store(serves, Ordering::Release);
    }

    /// The checks. `unsynced` says which copies aren't in sync.
    pub(crate) fn health(&self, unsynced: impl Fn() -> Vec<&'static str> + Send + Sync + 'static) -> Health {
        let (alive, serves) = (self.watchdog.clone(), self.serves.clone());
        Health::new()
            .live(move || alive.check())
            .ready(move || {
                let missing = unsynced();
                if missing.is_empty() {
                    Ok(())
                } else {
                    Err(format!("not in sync yet: {}", missing.join(", ")))
                }
            })
            .ready(move || {
                if serves.load(Ordering::Acquire) {
                    Ok(())
                } else {
                    Err("members aren't served".into())
                }
            })
    }
}

//! When this agent is alive, and when it is ready.
//!
//! * **Alive** while the apply loop isn't stuck in its work. That is compiling and this node's own kernel: an API server
//!   that is away never makes it late.
//! * **Ready** once the kernel holds what the plan asks for, or there is no plan to program. A rollout stops at the first
//!   node whose kernel refuses.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spillway_telemetry::{Health, Watchdog};

/// The slowest step is one run of `nft`, which is given up after a minute; a round takes some of them.
const STUCK: Duration = Duration::from_secs(300);

/// What the probes answer from. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) watchdog: Watchdog,
    /// What isn't as it should be.
    unready: Arc<Mutex<Option<String>>>,
}

impl Standing {
    /// Alive, and not ready.
    pub(crate) fn new() -> Self {
        Self {
            watchdog: Watchdog::new("apply loop", STUCK),
            unready: Arc::new(Mutex::new(Some("nothing was programmed yet".into()))),
        }
    }

    /// How the last round ended: with what isn't as it should be, if anything.
    pub(crate) fn set(&self, unready: Option<String>) {
        *self.unready.lock().unwrap_or_else(PoisonError::into_inner) = unready;
    }

    fn unready(&self) -> Option<String> {
        self.unready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The checks.
    pub(crate) fn health(&self) -> Health {
        let (alive, ready) = (self.watchdog.clone(), self.clone());
        Health::new()
            .live(move || alive.check())
            .ready(move || ready.unready().map_or(Ok(()), Err))
    }
}

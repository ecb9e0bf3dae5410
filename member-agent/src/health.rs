//! When this agent is alive, and when it is ready.
//!
//! * **Alive** while the process answers: a loop that ends or panics ends the process, and whatever else keeps it
//!   waiting is the API server or the hub, which killing it doesn't bring back.
//! * **Ready** once its copies are in sync and it knows the plan that is in place. Not: once the hub was reached. A
//!   member works on without the hub, and an upgrade of the agent must not wait for it; whether it is connected and what
//!   its nodes have programmed is said by the `HubConnection` and by metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spillway_telemetry::Health;

/// Whether a copy was read.
pub(crate) type Synced = Box<dyn Fn() -> bool + Send + Sync>;

/// Health that is ready once each of `synced` answers yes, and `loaded` was set.
pub(crate) fn health(synced: Vec<(&'static str, Synced)>, loaded: Arc<AtomicBool>) -> Health {
    Health::new()
        .ready(move || {
            let missing: Vec<_> = synced
                .iter()
                .filter(|(_, is)| !is())
                .map(|(name, _)| *name)
                .collect();
            if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("waiting for: {}", missing.join(", ")))
            }
        })
        .ready(move || {
            if loaded.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err("waiting for: the plan in place".into())
            }
        })
}

//! What `/healthz` and `/readyz` answer from.
//!
//! * **Alive**: the loop that only this process can go round goes round. Killing the process must help, so nothing
//!   counts that lies elsewhere: no API server, no hub.
//! * **Ready**: it does for others what it is there for. Each daemon says what that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One thing that must be so; says what is missing where it isn't.
pub type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What must be so.
#[derive(Default)]
pub struct Health {
    live: Vec<Check>,
    ready: Vec<Check>,
}

impl Health {
    /// Nothing must be so yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Without this the process is to be killed.
    #[must_use]
    pub fn live(mut self, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.live.push(Box::new(check));
        self
    }

    /// Without this it isn't ready.
    #[must_use]
    pub fn ready(mut self, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.ready.push(Box::new(check));
        self
    }

    /// What keeps the process from being alive.
    pub(crate) fn dead(&self) -> Vec<String> {
        missing(&self.live)
    }

    /// What keeps it from being ready.
    pub(crate) fn unready(&self) -> Vec<String> {
        missing(&self.ready)
    }
}

fn missing(checks: &[Check]) -> Vec<String> {
    checks.iter().filter_map(|check| check().err()).collect()
}

/// Notices that a loop got stuck in its work. A loop that waits for something to do isn't stuck, however long it
/// waits, so that watching costs no wake-up. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watchdog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    what: &'static str,
    limit: Duration,
    started: Instant,
    /// Milliseconds after `started` at which the work began, plus one; 0 while there is none.
    since: AtomicU64,
}

/// Some work under way.
#[derive(Debug)]
pub struct Working<'a>(&'a Inner);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.since.store(0, Ordering::Relaxed);
    }
}

impl Watchdog {
    /// For a loop of that name, whose work never takes longer than `limit`.
    pub fn new(what: &'static str, limit: Duration) -> Self {
        Self(Arc::new(Inner {
            what,
            limit,
            started: Instant::now(),
            since: AtomicU64::new(0),
        }))
    }

    /// The work begins, and ends when the answer is dropped.
    #[must_use]
    pub fn work(&self) -> Working<'_> {
        self.0.since.store(self.now() + 1, Ordering::Relaxed);
        Working(&self.0)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// Fails where the work has taken too long.
    pub fn check(&self) -> Result<(), String> {
        let since = self.0.since.load(Ordering::Relaxed);
        if since == 0 {
            return Ok(());
        }
        let busy = Duration::from_millis((self.now() + 1).saturating_sub(since));
        if busy <= self.0.limit {
            return Ok(());
        }
        Err(format!(
            "the {} has been stuck for {} s",
            self.0.what,
            busy.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_works_too_long_is_stuck_and_who_rests_never_is() {
        let dog = Watchdog::new("loop", Duration::ZERO);
        assert_eq!(dog.check(), Ok(()));
        let working = dog.work();
        let stuck = (0..1_000).find_map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            dog.check().err()
        });
        assert!(stuck.expect("stuck").contains("loop"));
        drop(working);
        assert_eq!(dog.check(), Ok(()));
        let patient = Watchdog::new("loop", Duration::from_secs(60));
        let _working = patient.work();
        assert_eq!(patient.check(), Ok(()));
    }

    #[test]
    fn what_is_missing_is_named() {
        let health = Health::new()
            .ready(|| Ok(()))
            .ready(|| Err("nodes".into()))
            .live(|| Ok(()));
        assert_eq!(health.unready(), ["nodes"]);
        assert!(health.dead().is_empty());
    }
}

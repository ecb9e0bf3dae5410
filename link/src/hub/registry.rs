//! One live stream a member: a newer one ends the older, and begins only when that has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(super) struct Registry {
    members: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Ends the newest stream.
    cancel: CancellationToken,
    /// Held by the live stream.
    gate: Arc<tokio::sync::Mutex<()>>,
}

/// The right to be a member's stream, once the gate is passed and until `superseded`.
pub(super) struct Place {
    pub(super) superseded: CancellationToken,
    gate: Arc<tokio::sync::Mutex<()>>,
}

impl Place {
    /// Waits for the older stream to end.
    pub(super) async fn enter(&self) -> OwnedMutexGuard<()> {
        self.gate.clone().lock_owned().await
    }
}

impl Registry {
    /// Claims the member's place for a new stream.
    pub(super) fn claim(&self, member: &str) -> Place {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let superseded = CancellationToken::new();
        let entry = members.entry(member.to_owned()).or_default();
        std::mem::replace(&mut entry.cancel, superseded.clone()).cancel();
        Place {
            superseded,
            gate: entry.gate.clone(),
        }
    }

    /// Gives the place up.
    pub(super) fn release(&self, member: &str, place: Place, entered: Option<OwnedMutexGuard<()>>) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        drop((place, entered));
        // Where another stream waits, or an older one hasn't ended yet, the gate must stay the same.
        if members
            .get(member)
            .is_some_and(|e| Arc::strong_count(&e.gate) == 1)
        {
            members.remove(member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_comes_waits_for_the_live_one_even_after_one_that_gave_up_waiting() {
        let registry = Registry::default();
        let first = registry.claim("m");
        let entered = first.enter().await;
        let second = registry.claim("m");
        assert!(first.superseded.is_cancelled() && !second.superseded.is_cancelled());
        registry.release("m", second, None);
        let third = registry.claim("m");
        assert!(third.gate.try_lock().is_err(), "the first is still there");
        registry.release("m", first, Some(entered));
        let entered = third.enter().await;
        registry.release("m", third, Some(entered));
        assert!(registry.members.lock().expect("not poisoned").is_empty());
    }
}

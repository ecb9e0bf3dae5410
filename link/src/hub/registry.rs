//! One live stream a member: a newer one ends the older, and begins only when that has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(super) struct Registry {
    members: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    newest: u64,
    cancel: CancellationToken,
    gate: Arc<tokio::sync::Mutex<()>>,
}

/// The right to be a member's stream, once `gate` is passed and until `superseded`.
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
    /// Claims the member's place for the stream with this id.
    pub(super) fn claim(&self, member: &str, id: u64) -> Place {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let superseded = CancellationToken::new();
        let gate = match members.get_mut(member) {
            Some(entry) => {
                entry.cancel.cancel();
                entry.newest = id;
                entry.cancel = superseded.clone();
                entry.gate.clone()
            }
            None => {
                let gate = Arc::new(tokio::sync::Mutex::new(()));
                let entry = Entry {
                    newest: id,
                    cancel: superseded.clone(),
                    gate: gate.clone(),
                };
                members.insert(member.to_owned(), entry);
                gate
            }
        };
        Place { superseded, gate }
    }

    /// Gives the place up, unless a newer stream has it.
    pub(super) fn release(&self, member: &str, id: u64) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.get(member).is_some_and(|e| e.newest == id) {
            members.remove(member);
        }
    }
}

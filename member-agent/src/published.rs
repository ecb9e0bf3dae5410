//! A value that one loop sets and others read and wait for.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

/// A shared value with change notices. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Published<T> {
    value: Arc<RwLock<T>>,
    version: watch::Sender<u64>,
}

impl<T: Clone + PartialEq> Published<T> {
    /// Starts with `value`.
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Arc::new(RwLock::new(value)),
            version: watch::Sender::new(0),
        }
    }

    /// The value now.
    pub(crate) fn get(&self) -> T {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Edits the value; only a real change is a change.
    pub(crate) fn edit(&self, f: impl FnOnce(&mut T)) {
        let mut value = self.value.write().unwrap_or_else(PoisonError::into_inner);
        let before = value.clone();
        f(&mut value);
        let changed = before != *value;
        drop(value);
        if changed {
            self.version.send_modify(|v| *v += 1);
        }
    }

    /// Says when the value changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

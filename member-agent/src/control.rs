//! The loop that every controller here is: reconcile, wait for a change, again.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use futures::future::select_all;
use tokio::sync::watch;

use crate::backoff::Backoff;

/// Wakes a loop when any of several things changed.
pub(crate) struct Wake(Vec<watch::Receiver<u64>>);

impl Wake {
    /// Wakes on changes of any of `sources`.
    pub(crate) fn on(sources: impl IntoIterator<Item = watch::Receiver<u64>>) -> Self {
        Self(sources.into_iter().collect())
    }

    /// Waits for a change that came after the last call. Several changes wake once.
    pub(crate) async fn changed(&mut self) {
        let (closed, _, _) = select_all(self.0.iter_mut().map(|r| Box::pin(r.changed()))).await;
        if closed.is_err() {
            // A source is gone for good only while the process ends.
            std::future::pending::<()>().await;
        }
        for source in &mut self.0 {
            source.mark_unchanged();
        }
    }
}

/// Calls `reconcile` now, after every change, and after a failure with growing waits of at most 5 s.
pub(crate) async fn run<F, E>(name: &'static str, mut wake: Wake, mut reconcile: impl FnMut() -> F)
where
    F: Future<Output = Result<(), E>>,
    E: Display,
{
    let mut backoff = Backoff::up_to(Duration::from_secs(5));
    let mut failing = false;
    loop {
        match reconcile().await {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(controller = name, "works again");
                }
                backoff.reset();
                wake.changed().await;
            }
            Err(error) => {
                if std::mem::replace(&mut failing, true) {
                    tracing::debug!(controller = name, %error, "still fails");
                } else {
                    tracing::warn!(controller = name, %error, "fails; trying again");
                }
                let wait = backoff.wait();
                // The wait runs out even where changes keep coming: they must not turn into a hot loop.
                tokio::time::sleep(wait).await;
            }
        }
    }
}

//! Leaving: the hub is told, the nodes take everything of ours out of their kernels, the identity is forgotten.

use std::time::Duration;

use spillway_crds::SINGLETON;
use spillway_crds::member::HubConnection;

use crate::backoff::Backoff;
use crate::identity::IdentityStore;
use crate::mirror::Mirror;
use crate::plan::Store;
use crate::uplink::{ConnectionState, DisconnectReason, LinkHandle};

/// Longest time that a hub has to answer before the nodes are torn down without its answer.
const FAREWELL_LIMIT: Duration = Duration::from_secs(10);

/// Waits until the HubConnection says `leaving`, takes leave, and returns once the hub agreed. While it
/// doesn't answer, the nodes are torn down and the hub is asked again. Goes back to waiting where
/// `leaving` is taken back.
pub(crate) async fn when_asked(
    hub: &Mirror<HubConnection>,
    link: &LinkHandle,
    store: &Store,
    identities: &IdentityStore,
) {
    let mut changes = hub.changes();
    let leaving = || hub.get(SINGLETON).is_some_and(|c| c.spec.leaving);
    let mut backoff = Backoff::up_to(Duration::from_secs(5));
    loop {
        if !leaving() {
            backoff.reset();
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            continue;
        }
        tracing::info!("leaving: telling the hub");
        let answer = link.leave(FAREWELL_LIMIT).await;
        // A hub that let the member go before its answer was lost doesn't know the certificate any more.
        let gone = matches!(
            &*link.state().borrow(),
            ConnectionState::Left
                | ConnectionState::Connecting {
                    reason: Some(DisconnectReason::Revoked(_))
                }
        );
        if let Err(error) = store.set_teardown(true).await {
            tracing::error!(%error, "the nodes can't be asked to tear down");
        }
        match answer {
            Err(error) if !gone => {
                tracing::warn!(%error, "the hub hasn't let this member go yet; asking again");
            }
            _ => {
                if let Err(error) = identities.delete().await {
                    tracing::warn!(%error, "the identity, now worthless, can't be deleted");
                }
                tracing::info!("the hub has let this member go");
                return;
            }
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// Leaves without a hub to tell: nothing was ever joined, or the identity is gone already.
pub(crate) async fn alone(store: &Store) {
    if store.contents().head.is_none() {
        return;
    }
    if let Err(error) = store.set_teardown(true).await {
        tracing::error!(%error, "the nodes can't be asked to tear down");
    }
}

//! `/healthz` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

/// One thing that must be so before the agent is ready: its name, and whether it is.
pub(crate) type Check = (&'static str, Box<dyn Fn() -> bool + Send + Sync>);

/// Opens the port; where the host has no IPv6, the wildcard means IPv4 alone.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(address).await {
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
            TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], address.port()))).await
        }
        other => other,
    };
    listener.with_context(|| format!("the health port {address} can't be opened"))
}

/// Answers for ever: `/healthz` while the process runs (a broken loop ends it), `/readyz` once every check
/// holds. Neither depends on the hub, without which a member works on.
pub(crate) async fn serve(listener: TcpListener, checks: Vec<Check>) {
    let checks = Arc::new(checks);
    let ready = move || {
        let missing = missing(&checks);
        async move {
            if missing.is_empty() {
                (StatusCode::OK, "ready\n".to_owned())
            } else {
                let list = missing.join(", ");
                (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {list}\n"))
            }
        }
    };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "the health port failed");
    }
}

fn missing(checks: &[Check]) -> Vec<&'static str> {
    checks
        .iter()
        .filter(|(_, holds)| !holds())
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let checks: Vec<Check> = vec![("nodes", Box::new(|| true)), ("plan", Box::new(|| false))];
        assert_eq!(missing(&checks), ["plan"]);
    }
}

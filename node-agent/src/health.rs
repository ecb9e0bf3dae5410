//! `/healthz` and `/readyz` on the node's own loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

/// The loop goes round at least once a minute; this long without is stuck.
const STUCK: Duration = Duration::from_secs(300);

/// What the probes answer from. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    /// Milliseconds after `started` at which the loop last went round.
    beat: AtomicU64,
    ready: AtomicBool,
}

impl Health {
    /// Healthy, not ready.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            started: Instant::now(),
            beat: AtomicU64::new(0),
            ready: AtomicBool::new(false),
        }))
    }

    /// The loop goes round.
    pub(crate) fn beat(&self) {
        let now = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.beat.store(now, Ordering::Relaxed);
    }

    /// Whether the kernel holds what it should, as far as this agent knows.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Relaxed);
    }

    fn stuck(&self) -> bool {
        let last = Duration::from_millis(self.0.beat.load(Ordering::Relaxed));
        self.0.started.elapsed().saturating_sub(last) > STUCK
    }
}

async fn healthz(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.stuck() {
        (StatusCode::SERVICE_UNAVAILABLE, "the apply loop is stuck\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn readyz(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.0.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the kernel isn't programmed\n")
    }
}

/// Serves both for ever. The port is the whole node's: if somebody else has it, the agent works on without.
pub(crate) async fn serve(listen: SocketAddr, health: Health) {
    let app = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health);
    let served = async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        axum::serve(listener, app).await
    };
    if let Err(error) = served.await {
        tracing::error!(%listen, %error, "health can't be served");
    }
}

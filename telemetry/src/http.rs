//! The port.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get as at;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use crate::Health;
use crate::book::Book;
use crate::process::Process;

/// Longest time for what is read at a scrape; Prometheus gives up after ten seconds unless told otherwise.
const REFRESH: Duration = Duration::from_secs(5);

/// Longest time that [`get`] waits.
const ANSWER: Duration = Duration::from_secs(10);

/// As OpenMetrics 1.0 says.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Refresh = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What is answered to a scrape.
pub struct Metrics {
    book: Book,
    process: Process,
    refresh: Refresh,
}

impl Metrics {
    /// What is in `book`, after `refresh` has brought up to date whatever is read only when somebody looks.
    pub fn new<F>(mut book: Book, refresh: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            process: Process::new(&mut book),
            book,
            refresh: Box::new(move || Box::pin(refresh())),
        }
    }

    /// The text as it stands, without bringing anything up to date.
    pub fn encode(&self) -> String {
        self.book.encode()
    }

    /// The text. Two scrapes at the same time take turns: half of a replaced gauge is no answer.
    async fn text(&self) -> String {
        if tokio::time::timeout(REFRESH, (self.refresh)()).await.is_err() {
            tracing::warn!("metrics that are read when scraped took too long; what was read before stands");
        }
        self.process.refresh();
        self.book.encode()
    }
}

/// What is answered to which path.
pub type Routes = Router;

#[derive(Clone)]
struct Shown {
    health: Arc<Health>,
    metrics: Arc<Mutex<Metrics>>,
}

/// `/healthz`, `/readyz` and `/metrics`. Clones share what is shown.
pub fn routes(health: Health, metrics: Metrics) -> Routes {
    let shown = Shown {
        health: Arc::new(health),
        metrics: Arc::new(Mutex::new(metrics)),
    };
    Router::new()
        .route("/healthz", at(healthz))
        .route("/readyz", at(readyz))
        .route("/metrics", at(metrics_text))
        .with_state(shown)
}

fn verdict(missing: &[String]) -> (StatusCode, String) {
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".into())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", missing.join("; ")),
        )
    }
}

async fn healthz(State(shown): State<Shown>) -> (StatusCode, String) {
    verdict(&shown.health.dead())
}

async fn readyz(State(shown): State<Shown>) -> (StatusCode, String) {
    verdict(&shown.health.unready())
}

async fn metrics_text(State(shown): State<Shown>) -> impl IntoResponse {
    let text = shown.metrics.lock().await.text().await;
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text)
}

/// Opens a port; where the machine has no IPv6, `[::]` means every IPv4 address.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("can't listen on {address}"))
}

/// Answers for ever.
pub async fn serve(listener: TcpListener, routes: Routes) {
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "health and metrics can't be served any more");
    }
}

/// What `path` of a port opened here answers, for a program that runs beside the daemon. An error is the answer's text
/// where it isn't `200`.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(ANSWER, ask)
        .await
        .with_context(|| format!("no answer from {address}"))?
        .with_context(|| format!("ask {address}"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("{address} doesn't speak HTTP"))?;
    anyhow::ensure!(head.split(' ').nth(1) == Some("200"), "{}", body.trim());
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::text;

    #[tokio::test]
    async fn health_readiness_and_metrics_are_answered() {
        let scrapes = Arc::new(AtomicU64::new(0));
        let mut book = Book::default();
        let gauge = book.gauge("x_scrapes", "Scrapes so far");
        let seen = scrapes.clone();
        let metrics = Metrics::new(book, move || {
            let count = seen.fetch_add(1, Ordering::Relaxed) + 1;
            let gauge = gauge.clone();
            async move {
                gauge.set(f64::from(u32::try_from(count).unwrap_or_default()));
            }
        });
        let health = Health::new().ready(|| Err("waiting for the plan".into()));
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, routes(health, metrics)));

        assert_eq!(get(address, "/healthz").await.expect("alive"), "ok\n");
        let unready = get(address, "/readyz").await.expect_err("not ready");
        assert_eq!(unready.to_string(), "waiting for the plan");
        assert_eq!(
            scrapes.load(Ordering::Relaxed),
            0,
            "nothing is read before somebody looks"
        );
        for count in [1.0, 2.0] {
            let read = text::parse(&get(address, "/metrics").await.expect("metrics")).expect("well-formed");
            assert_eq!(read.value("x_scrapes", &[]), Some(count));
            assert!(
                read.value("process_resident_memory_bytes", &[])
                    .is_some_and(|b| b > 0.0)
            );
            assert_eq!(
                read.value("spillway_build_info", &[("version", env!("CARGO_PKG_VERSION"))]),
                Some(1.0)
            );
        }
    }
}

//! `make bench`: what Spillway costs and how fast it converges, on real clusters, each figure beside
//! what the kernel does best in the same run.
//!
//! Prints a table and writes the same to `target/bench.json`.

mod convergence;
mod figures;
mod throughput;

use anyhow::Result;
use spillway_e2e::federation::Federation;

use figures::Figures;

#[tokio::main]
async fn main() -> Result<()> {
    let federation = Federation::up("bench").await?;
    let outcome = measure(&federation).await;
    if outcome.is_err() {
        federation.diagnose("bench").await;
    }
    let down = federation.down().await;
    outcome?.publish()?;
    down
}

async fn measure(federation: &Federation) -> Result<Figures> {
    let mut figures = Figures::default();
    convergence::policy_changes(federation, &mut figures).await?;
    convergence::pod_creation(federation, &mut figures).await?;
    throughput::against_plain_vxlan(federation, &mut figures).await?;
    Ok(figures)
}

//! `make bench`: what Spillway costs, how fast it converges and what a fault does to flows, on real clusters, each
//! figure beside what the kernel does best in the same run.
//!
//! Prints a table and writes the same to `target/bench.json`.

mod convergence;
mod failover;
mod figures;
mod start_up;
mod throughput;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use spillway_e2e::federation::{Federation, Shape};

use figures::Figures;

/// Measures on real clusters, prints a table, and writes it to target/bench.json.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// How often each fault of a gateway is tried
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Measure only this; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// How long changes take to reach the wire, and what pods wait for
    Convergence,
    /// Bytes, packets and processor time beside plain VXLAN and masquerade
    Throughput,
    /// Gaps across faults, and lost connections
    Failover,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let mut figures = Figures::default();
    if wanted(Part::Convergence) || wanted(Part::Throughput) {
        let federation = Federation::up("bench").await?;
        let outcome = async {
            if wanted(Part::Convergence) {
                convergence::policy_changes(&federation, &mut figures).await?;
                convergence::pod_creation(&federation, &mut figures).await?;
                start_up::by_the_cni_plugin(&federation, &mut figures).await?;
            }
            if wanted(Part::Throughput) {
                throughput::against_plain_vxlan(&federation, &mut figures).await?;
            }
            Ok(())
        }
        .await;
        down(federation, outcome).await?;
    }
    if wanted(Part::Failover) {
        let federation = Federation::up_as(Shape::Failover, "bench").await?;
        let outcome = failover::gaps(&federation, args.runs, &mut figures).await;
        down(federation, outcome).await?;
    }
    figures.publish()
}

/// Takes the federation down; after a failure, first writes down what it looked like.
async fn down(federation: Federation, outcome: Result<()>) -> Result<()> {
    if outcome.is_err() {
        federation.diagnose("bench").await;
    }
    let down = federation.down().await;
    outcome?;
    down
}

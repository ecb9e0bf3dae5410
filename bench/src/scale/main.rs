//! `make bench-scale`: one hub, as its own process against a real API server, and many members in this one, each with a TLS
//! stream of its own. For every size of federation: how soon a change is everywhere, what a restart of the hub
//! costs, and what the hub takes.
//!
//! Prints a table with a line a size and writes the same to `target/bench-scale.json`.

mod hub;
mod load;
mod member;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;
use spillway_e2e::{Arena, ArenaSpec};
use tokio::task::JoinSet;

use hub::Hub;
use load::Load;
use member::Member;

/// Longest time for anything.
const PATIENCE: Duration = Duration::from_secs(600);
/// Clusters that join at the same time; a hub takes 16.
const JOINING: usize = 8;

/// Measures federations of several sizes.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Members of a federation; may be repeated
    #[arg(long = "members", default_values_t = [10, 100, 1000])]
    sizes: Vec<usize>,
    /// How often each change is made
    #[arg(long, default_value_t = 10)]
    changes: usize,
}

/// What one size gave. Times in milliseconds.
#[derive(Debug, Serialize)]
struct Line {
    members: usize,
    policies: usize,
    /// All clusters join, one token each.
    join: f64,
    /// From a change that concerns all to its being stored in a member.
    all_p50: f64,
    all_p99: f64,
    /// From a change that concerns one member to its being stored there.
    one_p50: f64,
    one_p99: f64,
    /// Content of an update that a change to all gives one member.
    bytes_per_member: f64,
    /// From the start of the hub's next process to the last member's being known to hold its plan.
    reconnect: f64,
    /// Updates that this took; 0: nobody got again what it had.
    resent: u64,
    /// Processor time of the hub for one change to all.
    cpu_per_change: f64,
    /// Most memory of the hub, MiB.
    memory: f64,
}

fn main() -> Result<()> {
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("another TLS provider is installed already");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run(Args::parse()))
}

async fn run(args: Args) -> Result<()> {
    let mut lines = Vec::new();
    for members in args.sizes {
        let spec = ArenaSpec::parse_short(&format!("scale-{}", std::process::id() % 10_000), "hub:1")?;
        let arena = Arena::up(&spec).await?;
        let outcome = measure(&arena, members, args.changes).await;
        let down = arena.down().await;
        lines.push(outcome?);
        down?;
    }
    publish(&lines)
}

async fn measure(arena: &Arena, members: usize, changes: usize) -> Result<Line> {
    let cluster = arena.cluster("hub").await?;
    let client = cluster.client();
    load::prepare(&client).await?;
    let mut hub = Hub::start(&client, &arena.kubeconfig("hub")?).await?;
    let load = Load::of(&client, members);

    let began = Instant::now();
    let all = join(&load, &hub, members).await?;
    let join = millis(began.elapsed());
    load.create().await?;
    settled(&all).await?;

    let (mut to_all, mut bytes, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for change in 0..changes {
        let before = hub.cpu()?;
        let marks: Vec<_> = all.iter().map(Member::mark).collect();
        let began = Instant::now();
        load.change_all(change).await?;
        for (member, mark) in all.iter().zip(marks) {
            let update = member.next(mark, PATIENCE).await?;
            to_all.push(millis(update.at.duration_since(began)));
            bytes.push(update.bytes);
        }
        settled(&all).await?;
        cpu.push(millis(hub.cpu()?.saturating_sub(before)));
    }
    let mut to_one = Vec::new();
    for change in 0..changes {
        let member = &all[change % all.len()];
        let mark = member.mark();
        let began = Instant::now();
        load.change_one(member.name(), change).await?;
        to_one.push(millis(
            member.next(mark, PATIENCE).await?.at.duration_since(began),
        ));
    }
    settled(&all).await?;

    let updates: u64 = all.iter().map(|m| m.mark() as u64).sum();
    hub.kill().await?;
    for member in &all {
        member.disconnected(PATIENCE).await?;
    }
    let began = Instant::now();
    hub.again().await?;
    for member in &all {
        member.connected(PATIENCE).await?;
    }
    load.all_acknowledged(&all, PATIENCE).await?;
    let reconnect = millis(began.elapsed());
    let resent = all.iter().map(|m| m.mark() as u64).sum::<u64>() - updates;
    let memory = hub.most_memory()?;
    hub.kill().await?;
    Ok(Line {
        members,
        policies: load.policies(),
        join,
        all_p50: percentile(&mut to_all, 50),
        all_p99: percentile(&mut to_all, 99),
        one_p50: percentile(&mut to_one, 50),
        one_p99: percentile(&mut to_one, 99),
        bytes_per_member: percentile(&mut bytes, 50),
        reconnect,
        resent,
        cpu_per_change: percentile(&mut cpu, 50),
        memory,
    })
}

/// All members join and connect.
async fn join(load: &Load, hub: &Hub, members: usize) -> Result<Vec<Member>> {
    let (mut joining, mut joined) = (JoinSet::new(), Vec::new());
    for number in 0..members {
        if joining.len() == JOINING
            && let Some(done) = joining.join_next().await
        {
            joined.push(done??);
        }
        joining.spawn(Member::join(load.token(number).await?, hub.endpoint(), hub.pin()));
    }
    while let Some(done) = joining.join_next().await {
        joined.push(done??);
    }
    for member in &joined {
        member.connected(PATIENCE).await?;
    }
    Ok(joined)
}

/// Waits until no member has got anything for a second.
async fn settled(all: &[Member]) -> Result<()> {
    let began = Instant::now();
    let mut seen: Vec<_> = all.iter().map(Member::mark).collect();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now: Vec<_> = all.iter().map(Member::mark).collect();
        if now == seen {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "plans never settle");
        seen = now;
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn percentile(series: &mut [f64], p: usize) -> f64 {
    series.sort_by(f64::total_cmp);
    let last = series.len().saturating_sub(1);
    series
        .get((series.len() * p / 100).min(last))
        .copied()
        .unwrap_or_default()
}

#[expect(clippy::print_stdout, reason = "the result")]
fn publish(lines: &[Line]) -> Result<()> {
    let file = Path::new("target/bench-scale.json");
    std::fs::write(file, serde_json::to_vec_pretty(lines)?).with_context(|| file.display().to_string())?;
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header([
        "members",
        "policies",
        "join ms",
        "all p50",
        "all p99",
        "one p50",
        "one p99",
        "bytes",
        "reconnect ms",
        "resent",
        "CPU ms/change",
        "MiB",
    ]);
    for line in lines {
        let number = |value: f64| format!("{value:.0}");
        table.add_row([
            line.members.to_string(),
            line.policies.to_string(),
            number(line.join),
            number(line.all_p50),
            number(line.all_p99),
            number(line.one_p50),
            number(line.one_p99),
            number(line.bytes_per_member),
            number(line.reconnect),
            line.resent.to_string(),
            number(line.cpu_per_change),
            number(line.memory),
        ]);
    }
    println!("{table}");
    Ok(())
}

//! What one change costs on a node with many pods and policies, on the real kernel.
//!
//! ```text
//! cargo run -p spillway-dataplane --example single_changes -- [PODS] [POLICIES] [FLOWS]
//! ```
//!
//! Needs root; works in a network namespace of its own. Compares a kernel that knows what was applied last with
//! one that was just opened and has to find out.

#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use spillway_core::node::compile;
use spillway_core::node::fixtures::{app, bank, node_ref, pod, stateless_gateway, stateless_source};
use spillway_core::node::inputs::NodeInputs;
use spillway_dataplane::{Kernel, LinuxKernel};

const ROUNDS: u8 = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<u16> = std::env::args()
        .skip(1)
        .map(|a| a.parse())
        .collect::<Result<_, _>>()?;
    let number = |i: usize, default| numbers.get(i).copied().unwrap_or(default);
    unshare(CloneFlags::CLONE_NEWNET)?;
    for line in [
        "ip link set lo up",
        "ip link add eth0 type veth peer name wire0",
        "ip link set wire0 up",
        "ip link set eth0 up",
        "ip addr add 10.0.0.1/24 dev eth0",
        "ip link add eth1 type veth peer name wire1",
        "ip link set wire1 up",
        "ip link set eth1 up",
    ] {
        let done = Command::new("sh").args(["-c", line]).status()?.success();
        if !done {
            return Err(format!("{line} failed").into());
        }
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(measure(number(0, 1000), number(1, 100), number(2, 10_000)))
}

/// Pods in turn selected by one of `policies`, each with two destinations of its own.
fn inputs(pods: u16, policies: u16) -> NodeInputs {
    let mut inputs = stateless_source();
    inputs.pods = (0..pods)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            pod(
                &format!("pod-{n}"),
                &format!("app-{}", n % policies),
                &[&format!("10.244.{high}.{low}")],
            )
        })
        .collect();
    if let Some(plan) = &mut inputs.plan {
        plan.policies = (0..policies)
            .map(|n| {
                let mut policy = bank();
                policy.source.name = format!("policy-{n}");
                policy.pods = app(&format!("app-{n}"));
                policy
            })
            .collect();
        let mut other = plan.gateways[0].identities[0].clone();
        other.id = 8;
        other.egress_ip.ipv4 = Some("203.0.113.11".into());
        plan.gateways[0].identities.push(other);
        let mut slices = plan.gateways[0].slices[0].clone();
        slices.address = "203.0.113.11".into();
        plan.gateways[0].slices.push(slices);
    }
    inputs
}

struct Times(Vec<Duration>);

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |part: usize| {
            sorted
                .get((sorted.len() - 1) * part / 100)
                .copied()
                .unwrap_or_default()
        };
        write!(f, "median {:>9.2?}  worst {:>9.2?}", at(50), at(100))
    }
}

async fn measure(pods: u16, policies: u16, flows: u16) -> Result<(), Box<dyn std::error::Error>> {
    let mut inputs = inputs(pods, policies);
    let kernel = LinuxKernel::open()?;
    let begin = Instant::now();
    let desired = compile(&inputs);
    println!("compile                          {:.2?}", begin.elapsed());
    let begin = Instant::now();
    kernel.apply(&desired).await?;
    println!("first apply                      {:.2?}", begin.elapsed());
    let begin = Instant::now();
    kernel.apply(&desired).await?;
    println!("apply of the same                {:.2?}", begin.elapsed());

    for (what, knows) in [("known", true), ("unknown", false)] {
        let (mut a_pod, mut a_policy) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            inputs
                .pods
                .push(pod("late", "app-0", &[&format!("10.244.255.{round}")]));
            a_pod.push(change(&kernel, knows, &inputs).await?);
            inputs.pods.pop();
            if let Some(policy) = inputs.plan.as_mut().and_then(|p| p.policies.first_mut()) {
                policy.through[0].identity = 8 - u16::from(round % 2);
            }
            a_policy.push(change(&kernel, knows, &inputs).await?);
        }
        println!("one pod, last state {what:<8}     {}", Times(a_pod));
        println!("one egress IP, last state {what:<8}{}", Times(a_policy));
    }

    let mut dead_next_hop = Vec::new();
    for round in 0..ROUNDS {
        inputs.liveness.dead = (round % 2 == 0)
            .then(|| node_ref("b", "b-2"))
            .into_iter()
            .collect();
        dead_next_hop.push(change(&kernel, true, &inputs).await?);
    }
    println!("one next hop dies or comes back  {}", Times(dead_next_hop));
    inputs.liveness.dead.clear();
    kernel.apply(&compile(&inputs)).await?;

    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for port in 1..=flows {
        // Refusals of earlier ones come back as errors of later ones.
        let _ = socket.send_to(b"x", ("127.0.0.1", 20_000 + port));
    }
    let tracked = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
    let wanted = compile(&inputs).flows;
    let mut one_pod = inputs.clone();
    one_pod.pods.pop();
    let narrowed = wanted.clone().narrowed(&compile(&one_pod).flows);
    for (what, wanted) in [("all", wanted), ("one pod's", narrowed)] {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            kernel.cut(&wanted).await?;
            times.push(begin.elapsed());
        }
        println!("cut {what:<9} of {:<6} flows    {}", tracked.trim(), Times(times));
    }
    take_over(&kernel).await
}

/// What it costs a gateway's node to answer for what another answered for.
async fn take_over(kernel: &LinuxKernel) -> Result<(), Box<dyn std::error::Error>> {
    let mut inputs = stateless_gateway();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let other = if round % 2 == 0 { "b-1" } else { "b-2" };
        inputs.liveness.dead = [node_ref("b", other)].into();
        let first = round == 0;
        let taken = change(kernel, true, &inputs).await?;
        if !first {
            times.push(taken);
        }
    }
    println!("egress IPs taken over, left      {}", Times(times));
    Ok(())
}

async fn change(
    kernel: &LinuxKernel,
    knows: bool,
    inputs: &NodeInputs,
) -> Result<Duration, Box<dyn std::error::Error>> {
    let desired = compile(inputs);
    let fresh = (!knows).then(LinuxKernel::open).transpose()?;
    let begin = Instant::now();
    let changes = fresh.as_ref().unwrap_or(kernel).apply(&desired).await?;
    let taken = begin.elapsed();
    if changes.is_empty() {
        return Err("nothing was changed".into());
    }
    // The comparison that follows a write is over before the next one.
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(taken)
}

//! A policy whose pods may send so much only, with real packets: what passes, what is dropped and counted, what isn't limited.
//!
//! ```text
//!  pod 10.244.0.5 ── node 10.0.0.2, gateway of its own pods, 203.0.113.2 ── outside 198.51.100.7
//! ```

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use spillway_core::node::drops::{DropReason, dropping};
use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::state::DesiredState;
use spillway_core::node::{compile, fixtures};
use spillway_crds::hub::Bandwidth;
use spillway_dataplane::{Kernel, LinuxKernel, nft};
use support::lab::{plug_outside, plug_pod};
use support::traffic::connect;
use support::{Namespace, patient, privileged};

const SERVERS: [&str; 2] = ["198.51.100.7", "2001:db8:99::7"];
/// Of 8 Mbit/s.
const RATE: u32 = 1_000_000;
const SIZE: u32 = 4_000_000;

struct Node {
    kernel: LinuxKernel,
    inputs: NodeInputs,
    desired: DesiredState,
}

impl Node {
    async fn limit(&mut self, bandwidth: Option<&str>) {
        let plan = self.inputs.plan.as_mut().expect("a plan");
        plan.policies[0].bandwidth = bandwidth.map(|rate| Bandwidth {
            rate: rate.into(),
            burst: None,
        });
        self.desired = compile(&self.inputs);
        self.kernel.apply(&self.desired).await.expect("apply");
        let again = self.kernel.apply(&self.desired).await.expect("apply again");
        assert!(again.is_empty(), "a second apply wrote:\n{again}");
        assert_eq!(self.kernel.cut(&self.desired.flows).await.expect("cut"), 0);
    }

    /// Packets and bytes that the limit has dropped.
    async fn dropped(&self) -> (u64, u64) {
        let counts = self.kernel.counts().await.expect("counts");
        let limit = dropping(&self.desired).find(|d| d.reason == DropReason::Bandwidth);
        let limit = limit.expect("a limit");
        let stamp = nft::stamp(limit.rule);
        let found = counts.iter().find(|c| c.chain == limit.chain && c.stamp == stamp);
        found.map(|c| (c.packets, c.bytes)).expect("it counts")
    }
}

/// How long it takes until the other end has all of what is sent.
fn transfer(from: &TcpStream, to: &TcpStream) -> Duration {
    let begin = Instant::now();
    let mut sender = from.try_clone().expect("clone");
    let writer = std::thread::spawn(move || {
        let data = vec![7; SIZE as usize];
        sender.write_all(&data).expect("send");
    });
    let mut receiver = to.try_clone().expect("clone");
    receiver
        .set_read_timeout(Some(patient(Duration::from_secs(20))))
        .expect("timeout");
    let mut data = vec![0; SIZE as usize];
    receiver.read_exact(&mut data).expect("all of it arrives");
    writer.join().expect("sender");
    begin.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_send_what_their_policy_says_and_receive_what_they_like() {
    if !privileged() {
        return;
    }
    let (pod, node, outside) = (
        Namespace::new("pod"),
        Namespace::new("node"),
        Namespace::new("outside"),
    );
    node.router();
    node.run("ip link add eth0 type bridge && ip link set eth0 up");
    node.address("eth0", &["10.0.0.2/24", "fd00:10::2/64"]);
    plug_outside(&node, &outside);
    plug_pod(&node, "pod0", &pod, ["10.244.0.5", "fd00:244::5"]);
    let mut inputs = fixtures::both();
    let kernel = node.kernel();
    let own = &inputs.nodes[&inputs.node].underlay;
    let underlay: Vec<_> = own
        .ipv4
        .iter()
        .chain(&own.ipv6)
        .filter_map(|a| a.parse().ok())
        .collect();
    let facts = kernel.facts(&underlay).await.expect("facts");
    inputs.facts = facts.for_compiler(&inputs.settings.device);
    let mut own = Node {
        kernel,
        inputs,
        desired: DesiredState::default(),
    };
    own.limit(None).await;
    let free = connect(&pod, &outside, SERVERS[0]).expect("a connection");
    let unlimited = transfer(&free.client, &free.server);

    own.limit(Some("8M")).await;
    // One bucket for both families: what the first connection uses up the second doesn't have.
    let mut took = Duration::ZERO;
    for server in SERVERS {
        let limited = connect(&pod, &outside, server).expect("a connection");
        took += transfer(&limited.client, &limited.server);
        let back = transfer(&limited.server, &limited.client);
        assert!(back < took / 2, "{server}: what comes back took {back:?}");
    }
    // What a second gives was saved up.
    let least = Duration::from_secs_f64(f64::from(2 * SIZE) / f64::from(RATE) - 2.0);
    eprintln!("unlimited {unlimited:?}, limited {took:?}");
    assert!(
        took >= least,
        "{took:?} for {} bytes at {RATE} a second",
        2 * SIZE
    );
    assert!(
        took < patient(least * 3),
        "{took:?}: it comes to far less than the limit"
    );
    let (packets, bytes) = own.dropped().await;
    assert!(
        packets > 0 && bytes > packets * 1_000,
        "{packets} packets, {bytes} bytes"
    );

    // A connection lives through the limit's coming and going.
    own.limit(None).await;
    let free = transfer(&free.client, &free.server);
    assert!(free < took / 2, "{free:?} without a limit");
}

//! Two nodes that can't call each other, and relays that both can call: compiled states of all, WireGuard in this process,
//! and everything that was on the wire and at the relay.
//!
//! ```text
//!  pod 10.244.0.5 ── source a-1 10.0.0.1 ──┐                  ┌── gateway b-1 10.0.0.2, 203.0.113.2 ── outside 198.51.100.7
//!                                          ├── wire (bridge) ─┤
//!                    relay r-1 10.0.0.3 ───┘                  └── relay r-2 10.0.0.13
//! ```
//!
//! The bridge lets nothing pass between source and gateway.

mod support;

use std::net::IpAddr;
use std::time::Duration;

use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::state::DesiredState;
use spillway_core::node::{compile, fixtures};
use spillway_dataplane::{Kernel, LinuxKernel, PrivateKey};
use support::capture::{Capture, holds};
use support::lab::{plug_outside, plug_pod, record_sources};
use support::traffic::{connect, service, socket, strangers, tcp, udp, wait};
use support::{Namespace, eventually, privileged};

const EIP4: &str = "203.0.113.10";
const EIP6: &str = "2001:db8:1::10";
const SERVERS: [&str; 2] = ["198.51.100.7", "2001:db8:99::7"];
/// Stands in every payload that mustn't be read.
const MARK: &[u8] = b"a payload that no relay may read";

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

struct Lab {
    pod: Namespace,
    source: Namespace,
    gateway: Namespace,
    relays: [Namespace; 2],
    outside: Namespace,
    wire: Namespace,
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            pod: Namespace::new("pod"),
            source: Namespace::new("source"),
            gateway: Namespace::new("gateway"),
            relays: [Namespace::new("r1"), Namespace::new("r2")],
            outside: Namespace::new("outside"),
            wire: Namespace::new("wire"),
        };
        let Self {
            pod,
            source,
            gateway,
            relays: [r1, r2],
            outside,
            wire,
        } = &lab;
        wire.attempt("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
        wire.run("ip link add br0 type bridge; ip link set br0 up");
        for (n, node) in [(1, source), (2, gateway), (3, r1), (13, r2)] {
            node.router();
            node.run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
            node.connect("eth0", wire, &format!("port{n}"));
            node.address("eth0", &[&format!("10.0.0.{n}/24"), &format!("fd00:10::{n}/64")]);
            wire.run(&format!("ip link set port{n} master br0"));
        }
        wire.run("bridge link set dev port1 isolated on; bridge link set dev port2 isolated on");
        plug_outside(gateway, outside);
        source.run("ip route add default via 10.0.0.3; ip -6 route add default via fd00:10::3");
        record_sources(outside);
        plug_pod(source, "pod0", pod, ["10.244.0.5", "fd00:244::5"]);
        lab
    }

    /// Pulls or plugs in the cable of relay number `n`.
    fn cable(&self, n: usize, state: &str) {
        let port = [3, 13][n];
        self.wire.run(&format!("ip link set port{port} {state}"));
    }

    /// Whether a marked datagram comes to the server and back, and from whom it came.
    fn marked(&self, server: &str) -> Option<IpAddr> {
        let (client, service) = (socket(&self.pod, server), service(&self.outside, server));
        for (socket, wait) in [(&service, 300), (&client, 2_000)] {
            socket
                .set_read_timeout(Some(Duration::from_millis(wait)))
                .expect("timeout");
        }
        client
            .send_to(MARK, service.local_addr().expect("address"))
            .ok()?;
        let mut buffer = [0; 100];
        let (length, seen) = service.recv_from(&mut buffer).ok()?;
        assert_eq!(&buffer[..length], MARK);
        service.send_to(MARK, seen).expect("reply");
        let (length, _) = client.recv_from(&mut buffer).expect("the reply comes back");
        assert_eq!(&buffer[..length], MARK);
        Some(seen.ip())
    }
}

/// Keys of all nodes.
struct Keys([PrivateKey; 4]);

const NAMES: [&str; 4] = ["a-1", "b-1", "r-1", "r-2"];

impl Keys {
    fn new() -> Self {
        Self(std::array::from_fn(|_| PrivateKey::generate()))
    }

    fn of(&self, node: &str) -> Option<PrivateKey> {
        let n = NAMES.iter().position(|n| *n == node)?;
        Some(self.0[n].clone())
    }

    fn public(&self, node: &str) -> Option<String> {
        Some(self.of(node)?.public().to_string())
    }
}

struct Node {
    kernel: LinuxKernel,
    inputs: NodeInputs,
    desired: DesiredState,
}

impl Node {
    async fn start(namespace: &Namespace, keys: &Keys, mut inputs: NodeInputs) -> Self {
        let kernel = namespace.kernel_with(keys.of(&inputs.node).expect("a key"));
        inputs.liveness.dead.insert(fixtures::node_ref("b", "b-2"));
        let underlay = &inputs.nodes[&inputs.node].underlay;
        let underlay = underlay.ipv4.iter().chain(&underlay.ipv6);
        let underlay: Vec<IpAddr> = underlay.map(|a| ip(a)).collect();
        let facts = kernel.facts(&underlay).await.expect("facts");
        inputs.facts = facts.for_compiler(&inputs.settings.device);
        let mut node = Self {
            kernel,
            inputs,
            desired: DesiredState::default(),
        };
        node.apply().await;
        let again = node.kernel.apply(&node.desired).await.expect("apply again");
        assert!(
            again.is_empty(),
            "a second apply of a compiled state wrote:\n{again}"
        );
        node
    }

    async fn apply(&mut self) {
        self.desired = compile(&self.inputs);
        self.kernel.apply(&self.desired).await.expect("apply");
        self.kernel.cut(&self.desired.flows).await.expect("cut");
    }

    /// What it thinks of the relays.
    async fn finds(&mut self, alive: &[&str], dead: &[&str]) {
        let set = |names: &[&str]| names.iter().map(|n| fixtures::node_ref("r", n)).collect();
        let liveness = &mut self.inputs.liveness;
        liveness.alive = set(alive);
        liveness.dead = set(dead);
        liveness.dead.insert(fixtures::node_ref("b", "b-2"));
        self.apply().await;
    }
}

struct Nodes {
    source: Node,
    gateway: Node,
    _relays: [Node; 2],
}

async fn start(lab: &Lab, keys: &Keys, granted: bool) -> Nodes {
    let key = |node: &str| keys.public(node);
    let [r1, r2] = &lab.relays;
    let relays = [
        Node::start(r1, keys, fixtures::relay(1, key, granted)).await,
        Node::start(r2, keys, fixtures::relay(2, key, granted)).await,
    ];
    let gateway = fixtures::relayed(fixtures::stateless_gateway(), key);
    let source = fixtures::relayed(fixtures::stateless_source(), key);
    Nodes {
        gateway: Node::start(&lab.gateway, keys, gateway).await,
        source: Node::start(&lab.source, keys, source).await,
        _relays: relays,
    }
}

/// Packets that the relay passed on, and those that it dropped as they came out of WireGuard.
fn passed(relay: &Namespace) -> [u64; 2] {
    let text = relay.run("nft list chain inet spillway raw_wireguard");
    ["@relay_to4", "drop"].map(|word| {
        let rules = text.lines().filter(|l| l.contains(word));
        let counts = rules.filter_map(|l| {
            l.split("counter packets ")
                .nth(1)?
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
        });
        counts.sum()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn whats_relayed_arrives_and_neither_wire_nor_relay_can_read_it() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = Keys::new();
    let wire = Capture::start(&lab.wire, "br0");
    let relay = Capture::start(&lab.relays[0], "any");
    // Behind the gateway it is plain, which shows that it would be found.
    let behind = Capture::start(&lab.gateway, "eth1");
    let _nodes = start(&lab, &keys, true).await;
    for (server, eip) in SERVERS.into_iter().zip([EIP4, EIP6]) {
        eventually("the first handshakes", || lab.marked(server).is_some());
        assert_eq!(lab.marked(server), Some(ip(eip)));
        for size in [5, 1200] {
            let seen = udp(&lab.pod, &lab.outside, server, size).expect("a way");
            assert_eq!(seen.ip(), ip(eip));
        }
        let seen = tcp(&lab.pod, &lab.outside, server).expect("a way");
        assert_eq!(seen.ip(), ip(eip));
    }
    let (bytes, inner) = wire.stop("udp dst port 4799 or net 100.64.0.0/10");
    assert!(!holds(&bytes, MARK), "the payload can be read on the wire");
    assert_eq!(
        inner, 0,
        "packets of the tunnel, or to a relay's overlay address, are on the wire"
    );
    let (bytes, relayed) = relay.stop("udp dst portrange 32768-65535 and dst host 100.64.12.1");
    assert!(!holds(&bytes, MARK), "the relay can read the payload");
    assert!(relayed > 100, "{relayed} packets to the relay's ports");
    assert!(holds(&behind.stop("udp").0, MARK));
    assert!(passed(&lab.relays[0])[0] > 100);
    assert_eq!(passed(&lab.relays[1])[0], 0, "the first is enough");
    assert_eq!(strangers(&lab.outside, [EIP4, EIP6]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_dies_and_connections_go_on_through_the_other() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = Keys::new();
    let mut nodes = start(&lab, &keys, true).await;
    eventually("the first handshakes", || lab.marked(SERVERS[0]).is_some());
    let mut connection = connect(&lab.pod, &lab.outside, SERVERS[0]).expect("a way");
    connection.exchange();

    lab.cable(0, "down");
    nodes.source.finds(&["r-2"], &["r-1"]).await;
    nodes.gateway.finds(&["r-2"], &["r-1"]).await;
    connection.exchange();
    assert!(passed(&lab.relays[1])[0] > 0);

    // Only the gateway loses its way to the relay; the source follows it.
    lab.cable(0, "up");
    eventually("the first relay is there again", || {
        lab.source.attempt("ping -c 1 -W 1 10.0.0.3").0
    });
    lab.wire.run("nft 'table netdev cut { chain c { type filter hook ingress device port13 priority 0; ip daddr 10.0.0.2 drop; }; }'");
    nodes.gateway.finds(&["r-1"], &["r-2"]).await;
    connection.exchange();
    assert_eq!(connection.seen.ip(), ip(EIP4));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_isnt_granted_isnt_relayed() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = Keys::new();
    let nodes = start(&lab, &keys, false).await;
    assert_eq!(lab.marked(SERVERS[0]), None);
    eventually("the relay has dropped what came", || {
        passed(&lab.relays[0])[1] > 0
    });
    sessions_come_to(&nodes.source.kernel, 2).await;
    // Its handshakes with the relays are done; one with the gateway never is.
    assert_eq!(lab.marked(SERVERS[0]), None);
    sessions_come_to(&nodes.source.kernel, 2).await;
    assert_eq!(passed(&lab.relays[0])[0], 0);
    assert_eq!(strangers(&lab.outside, [EIP4, EIP6]), "");
}

/// Waits until a node has sessions with so many peers.
async fn sessions_come_to(kernel: &LinuxKernel, wanted: usize) {
    let come = async {
        loop {
            let encryption = kernel.encryption().await.expect("encryption");
            match encryption.peers.values().flatten().count() {
                now if now == wanted => return,
                now if now > wanted => panic!("{now} sessions: {encryption:?}"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let end = tokio::time::timeout(wait(), come).await;
    end.unwrap_or_else(|_| panic!("never {wanted} sessions"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_becomes_direct_loses_no_connection() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = Keys::new();
    let mut nodes = start(&lab, &keys, true).await;
    eventually("the first handshakes", || lab.marked(SERVERS[0]).is_some());
    let mut connection = connect(&lab.pod, &lab.outside, SERVERS[0]).expect("a way");
    connection.exchange();

    lab.wire
        .run("bridge link set dev port1 isolated off; bridge link set dev port2 isolated off");
    for node in [&mut nodes.gateway, &mut nodes.source] {
        let plan = node.inputs.plan.as_mut().expect("a plan");
        plan.member.uncallable.clear();
        for peer in plan.peers.iter_mut().flat_map(|p| &mut p.nodes) {
            peer.relays.clear();
        }
        node.apply().await;
        connection.exchange();
    }
    let before = passed(&lab.relays[0])[0];
    connection.exchange();
    assert_eq!(
        passed(&lab.relays[0])[0],
        before,
        "nothing goes through the relay any more"
    );
}

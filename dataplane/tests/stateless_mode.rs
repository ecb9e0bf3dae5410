//! Stateless gateways from end to end: compiled states of three nodes, real kernels, real sockets.
//!
//! ```text
//!  pod 10.244.0.5 ── source a-1 10.0.0.1  ──┐        ┌── 203.0.113.2 ─────────────────────────┐
//!                                          lan ── b-1 10.0.0.2                               egress ── router ── outside
//!  twin 10.244.0.5 ─────────────────────────┘│ (twin is b-1's own pod)                        │      198.51.100.7
//!                                            └── b-2 10.0.0.12 ── 203.0.113.12 ──────────────┘
//! ```
//!
//! The source address and port are always read at the outside server; a recorder there keeps everyone who ever sent.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, UdpSocket};

use spillway_core::health::message::PORT;
use spillway_core::node::gateways::Liveness;
use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::state::DesiredState;
use spillway_core::node::{compile, fixtures};
use spillway_crds::member::{GatewayNodeState, PlannedThrough};
use spillway_dataplane::{Kernel, LinuxKernel};
use support::lab::plug_pod;
use support::traffic::{connect, exchange, service, socket, strangers, tcp, udp};
use support::{Namespace, eventually, needs_egress_hook, privileged};

const EIP4: &str = "203.0.113.10";
const EIP6: &str = "2001:db8:1::10";
const SERVERS: [&str; 2] = ["198.51.100.7", "2001:db8:99::7"];

struct Lab {
    pod: Namespace,
    twin: Namespace,
    source: Namespace,
    first: Namespace,
    second: Namespace,
    router: Namespace,
    outside: Namespace,
    _lan: Namespace,
}

impl Lab {
    fn new() -> Self {
        needs_egress_hook();
        let lab = Self {
            pod: Namespace::new("pod"),
            twin: Namespace::new("twin"),
            source: Namespace::new("source"),
            first: Namespace::new("first"),
            second: Namespace::new("second"),
            router: Namespace::new("router"),
            outside: Namespace::new("outside"),
            _lan: Namespace::new("lan"),
        };
        let Self {
            source,
            first,
            second,
            router,
            outside,
            _lan: lan,
            ..
        } = &lab;
        for node in [source, first, second, router] {
            node.router();
        }
        // Bridged frames are no business of the namespace's own firewall.
        lan.attempt("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
        lan.run("ip link add br0 type bridge; ip link set br0 up; ip link add br1 type bridge; ip link set br1 up");
        for (node, device, bridge, addresses) in [
            (source, "eth0", "br0", ["10.0.0.1/24", "fd00:10::1/64"]),
            (first, "eth0", "br0", ["10.0.0.2/24", "fd00:10::2/64"]),
            (second, "eth0", "br0", ["10.0.0.12/24", "fd00:10::12/64"]),
            (router, "lan0", "br0", ["10.0.0.254/24", "fd00:10::254/64"]),
            (first, "eth1", "br1", ["203.0.113.2/24", "2001:db8:1::2/64"]),
            (second, "eth1", "br1", ["203.0.113.12/24", "2001:db8:1::12/64"]),
            (
                router,
                "egress0",
                "br1",
                ["203.0.113.254/24", "2001:db8:1::254/64"],
            ),
        ] {
            let port = format!("{}{bridge}", &node.name[node.name.len() - 5..]);
            node.connect(device, lan, &port);
            lan.run(&format!("ip link set {port} master {bridge}"));
            node.address(device, &addresses);
        }
        for node in [source, first, second] {
            node.run("ip route add default via 10.0.0.254; ip -6 route add default via fd00:10::254");
        }
        for gateway in [first, second] {
            gateway.run(
                "ip route add 198.51.100.0/24 via 203.0.113.254; ip -6 route add 2001:db8:99::/64 via 2001:db8:1::254",
            );
        }
        router.connect("out0", outside, "eth0");
        router.address("out0", &["198.51.100.1/24", "2001:db8:99::1/64"]);
        outside.address("eth0", &["198.51.100.7/24", "2001:db8:99::7/64"]);
        outside.run("ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:99::1");
        outside.run(
            "nft 'table inet seen { set v4 { type ipv4_addr . inet_service; flags dynamic; }; \
             set v6 { type ipv6_addr . inet_service; flags dynamic; }; \
             chain in { type filter hook input priority 0; meta l4proto { tcp, udp } jump note; }; \
             chain note { add @v4 { ip saddr . th sport }; add @v6 { ip6 saddr . th sport }; }; }'",
        );
        // Two clusters with the same pod addresses.
        for (node, client, cni) in [(source, &lab.pod, "a"), (first, &lab.twin, "b")] {
            plug_pod(node, "pod0", client, ["10.244.0.5", "fd00:244::5"]);
            node.run(&format!(
                "nft 'table inet cni_{cni} {{ chain post {{ type nat hook postrouting priority 100; \
                 ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade; \
                 ip6 saddr fd00:244::/48 ip6 daddr != fd00:244::/48 masquerade; }}; }}'",
            ));
        }
        lab
    }

    /// Whether the outside server got packets of anybody but the egress IPs.
    fn strangers(&self) -> String {
        strangers(&self.outside, [EIP4, EIP6])
    }

    /// Connections that the gateways track with an egress IP or to the servers.
    fn tracked(gateway: &Namespace) -> String {
        gateway.run(
            "for f in ipv4 ipv6; do conntrack -L -f $f 2>/dev/null; done | \
             grep -E '203\\.0\\.113\\.10|2001:db8:1::10|198\\.51\\.100\\.7|2001:db8:99::7' || true",
        )
    }
}

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

/// A node's kernel, what it was made from and what it was last told.
struct Node {
    kernel: LinuxKernel,
    inputs: NodeInputs,
    desired: DesiredState,
}

impl Node {
    async fn start(namespace: &Namespace, mut inputs: NodeInputs) -> Self {
        let kernel = namespace.kernel();
        let underlay = inputs.nodes[&inputs.node].underlay.ipv4.iter();
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

    /// Tells it that `node` is dead.
    async fn without(&mut self, node: &str) {
        let dead = fixtures::node_ref("b", node);
        self.inputs.liveness = Liveness {
            dead: [dead].into(),
            ..Liveness::default()
        };
        self.apply().await;
    }
}

struct Nodes {
    source: Node,
    second: Node,
    _first: Node,
}

async fn start(lab: &Lab) -> Nodes {
    // Make before break: gateways know the slices before a source uses them.
    let mut of_second = fixtures::stateless_gateway();
    of_second.node = "b-2".into();
    Nodes {
        _first: Node::start(&lab.first, fixtures::stateless_both()).await,
        second: Node::start(&lab.second, of_second).await,
        source: Node::start(&lab.source, fixtures::stateless_source()).await,
    }
}

/// Ranges of a-1's and b-1's ports for new connections.
const SOURCES: [(u16, u16); 2] = [(1024, 2047), (4096, 4159)];
const FIRSTS: [(u16, u16); 1] = [(16384, 32767)];

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_pods_of_one_address_share_an_egress_ip() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let nodes = start(&lab).await;
    for (server, eip) in SERVERS.into_iter().zip([EIP4, EIP6]) {
        for (client, ports) in [(&lab.pod, SOURCES.as_slice()), (&lab.twin, &FIRSTS)] {
            client.run(&format!("ping -n -c2 -i0.1 -W1 {server}"));
            // The path's MTU takes a packet or two each way to be learned from the errors.
            eventually("a ping in fragments", || {
                client.attempt(&format!("ping -n -c1 -W1 -s 4000 {server}")).0
            });
            for _ in 0..8 {
                for seen in [
                    tcp(client, &lab.outside, server),
                    udp(client, &lab.outside, server, 5),
                    // More than an Ethernet frame, so in fragments.
                    udp(client, &lab.outside, server, 4000),
                ] {
                    let seen = seen.unwrap_or_else(|| panic!("no way to {server} for {}", client.name));
                    assert_eq!(seen.ip(), ip(eip));
                    assert!(
                        ports.iter().any(|(a, b)| (*a..=*b).contains(&seen.port())),
                        "{seen} isn't a port of {}",
                        client.name
                    );
                }
            }
        }
    }
    assert_eq!(lab.strangers(), "");
    assert_eq!(Lab::tracked(&lab.second), "", "a gateway has no state");
    assert!(
        !Lab::tracked(&lab.first).contains("sport=10"),
        "the other gateway only that of its own pod: {}",
        Lab::tracked(&lab.first)
    );
    drop(nodes);
}

#[tokio::test(flavor = "multi_thread")]
async fn icmp_errors_find_their_way_in_both_directions() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let _nodes = start(&lab).await;
    for (server, family) in SERVERS.into_iter().zip(["4", "6"]) {
        for client in [&lab.pod, &lab.twin] {
            // Port unreachable, from outside to the pod.
            let socket = socket(client, server);
            socket.connect((ip(server), 9)).expect("connect");
            eventually("the error reaches the socket", || {
                let _ = socket.send(b"x");
                std::thread::sleep(std::time::Duration::from_millis(20));
                matches!(socket.take_error(), Ok(Some(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused)
            });
        }
        // Port unreachable, from the pod to the outside.
        let service = service(&lab.outside, server);
        let socket = socket(&lab.pod, server);
        let seen = exchange(&socket, &service, 5).expect("a way");
        drop(socket);
        service.connect(seen).expect("connect");
        eventually("the pod's error reaches the server", || {
            let _ = service.send(b"x");
            std::thread::sleep(std::time::Duration::from_millis(20));
            matches!(service.take_error(), Ok(Some(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused)
        });
        // A smaller MTU than the tunnel's, on both gateways' way out: the gateway's own error reaches the pod.
        for gateway in [&lab.first, &lab.second] {
            gateway.run("ip link set eth1 mtu 1300");
        }
        let (ok, output) = lab
            .pod
            .attempt(&format!("ping -{family} -n -c2 -W1 -M do -s 1350 {server}"));
        assert!(
            !ok && output.contains("1300"),
            "the gateway's MTU is told: {output}"
        );
        assert!(
            tcp(&lab.pod, &lab.outside, server).is_some(),
            "bulk through the smaller MTU"
        );
        for gateway in [&lab.first, &lab.second] {
            gateway.run("ip link set eth1 mtu 1500");
        }
        lab.pod.run("ip route flush cache; ip -6 route flush cache");
        // What expires at a gateway.
        let (_, output) = lab
            .pod
            .attempt(&format!("ping -{family} -n -c1 -W1 -t2 {server}"));
        assert!(
            output.to_lowercase().contains("time to live exceeded") || output.contains("Hop limit"),
            "the gateway's own error reaches the pod: {output}"
        );
    }
    assert_eq!(lab.strangers(), "");
}

/// A gateway node vanishes: connections live on over the other, and a take-over is nothing but an announcement.
#[tokio::test(flavor = "multi_thread")]
async fn connections_outlive_either_gateway_node() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let mut nodes = start(&lab).await;
    let mut connections: Vec<_> = SERVERS
        .iter()
        .flat_map(|s| (0..6).map(|_| connect(&lab.pod, &lab.outside, s).expect("a way")))
        .collect();
    connections
        .iter_mut()
        .for_each(support::traffic::Connection::exchange);
    // b-1 loses both links; b-2 and the source come to know.
    lab.first.run("ip link set eth0 down; ip link set eth1 down");
    nodes.second.without("b-1").await;
    nodes.source.without("b-1").await;
    for connection in &mut connections {
        connection.exchange();
    }
    for server in SERVERS {
        assert!(tcp(&lab.pod, &lab.outside, server).is_some());
    }
    assert_eq!(lab.strangers(), "");
    assert_eq!(Lab::tracked(&lab.second), "");
}

/// The tunnel's claims: whatever isn't granted to exactly this peer goes nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_granted_goes_nowhere() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let nodes = start(&lab).await;
    let table = "inet spillway";
    // A pod of the gateway's own cluster can't pretend to reply.
    let seen = udp(&lab.pod, &lab.outside, SERVERS[1], 5).expect("IPv6 goes on");
    let twin = socket(&lab.twin, SERVERS[1]);
    twin.send_to(b"x", seen).expect("sent");
    eventually("the gateway drops it", || {
        let chain = lab.first.run(&format!("nft list chain {table} to_eip"));
        chain.contains("@local6 counter packets 1 ")
    });
    // The source node breaks the rules: first its own guards are taken away, then it translates at will.
    lab.source.run(&format!(
        "nft flush chain {table} leaves_7; nft flush chain {table} snat_7"
    ));
    for (to, why) in [
        ("203.0.113.10:16384-16400", "another node's port"),
        ("203.0.113.10:60000-60010", "a port of b-2"),
        ("203.0.113.10:3000-3010", "nobody's port"),
        ("203.0.113.11:1024-2047", "an address that is no egress IP"),
    ] {
        lab.source.run(&format!(
            "nft flush chain {table} snat_7; nft add rule {table} snat_7 meta nfproto ipv4 meta l4proto '{{ tcp, udp, icmp }}' \
             snat ip to {to}"
        ));
        assert!(
            udp(&lab.pod, &lab.outside, SERVERS[0], 5).is_none(),
            "{why} goes through"
        );
        assert!(
            !lab.pod.attempt(&format!("ping -n -c1 -W0.3 {}", SERVERS[0])).0,
            "{why}"
        );
    }
    let dropped = lab.second.run(&format!("nft list chain {table} transit"))
        + &lab.first.run(&format!("nft list chain {table} transit"));
    assert!(dropped.contains("counter packets"), "{dropped}");
    drop(nodes);
    assert_eq!(lab.strangers(), "");
    // The counter-check: with its own port the same rule goes through.
    lab.source.run(&format!(
        "nft flush chain {table} snat_7; nft add rule {table} snat_7 meta nfproto ipv4 meta l4proto '{{ tcp, udp, icmp }}' \
         snat ip to 203.0.113.10:1500-1600"
    ));
    assert!(udp(&lab.pod, &lab.outside, SERVERS[0], 5).is_some());
    // With another node's MAC, or another's address, the tunnel packet is nobody's.
    lab.source.run("ip link set spillway0 address 02:53:64:40:08:02");
    assert!(
        udp(&lab.pod, &lab.outside, SERVERS[0], 5).is_none(),
        "another's MAC"
    );
}

/// Without any gateway nothing leaves, and what was open goes on when one is back.
#[tokio::test(flavor = "multi_thread")]
async fn connections_wait_while_no_gateway_is_there() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let mut nodes = start(&lab).await;
    let mut open: Vec<_> = SERVERS
        .iter()
        .map(|s| connect(&lab.pod, &lab.outside, s).expect("a way"))
        .collect();
    let both = ["b-1", "b-2"].map(|n| fixtures::node_ref("b", n));
    nodes.source.inputs.liveness = Liveness {
        dead: both.into(),
        ..Liveness::default()
    };
    nodes.source.apply().await;
    for server in SERVERS {
        assert!(
            udp(&lab.pod, &lab.outside, server, 5).is_some(),
            "only their agents are away"
        );
    }
    let planned = nodes.source.inputs.plan.clone();
    for node in &mut nodes.source.inputs.plan.as_mut().expect("a plan").gateways[0].nodes {
        node.state = GatewayNodeState::NotReady;
    }
    nodes.source.apply().await;
    for (server, connection) in SERVERS.iter().zip(&mut open) {
        assert!(udp(&lab.pod, &lab.outside, server, 5).is_none());
        // The first try is dropped, the retransmission finds the gateway again.
        connection.client.write_all(b"x").expect("buffered");
    }
    nodes.source.inputs.liveness = Liveness::default();
    nodes.source.inputs.plan = planned;
    nodes.source.apply().await;
    for connection in &mut open {
        let mut x = [0];
        connection.server.read_exact(&mut x).expect("it comes after all");
        connection.exchange();
    }
    assert_eq!(lab.strangers(), "");
}

/// A policy's second gateway steps in; when the first is back, new connections take it and old ones live on.
#[tokio::test(flavor = "multi_thread")]
async fn coming_back_from_a_fallback_breaks_nothing() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let mut second = fixtures::stateless_gateway();
    second.node = "b-2".into();
    let all = [
        (&lab.first, fixtures::stateless_both()),
        (&lab.second, second),
        (&lab.source, fixtures::stateless_source()),
    ];
    let mut nodes = Vec::new();
    for (namespace, mut inputs) in all {
        let plan = inputs.plan.as_mut().expect("a plan");
        let mut paris = plan.gateways[0].clone();
        plan.gateways[0].nodes.truncate(1);
        paris.gateway = "paris".into();
        paris.nodes.remove(0);
        paris.identities[0].id = 9;
        paris.identities[0].egress_ip.ipv4 = Some("203.0.113.20".into());
        paris.identities[0].egress_ip.ipv6 = None;
        paris.slices[0].address = "203.0.113.20".into();
        paris.slices.truncate(1);
        plan.gateways.push(paris);
        for policy in &mut plan.policies {
            policy.through.push(PlannedThrough {
                gateway: "paris".into(),
                identity: 9,
            });
        }
        nodes.push(Node::start(namespace, inputs).await);
    }
    let mut source = nodes.pop().expect("three");
    source.without("b-1").await;
    let mut fallen_back = connect(&lab.pod, &lab.outside, SERVERS[0]).expect("a way");
    assert_eq!(fallen_back.seen.ip(), ip("203.0.113.20"));
    fallen_back.exchange();

    source.inputs.liveness = Liveness::default();
    source.apply().await;
    fallen_back.exchange();
    let mut new = connect(&lab.pod, &lab.outside, SERVERS[0]).expect("a way");
    assert_eq!(new.seen.ip(), ip(EIP4));
    new.exchange();

    // With the second gateway gone its connection ends at once rather than hang; the first's isn't touched.
    source.without("b-2").await;
    new.exchange();
    fallen_back.client.write_all(b"x").expect("buffered");
    let ended = fallen_back.client.read(&mut [0]);
    let ended = ended.expect_err("no answer").kind();
    assert_eq!(
        ended,
        std::io::ErrorKind::ConnectionReset,
        "the server knows no such connection"
    );
}

/// Probes go between peers' overlay addresses, untracked; nothing else that isn't granted does.
#[tokio::test(flavor = "multi_thread")]
async fn probes_pass_and_leave_no_trace() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let _nodes = start(&lab).await;
    for (from, to) in [
        ("100.64.4.1", "100.64.8.1"),
        ("fd64:5711:0:1::1", "fd64:5711:0:2::1"),
    ] {
        let bind = |namespace: &Namespace, address: &str, port| {
            namespace
                .inside(|| UdpSocket::bind((ip(address), port)))
                .expect("bind")
        };
        let asks = bind(&lab.source, from, PORT);
        let answers = bind(&lab.first, to, PORT);
        assert_eq!(
            exchange(&asks, &answers, 5).map(|seen| seen.ip()),
            Some(ip(from)),
            "a probe from {from}"
        );
        let other = bind(&lab.source, from, PORT + 1);
        assert!(exchange(&other, &answers, 5).is_none(), "from another port");
    }
    for node in [&lab.source, &lab.first] {
        let tracked = node.run("conntrack -L -p udp 2>/dev/null | grep 5712 | grep -v 5713 || true");
        assert_eq!(tracked, "");
    }
}

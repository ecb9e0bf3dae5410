//! Gateway-SNAT mode from end to end: compiled states of two nodes, real kernels, real sockets.
//!
//! ```text
//!  pod 10.244.0.5 ┐                                                                  ┌ outside 198.51.100.7
//!  web 10.244.0.7 ┴ source 10.0.0.1 ──┬── lan ──┬── 10.0.0.2 gateway 203.0.113.2 ── router
//!                                     └─ 10.0.0.254 router (also the nodes' default)
//! ```
//!
//! The source address is always read at the outside server; a recorder there keeps everyone who ever sent.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::state::DesiredState;
use spillway_core::node::{compile, fixtures};
use spillway_dataplane::{Kernel, LinuxKernel};
use support::lab::plug_pod;
use support::traffic::{silence, wait};
use support::{Namespace, eventually, privileged};

const EIP4: &str = "203.0.113.10";
const EIP6: &str = "2001:db8:1::10";
const SERVERS: [&str; 2] = ["198.51.100.7", "2001:db8:99::7"];

struct Lab {
    pod: Namespace,
    web: Namespace,
    source: Namespace,
    gateway: Namespace,
    router: Namespace,
    outside: Namespace,
    _lan: Namespace,
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            pod: Namespace::new("pod"),
            web: Namespace::new("web"),
            source: Namespace::new("source"),
            gateway: Namespace::new("gateway"),
            router: Namespace::new("router"),
            outside: Namespace::new("outside"),
            _lan: Namespace::new("lan"),
        };
        let Self {
            pod,
            web,
            source,
            gateway,
            router,
            outside,
            _lan: lan,
        } = &lab;
        for node in [source, gateway, router] {
            node.router();
        }
        // Bridged frames are no business of the namespace's own firewall.
        lan.attempt("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
        lan.run("ip link add br0 type bridge && ip link set br0 up");
        for (node, device, port) in [
            (source, "eth0", "source"),
            (gateway, "eth0", "gateway"),
            (router, "lan0", "router"),
        ] {
            node.connect(device, lan, port);
            lan.run(&format!("ip link set {port} master br0"));
        }
        source.address("eth0", &["10.0.0.1/24", "fd00:10::1/64"]);
        gateway.address("eth0", &["10.0.0.2/24", "fd00:10::2/64"]);
        router.address("lan0", &["10.0.0.254/24", "fd00:10::254/64"]);
        for node in [source, gateway] {
            node.run("ip route add default via 10.0.0.254; ip -6 route add default via fd00:10::254");
        }
        gateway.connect("eth1", router, "egress0");
        gateway.address("eth1", &["203.0.113.2/24", "2001:db8:1::2/64"]);
        // The way of replies of the gateway's own pool doesn't matter; its way out does.
        gateway.run("ip route add 198.51.100.0/24 via 203.0.113.254; ip -6 route add 2001:db8:99::/64 via 2001:db8:1::254");
        router.address("egress0", &["203.0.113.254/24", "2001:db8:1::254/64"]);
        router.connect("out0", outside, "eth0");
        router.address("out0", &["198.51.100.1/24", "2001:db8:99::1/64", "192.0.2.1/24"]);
        outside.address(
            "eth0",
            &[
                "198.51.100.7/24",
                "198.51.100.9/24",
                "192.0.2.7/24",
                "2001:db8:99::7/64",
            ],
        );
        outside.run("ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:99::1");
        outside.run(
            "nft 'table inet seen { set v4 { type ipv4_addr; flags dynamic; }; set v6 { type ipv6_addr; flags dynamic; }; \
             chain in { type filter hook input priority 0; \
             icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report } accept; \
             ip saddr != 127.0.0.1 add @v4 { ip saddr }; ip6 saddr != ::1 add @v6 { ip6 saddr }; }; }'",
        );
        for (client, device, v4, v6) in [
            (pod, "pod0", "10.244.0.5", "fd00:244::5"),
            (web, "web0", "10.244.0.7", "fd00:244::7"),
        ] {
            plug_pod(source, device, client, [v4, v6]);
        }
        // What a CNI does for traffic that leaves the cluster.
        source.run(
            "nft 'table inet cni { chain post { type nat hook postrouting priority 100; \
             ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade; \
             ip6 saddr fd00:244::/48 ip6 daddr != fd00:244::/48 masquerade; }; }'",
        );
        lab
    }

    /// Sources that the outside server ever got a packet from.
    fn seen(&self) -> String {
        self.outside.run("nft list set inet seen v4 | grep -o '[0-9]*\\.[0-9.]*' | sort -u; nft list set inet seen v6 | grep -o '[0-9a-f]*:[0-9a-f:]*' | sort -u")
    }

    fn forget(&self) {
        self.outside
            .run("nft flush set inet seen v4; nft flush set inet seen v6");
    }

    /// Opens a connection from `client` and exchanges bytes; answers whom the server saw.
    fn tcp(&self, client: &Namespace, server: &str) -> Option<IpAddr> {
        let server: IpAddr = server.parse().expect("address");
        let listener = self
            .outside
            .inside(|| TcpListener::bind((server, 0)))
            .expect("listen");
        let address = listener.local_addr().expect("address");
        let mut stream = client
            .inside(|| TcpStream::connect_timeout(&address, silence()))
            .ok()?;
        listener.set_nonblocking(true).expect("mode");
        let mut accepted = None;
        eventually("the server accepts what the client connected", || {
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let (mut peer, seen) = accepted?;
        peer.set_nonblocking(false).expect("mode");
        stream.set_read_timeout(Some(wait())).expect("timeout");
        peer.set_read_timeout(Some(wait())).expect("timeout");
        // More than the path's MTU each way, so that segments are of full size.
        let data: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let sent = data.clone();
        let writer = std::thread::spawn(move || {
            stream.write_all(&sent).expect("send");
            let mut back = vec![0; sent.len()];
            stream.read_exact(&mut back).expect("receive");
            assert!(back == sent, "bytes come back as they were");
        });
        let mut received = vec![0; data.len()];
        peer.read_exact(&mut received).expect("server receives");
        assert!(received == data, "bytes arrive as they were");
        peer.write_all(&received).expect("server sends");
        writer.join().expect("client");
        Some(seen.ip())
    }

    /// Sends a datagram and gets it back; answers whom the server saw.
    fn udp(&self, client: &Namespace, server: &str) -> Option<IpAddr> {
        let server: IpAddr = server.parse().expect("address");
        let service = self
            .outside
            .inside(|| UdpSocket::bind((server, 0)))
            .expect("bind");
        let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
            .parse()
            .expect("address");
        let socket = client.inside(|| UdpSocket::bind(any)).expect("bind");
        exchange(&socket, &service)
    }

    fn ping(client: &Namespace, server: &str) -> bool {
        client.attempt(&format!("ping -n -c1 -W0.5 {server}")).0
    }
}

fn exchange(socket: &UdpSocket, service: &UdpSocket) -> Option<IpAddr> {
    service.set_read_timeout(Some(silence())).expect("timeout");
    socket.set_read_timeout(Some(wait())).expect("timeout");
    // An earlier drop may have left an error on the socket.
    let _ = socket.take_error();
    socket
        .send_to(b"hello", service.local_addr().expect("address"))
        .ok()?;
    let mut buffer = [0; 16];
    let (length, seen) = service.recv_from(&mut buffer).ok()?;
    service.send_to(&buffer[..length], seen).expect("reply");
    let (length, _) = socket.recv_from(&mut buffer).expect("the reply comes back");
    assert_eq!(&buffer[..length], b"hello");
    Some(seen.ip())
}

/// A node's kernel and what it was last told.
struct Node {
    kernel: LinuxKernel,
    desired: DesiredState,
}

impl Node {
    async fn start(namespace: &Namespace, mut inputs: NodeInputs) -> Self {
        let kernel = namespace.kernel();
        let underlay: Vec<IpAddr> = inputs.nodes[&inputs.node]
            .underlay
            .ipv4
            .iter()
            .map(|a| a.parse().expect("address"))
            .collect();
        let facts = kernel.facts(&underlay).await.expect("facts");
        inputs.facts = facts.for_compiler(&inputs.settings.device);
        let node = Self {
            kernel,
            desired: compile(&inputs),
        };
        node.apply().await;
        let again = node.kernel.apply(&node.desired).await.expect("apply again");
        assert!(
            again.is_empty(),
            "a second apply of a compiled state wrote:\n{again}"
        );
        node
    }

    async fn apply(&self) -> usize {
        self.kernel.apply(&self.desired).await.expect("apply");
        self.kernel.cut(&self.desired.flows).await.expect("cut")
    }
}

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

async fn both(lab: &Lab) -> (Node, Node) {
    // Make before break: the gateway knows the identity before a source uses it.
    let gateway = Node::start(&lab.gateway, fixtures::gateway()).await;
    let source = Node::start(&lab.source, fixtures::source()).await;
    (source, gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outside_sees_the_egress_ip_and_nothing_else_changes() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    assert_eq!(
        lab.tcp(&lab.pod, SERVERS[0]),
        Some(ip("10.0.0.1")),
        "before: the node's address"
    );
    let _nodes = both(&lab).await;
    lab.forget();
    for (server, eip) in SERVERS.into_iter().zip([EIP4, EIP6]) {
        assert_eq!(lab.tcp(&lab.pod, server), Some(ip(eip)), "tcp to {server}");
        assert_eq!(lab.udp(&lab.pod, server), Some(ip(eip)), "udp to {server}");
        assert!(Lab::ping(&lab.pod, server), "ping {server}");
    }
    assert_eq!(lab.seen().split_whitespace().collect::<Vec<_>>(), [EIP4, EIP6]);

    for server in SERVERS {
        // IPv6 senders cut to size themselves: the pod from its second packet on, the server, told by the
        // gateway through its NAT, from its second reply on.
        let (ok, output) = lab
            .pod
            .attempt(&format!("ping -n -c4 -i0.2 -W1 -s 4000 {server}"));
        assert!(ok, "in fragments to {server}: {output}");
        // 1,468 and 1,488 bytes with the headers: more than the tunnel carries, less than the pod's own device.
        let (ok, output) = lab
            .pod
            .attempt(&format!("ping -n -c2 -W1 -M do -s 1440 {server}"));
        assert!(
            !ok && output.contains("1450"),
            "the path's MTU is told for {server}: {output}"
        );
    }

    lab.forget();
    // An excepted destination, an unselected one, and a pod that isn't selected.
    assert_eq!(lab.tcp(&lab.pod, "198.51.100.9"), Some(ip("10.0.0.1")));
    assert_eq!(lab.tcp(&lab.pod, "192.0.2.7"), Some(ip("10.0.0.1")));
    assert_eq!(lab.tcp(&lab.web, SERVERS[0]), Some(ip("10.0.0.1")));
    assert_eq!(lab.tcp(&lab.web, SERVERS[1]), Some(ip("fd00:10::1")));
    assert!(Lab::ping(&lab.pod, "10.244.0.7"), "pod to pod");
    assert!(!lab.seen().contains(EIP4));
}

/// Whatever single piece is missing, a selected pod's packet stays in rather than leave from another address.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_blocks_and_never_leaks() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let (source, gateway) = both(&lab).await;
    for (place, node, damage) in [
        (
            &lab.gateway,
            &gateway,
            "nft flush map inet spillway eip4; nft flush map inet spillway eip6",
        ),
        (&lab.gateway, &gateway, "ip link del spillway0"),
        (&lab.gateway, &gateway, "nft flush chain inet spillway translate"),
        (
            &lab.source,
            &source,
            "ip rule del pref 20001; ip -6 rule del pref 20001",
        ),
        (
            &lab.source,
            &source,
            "ip route flush table 5711001; ip -6 route flush table 5711001",
        ),
        (&lab.source, &source, "ip link del spillway0"),
        (
            &lab.source,
            &source,
            "bridge fdb del 02:53:64:40:08:01 dev spillway0 dst 10.0.0.2",
        ),
        (&lab.source, &source, "nft delete table inet spillway"),
        (&lab.source, &source, "nft flush table inet spillway"),
        (&lab.source, &source, "nft flush chain inet spillway classify"),
    ] {
        place.run(damage);
        lab.forget();
        for server in SERVERS {
            assert_eq!(lab.tcp(&lab.pod, server), None, "tcp to {server} after: {damage}");
            assert_eq!(lab.udp(&lab.pod, server), None, "udp to {server} after: {damage}");
            assert!(!Lab::ping(&lab.pod, server), "ping {server} after: {damage}");
        }
        assert_eq!(lab.seen(), "", "after: {damage}");
        node.apply().await;
        for (server, eip) in SERVERS.into_iter().zip([EIP4, EIP6]) {
            assert_eq!(
                lab.udp(&lab.pod, server),
                Some(ip(eip)),
                "udp to {server}, repaired after: {damage}"
            );
        }
    }
    // The counter-check: with the gateway out of the way altogether, the recorder does see another address.
    lab.source
        .run("nft delete table inet spillway; nft delete table inet spillway_seal");
    assert_eq!(lab.udp(&lab.pod, SERVERS[0]), Some(ip("10.0.0.1")));
}

/// A flow that began before the policy is cut, and goes on from the egress IP.
#[tokio::test(flavor = "multi_thread")]
async fn flows_that_left_another_way_are_cut() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let mut flows = Vec::new();
    for (server, any) in SERVERS.into_iter().zip(["0.0.0.0:0", "[::]:0"]) {
        let service = lab
            .outside
            .inside(|| UdpSocket::bind((ip(server), 0)))
            .expect("bind");
        let selected = lab.pod.inside(|| UdpSocket::bind(any)).expect("bind");
        let other = lab.web.inside(|| UdpSocket::bind(any)).expect("bind");
        for socket in [&selected, &other] {
            assert!(exchange(socket, &service).is_some_and(|a| a == ip("10.0.0.1") || a == ip("fd00:10::1")));
        }
        flows.push((service, selected, other));
    }
    let gateway = Node::start(&lab.gateway, fixtures::gateway()).await;
    let kernel = lab.source.kernel();
    let mut inputs = fixtures::source();
    let facts = kernel.facts(&[ip("10.0.0.1")]).await.expect("facts");
    inputs.facts = facts.for_compiler(&inputs.settings.device);
    let desired = compile(&inputs);
    kernel.apply(&desired).await.expect("apply");
    assert_eq!(
        kernel.cut(&desired.flows).await.expect("cut"),
        2,
        "one flow a family"
    );
    assert_eq!(
        kernel.cut(&desired.flows).await.expect("cut"),
        0,
        "nothing is left to cut"
    );
    for ((service, selected, other), eip) in flows.iter().zip([EIP4, EIP6]) {
        assert_eq!(
            exchange(selected, service),
            Some(ip(eip)),
            "the same socket goes on"
        );
        assert_ne!(
            exchange(other, service),
            Some(ip(eip)),
            "another pod's flow is left alone"
        );
    }
    drop(gateway);
}

/// Whoever had the egress IP before, the neighbours know at once that it is here now.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_is_announced() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    // All namespaces share the kernel's limit of neighbours: an entry may go while the node starts.
    lab.router.run("sysctl -qw net.ipv4.conf.egress0.arp_accept=1");
    lab.router
        .attempt("sysctl -qw net.ipv6.conf.egress0.accept_untracked_na=1");
    for eip in [EIP4, EIP6] {
        lab.router.run(&format!(
            "ip neigh replace {eip} lladdr 02:00:00:00:00:99 dev egress0 nud stale"
        ));
    }
    let gateway = Node::start(&lab.gateway, fixtures::gateway()).await;
    let mac = lab
        .gateway
        .run("ip -o link show eth1 | sed 's/.*link.ether //; s/ .*//'");
    let known = |eip: &str| {
        lab.router
            .run(&format!("ip neigh show {eip} dev egress0"))
            .contains(mac.trim())
    };
    eventually("the router learns the IPv4 egress IP's new place", || known(EIP4));
    eventually("the router learns the IPv6 egress IP's new place", || known(EIP6));
    // Asked for, too.
    for eip in [EIP4, EIP6] {
        lab.router.run(&format!(
            "ip neigh flush all; ip -6 neigh flush all; ping -n -c1 -W1 {eip} || true"
        ));
        eventually("the proxy answers", || known(eip));
    }
    lab.router.run(&format!(
        "ip neigh replace {EIP4} lladdr 02:00:00:00:00:99 dev egress0 nud stale"
    ));
    gateway.kernel.announce(&[ip(EIP4)]).await.expect("announce");
    eventually("announced on demand", || known(EIP4));
}

/// With the guard, what nobody has told the node of stays in, whichever table is missing; a pod that becomes known is one
/// element in the kernel, and one that is no longer sends nothing more there.
#[tokio::test(flavor = "multi_thread")]
async fn what_isnt_known_yet_stays_in() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let _gateway = Node::start(&lab.gateway, fixtures::gateway()).await;
    let everybody = NodeInputs {
        guard: true,
        ..fixtures::source()
    };
    let nobody = NodeInputs {
        pods: Vec::new(),
        ..everybody.clone()
    };
    let mut source = Node::start(&lab.source, nobody).await;
    let clients = [&lab.pod, &lab.web];
    for damage in [
        "true",
        "nft delete table inet spillway",
        "nft flush chain inet spillway classify",
        "nft delete table inet spillway_seal",
    ] {
        lab.source.run(damage);
        lab.forget();
        for client in clients {
            for server in SERVERS {
                assert_eq!(lab.udp(client, server), None, "{server} after: {damage}");
                assert_eq!(lab.tcp(client, server), None, "{server} after: {damage}");
            }
        }
        assert_eq!(lab.seen(), "", "after: {damage}");
        // What no policy claims, and what stays in the cluster.
        assert_eq!(lab.udp(&lab.pod, "192.0.2.7"), Some(ip("10.0.0.1")));
        assert_eq!(lab.udp(&lab.pod, "198.51.100.9"), Some(ip("10.0.0.1")));
        let service = lab.web.inside(|| UdpSocket::bind("0.0.0.0:7")).expect("bind");
        let client = lab.pod.inside(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
        client
            .connect("10.244.0.7:7")
            .and_then(|()| client.send(b"hello"))
            .expect("sent");
        service.set_read_timeout(Some(wait())).expect("timeout");
        let (_, seen) = service.recv_from(&mut [0; 16]).expect("pod to pod");
        assert_eq!(seen.ip(), ip("10.244.0.5"));
        source.apply().await;
    }

    let mut inputs = everybody.clone();
    inputs.facts = source
        .kernel
        .facts(&[ip("10.0.0.1")])
        .await
        .expect("facts")
        .for_compiler(&inputs.settings.device);
    let web = inputs.pods.pop().expect("web-0");
    inputs.pods = vec![web];
    source.desired = compile(&inputs);
    let changes = source.kernel.apply(&source.desired).await.expect("apply");
    assert_eq!(changes.len(), 2, "an element in either table:\n{changes}");
    assert_eq!(lab.udp(&lab.web, SERVERS[0]), Some(ip("10.0.0.1")));
    assert_eq!(lab.udp(&lab.pod, SERVERS[0]), None, "the other one isn't known");

    let service = lab
        .outside
        .inside(|| UdpSocket::bind((SERVERS[0], 0)))
        .expect("bind");
    let began = lab.web.inside(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
    assert_eq!(exchange(&began, &service), Some(ip("10.0.0.1")));
    inputs.pods = everybody.pods;
    inputs.pods[2].deleting = true;
    source.desired = compile(&inputs);
    source.apply().await;
    assert_eq!(
        exchange(&began, &service),
        None,
        "not even what it began: whoever has its address next may hit upon the port"
    );
    assert_eq!(
        lab.udp(&lab.web, SERVERS[0]),
        None,
        "its address may be another's"
    );
    for (server, eip) in SERVERS.into_iter().zip([EIP4, EIP6]) {
        assert_eq!(
            lab.udp(&lab.pod, server),
            Some(ip(eip)),
            "the selected one is known now"
        );
    }

    inputs.guard = false;
    source.desired = compile(&inputs);
    source.apply().await;
    assert!(
        !lab.source.run("nft list ruleset").contains("unknown"),
        "nothing of it is left"
    );
    assert_eq!(lab.udp(&lab.web, SERVERS[0]), Some(ip("10.0.0.1")));
}

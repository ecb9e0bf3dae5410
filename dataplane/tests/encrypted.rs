//! Encrypted paths from end to end: compiled states of two nodes, WireGuard in this process or, with
//! `SPILLWAY_TEST_WIREGUARD=kernel`, in the kernel, and everything that was on the wire between.
//!
//! ```text
//!  pod 10.244.0.5 ── source a-1 10.0.0.1 ── wire ── gateway b-1 10.0.0.2, 203.0.113.2 ── outside 198.51.100.7
//!                                            │
//!                                        intruder 10.0.0.66
//! ```

mod support;

use std::net::{IpAddr, UdpSocket};
use std::process::{Child, Command, Stdio};

use spillway_core::node::gateways::Liveness;
use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::state::DesiredState;
use spillway_core::node::{compile, fixtures};
use spillway_dataplane::{Choice, Implementation, Kernel, LinuxKernel, PrivateKey};
use support::lab::{plug_outside, plug_pod, record_sources};
use support::traffic::{connect, exchange, service, silence, socket, strangers, tcp, udp, wait};
use support::{Namespace, eventually, needs_egress_hook, privileged, wireguard};

const EIP4: &str = "203.0.113.10";
const EIP6: &str = "2001:db8:1::10";
const SERVERS: [&str; 2] = ["198.51.100.7", "2001:db8:99::7"];
/// Stands in every payload that mustn't be read on the wire.
const MARK: &[u8] = b"a payload that nobody on the wire may read";
/// UDP ports of the tunnel and of WireGuard.
const TUNNEL: u16 = 4799;
const WIREGUARD: u16 = 5713;

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

struct Lab {
    pod: Namespace,
    source: Namespace,
    gateway: Namespace,
    outside: Namespace,
    intruder: Namespace,
    wire: Namespace,
}

impl Lab {
    fn new() -> Self {
        needs_egress_hook();
        let lab = Self {
            pod: Namespace::new("pod"),
            source: Namespace::new("source"),
            gateway: Namespace::new("gateway"),
            outside: Namespace::new("outside"),
            intruder: Namespace::new("intruder"),
            wire: Namespace::new("wire"),
        };
        let Self {
            pod,
            source,
            gateway,
            outside,
            intruder,
            wire,
        } = &lab;
        wire.attempt("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
        wire.run("ip link add br0 type bridge; ip link set br0 up");
        for (n, node) in [source, gateway].into_iter().enumerate() {
            node.router();
            node.run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
            let n = n + 1;
            node.connect("eth0", wire, &format!("port{n}"));
            node.address("eth0", &[&format!("10.0.0.{n}/24"), &format!("fd00:10::{n}/64")]);
        }
        intruder.connect("eth0", wire, "port3");
        intruder.address("eth0", &["10.0.0.66/24", "fd00:10::66/64"]);
        wire.run("for n in 1 2 3; do ip link set port$n master br0; done");
        plug_outside(gateway, outside);
        source.run("ip route add default via 10.0.0.2; ip -6 route add default via fd00:10::2");
        record_sources(outside);
        plug_pod(source, "pod0", pod, ["10.244.0.5", "fd00:244::5"]);
        lab
    }

    /// Whoever else than the egress IPs the outside server got packets from.
    fn strangers(&self) -> String {
        strangers(&self.outside, [EIP4, EIP6])
    }

    /// Whether a datagram of 4,000 bytes comes to the server and back.
    fn large(&self, server: &str) -> bool {
        let (client, service) = (socket(&self.pod, server), service(&self.outside, server));
        for socket in [&client, &service] {
            socket.set_read_timeout(Some(silence())).expect("timeout");
        }
        let mut buffer = [0; 5000];
        let there = client.send_to(&[1; 4000], service.local_addr().expect("address"));
        let back = there
            .and_then(|_| service.recv_from(&mut buffer))
            .and_then(|(length, seen)| service.send_to(&buffer[..length], seen))
            .and_then(|_| client.recv(&mut buffer));
        back.is_ok_and(|length| length == 4000)
    }

    /// Whether a marked datagram comes to the server and back, and from whom it came.
    fn marked(&self, server: &str) -> Option<IpAddr> {
        let (client, service) = (socket(&self.pod, server), service(&self.outside, server));
        service.set_read_timeout(Some(silence())).expect("timeout");
        client.set_read_timeout(Some(wait())).expect("timeout");
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

/// Everything that passes the wire.
struct Capture {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Capture {
    fn start(lab: &Lab) -> Self {
        let file = tempfile::NamedTempFile::new().expect("file");
        let child = Command::new("ip")
            .args([
                "netns",
                "exec",
                &lab.wire.name,
                "tcpdump",
                "-Z",
                "root",
                "-U",
                "-i",
                "br0",
                "-w",
            ])
            .arg(file.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tcpdump");
        let capture = Self { child, file };
        // It listens once something that is sent shows up.
        eventually("the capture has begun", || {
            lab.wire.attempt("ip -6 neigh flush dev br0");
            let beacon = socket(&lab.intruder, "10.0.0.255");
            beacon.set_broadcast(true).expect("broadcast");
            let _ = beacon.send_to(b"beacon", "10.0.0.255:9");
            capture.read().windows(6).any(|w| w == b"beacon")
        });
        capture
    }

    fn read(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).expect("capture")
    }

    /// Waits until what was sent so far is in the file, and answers it: its bytes, and how many UDP packets had each of
    /// these destination ports.
    fn stop<const N: usize>(mut self, lab: &Lab, ports: [u16; N]) -> (Vec<u8>, [usize; N]) {
        let end = socket(&lab.intruder, "10.0.0.255");
        end.set_broadcast(true).expect("broadcast");
        eventually("the capture has all", || {
            let _ = end.send_to(b"the end", "10.0.0.255:9");
            self.read().windows(7).any(|w| w == b"the end")
        });
        let _ = self.child.kill();
        let _ = self.child.wait();
        let count = |port: u16| {
            let output = Command::new("tcpdump")
                .args(["-n", "-r"])
                .arg(self.file.path())
                .arg(format!("udp dst port {port}"))
                .output()
                .expect("tcpdump");
            output
                .stdout
                .split(|b| *b == b'\n')
                .filter(|l| !l.is_empty())
                .count()
        };
        (self.read(), ports.map(count))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle)
}

/// Keys of a-1, b-1 and b-2.
fn keys() -> [PrivateKey; 3] {
    std::array::from_fn(|_| PrivateKey::generate())
}

fn encrypted(inputs: NodeInputs, keys: &[PrivateKey; 3]) -> NodeInputs {
    let mut inputs = fixtures::encrypted(inputs, |node| {
        let n = ["a-1", "b-1", "b-2"].iter().position(|n| *n == node)?;
        Some(keys[n].public().to_string())
    });
    // It isn't there.
    inputs.liveness = Liveness {
        dead: [fixtures::node_ref("b", "b-2")].into(),
        ..Liveness::default()
    };
    inputs
}

struct Node {
    kernel: LinuxKernel,
    desired: DesiredState,
}

impl Node {
    async fn start(namespace: &Namespace, key: &PrivateKey, mut inputs: NodeInputs) -> Self {
        let kernel = namespace.kernel_with(key.clone());
        let underlay = &inputs.nodes[&inputs.node].underlay;
        let underlay = underlay.ipv4.iter().chain(&underlay.ipv6);
        let underlay: Vec<IpAddr> = underlay.map(|a| ip(a)).collect();
        let facts = kernel.facts(&underlay).await.expect("facts");
        inputs.facts = facts.for_compiler(&inputs.settings.device);
        let desired = compile(&inputs);
        kernel.apply(&desired).await.expect("apply");
        let again = kernel.apply(&desired).await.expect("apply again");
        assert!(
            again.is_empty(),
            "a second apply of a compiled state wrote:\n{again}"
        );
        kernel.cut(&desired.flows).await.expect("cut");
        Self { kernel, desired }
    }

    async fn shaken_hands(&self) -> usize {
        let encryption = self.kernel.encryption().await.expect("encryption");
        let expected = match wireguard() {
            Choice::Kernel => Implementation::Kernel,
            _ => Implementation::Userspace,
        };
        assert_eq!(encryption.implementation, Some(expected), "{encryption:?}");
        encryption.peers.values().flatten().count()
    }
}

async fn start(lab: &Lab, keys: &[PrivateKey; 3]) -> (Node, Node) {
    let gateway = Node::start(
        &lab.gateway,
        &keys[1],
        encrypted(fixtures::stateless_gateway(), keys),
    );
    let gateway = gateway.await;
    let source = Node::start(
        &lab.source,
        &keys[0],
        encrypted(fixtures::stateless_source(), keys),
    )
    .await;
    (source, gateway)
}

/// Packets counted by those rules of a chain that hold `needle`.
fn counted(node: &Namespace, chain: &str, needle: &str) -> u64 {
    let text = node.run(&format!("nft list chain inet spillway {chain}"));
    let rules = text.lines().filter(|l| l.contains(needle));
    rules
        .filter_map(|l| {
            l.split("counter packets ")
                .nth(1)?
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_far_end_sees_the_egress_ip_and_the_wire_sees_nothing() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = keys();
    let capture = Capture::start(&lab);
    let (source, gateway) = start(&lab, &keys).await;
    for (server, eip) in SERVERS.into_iter().zip([EIP4, EIP6]) {
        eventually("the first handshake", || lab.marked(server).is_some());
        assert_eq!(lab.marked(server), Some(ip(eip)));
        // More than the path's MTU, which takes a packet or two each way to be learned from the errors.
        eventually("a datagram in fragments", || lab.large(server));
        for size in [5, 1300, 4000] {
            let seen = udp(&lab.pod, &lab.outside, server, size).expect("a way");
            assert_eq!(seen.ip(), ip(eip));
        }
        let seen = tcp(&lab.pod, &lab.outside, server).expect("a way");
        assert_eq!(seen.ip(), ip(eip));
    }
    let (bytes, [tunnel, wireguard]) = capture.stop(&lab, [TUNNEL, WIREGUARD]);
    assert!(!holds(&bytes, MARK), "the payload can be read on the wire");
    assert_eq!(tunnel, 0, "the tunnel's own packets are on the wire");
    assert!(wireguard > 300, "{wireguard} packets of WireGuard");
    assert_eq!(lab.strangers(), "");
    assert_eq!(source.shaken_hands().await, 1);
    assert_eq!(gateway.shaken_hands().await, 1);
}

/// The same path without encryption shows what the test above would see: else it would prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_in_the_clear_can_be_read() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = keys();
    let plain = |mut inputs: NodeInputs| {
        inputs.liveness.dead.insert(fixtures::node_ref("b", "b-2"));
        inputs
    };
    let capture = Capture::start(&lab);
    let _gateway = Node::start(&lab.gateway, &keys[1], plain(fixtures::stateless_gateway())).await;
    let _source = Node::start(&lab.source, &keys[0], plain(fixtures::stateless_source())).await;
    assert_eq!(lab.marked(SERVERS[0]), Some(ip(EIP4)));
    let (bytes, [tunnel]) = capture.stop(&lab, [TUNNEL]);
    assert!(holds(&bytes, MARK));
    assert!(tunnel > 0);
}

/// Whatever is taken away from under the tunnel, by whomever: nothing goes another way.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_in_the_clear_while_wireguard_is_down() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = keys();
    let (source, _gateway) = start(&lab, &keys).await;
    eventually("the first handshake", || lab.marked(SERVERS[0]).is_some());
    let capture = Capture::start(&lab);
    let fdb = "bridge fdb replace 02:53:64:40:08:01 dev spillway0 self dst";
    for (what, breaks) in [
        ("the device is down", "ip link set spillway-wg down".to_owned()),
        ("the device is gone", "ip link del spillway-wg".to_owned()),
        ("its route is gone", "ip route flush table 5711000".to_owned()),
        ("the rule is gone", "ip rule del pref 20000".to_owned()),
        (
            "somebody leads the address elsewhere",
            "ip rule del pref 20000; ip route add 100.64.8.1/32 via 10.0.0.2 metric 1".to_owned(),
        ),
        ("somebody leads the tunnel elsewhere", format!("{fdb} 10.0.0.2")),
    ] {
        lab.source.run(&breaks);
        for server in SERVERS {
            assert_eq!(lab.marked(server), None, "{what}, and yet it passed");
        }
        lab.source
            .attempt("ip route del 100.64.8.1/32 via 10.0.0.2 metric 1");
        source.kernel.apply(&source.desired).await.expect("repair");
        eventually("it is repaired", || lab.marked(SERVERS[0]).is_some());
    }
    assert!(
        counted(&lab.source, "leave", "@encrypted4") > 0,
        "what would have gone by another device was counted"
    );
    assert!(
        counted(&lab.source, "leave", "@exposed4") > 0,
        "what would have gone in the clear was counted"
    );
    let (bytes, [tunnel]) = capture.stop(&lab, [TUNNEL]);
    assert!(!holds(&bytes, MARK));
    assert_eq!(tunnel, 0);
    assert_eq!(lab.strangers(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_packets_are_dropped_and_counted() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = keys();
    let (_source, _gateway) = start(&lab, &keys).await;
    eventually("the first handshake", || lab.marked(SERVERS[0]).is_some());

    // VXLAN in the clear from the peer's own underlay address: its guards are in the way of a true one.
    lab.source.run("nft flush ruleset");
    let send = |from: &Namespace, source: &str, to: &str| {
        let bound = from.inside(|| UdpSocket::bind((ip(source), 0))).expect("bind");
        bound.send_to(&[0x88; 100], (ip(to), TUNNEL)).expect("sent");
    };
    let before = counted(&lab.gateway, "tunnel_input", "@bound4");
    send(&lab.source, "10.0.0.1", "10.0.0.2");
    eventually("it is counted", || {
        counted(&lab.gateway, "tunnel_input", "@bound4") > before
    });

    // VXLAN in the clear with the peer's overlay address, which is a peer's name on the encrypted path.
    lab.intruder.address("eth0", &["100.64.4.1/32"]);
    lab.intruder.run("ip route add 100.64.8.1 via 10.0.0.2");
    let before = counted(&lab.gateway, "raw_in", "@encrypted4");
    for to in ["10.0.0.2", "100.64.8.1"] {
        send(&lab.intruder, "100.64.4.1", to);
    }
    eventually("both are counted", || {
        counted(&lab.gateway, "raw_in", "@encrypted4") == before + 2
    });
    assert_eq!(lab.strangers(), "");
}

/// Somebody else with all of a node's addresses and settings, and only not with its key.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_another_key_gets_nowhere() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = keys();
    let gateway = Node::start(
        &lab.gateway,
        &keys[1],
        encrypted(fixtures::stateless_gateway(), &keys),
    )
    .await;
    let stranger = PrivateKey::generate();
    let source = Node::start(
        &lab.source,
        &stranger,
        encrypted(fixtures::stateless_source(), &keys),
    )
    .await;
    for server in SERVERS {
        assert_eq!(lab.marked(server), None);
    }
    assert_eq!(source.shaken_hands().await, 0);
    assert_eq!(gateway.shaken_hands().await, 0);
    assert_eq!(lab.strangers(), "");
}

/// WireGuard in userspace ends with the agent. Whichever agent it is, nothing passes meanwhile, and connections go on when
/// the next one is there. In the kernel it goes on without one.
#[tokio::test(flavor = "multi_thread")]
async fn connections_outlive_an_agents_restart() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys = keys();
    let (source, gateway) = start(&lab, &keys).await;
    eventually("the first handshake", || lab.marked(SERVERS[0]).is_some());
    let mut connection = connect(&lab.pod, &lab.outside, SERVERS[0]).expect("a way");
    connection.exchange();
    let capture = Capture::start(&lab);
    let mut nodes = [Some(source), Some(gateway)];
    for n in [0, 1] {
        let (namespace, inputs) = match n {
            0 => (&lab.source, fixtures::stateless_source()),
            _ => (&lab.gateway, fixtures::stateless_gateway()),
        };
        nodes[n] = None;
        if wireguard() == Choice::Kernel {
            assert_eq!(lab.marked(SERVERS[0]), Some(ip(EIP4)), "the kernel goes on");
            connection.exchange();
        } else {
            eventually("the device goes with its process", || {
                !namespace.attempt("ip link show spillway-wg").0
            });
            assert_eq!(lab.marked(SERVERS[0]), None, "nothing passes meanwhile");
        }
        nodes[n] = Some(Node::start(namespace, &keys[n], encrypted(inputs, &keys)).await);
        let (client, service) = (socket(&lab.pod, SERVERS[0]), service(&lab.outside, SERVERS[0]));
        eventually("the way is open again", || {
            exchange(&client, &service, 5).is_some()
        });
        connection.exchange();
    }
    let (bytes, [tunnel]) = capture.stop(&lab, [TUNNEL]);
    assert!(!holds(&bytes, MARK));
    assert_eq!(tunnel, 0);
}

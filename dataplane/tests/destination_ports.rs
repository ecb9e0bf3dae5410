//! Policies with ports, with real packets: one port of a server is one egress IP's, another one's another's, the rest leaves as ever.
//!
//! ```text
//!  pod 10.244.0.5 ── source 10.0.0.1 ──┬── 10.0.0.2 gateway 203.0.113.2 ──┐
//!                                      └────────── 10.0.0.254 router 203.0.113.254 ── outside 198.51.100.7
//! ```
//!
//! Whom the outside server saw is read there.

mod support;

use std::net::IpAddr;

use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::state::DesiredState;
use spillway_core::node::{compile, fixtures};
use spillway_crds::address::AddressPair;
use spillway_crds::hub::{DestinationPort, Protocol};
use spillway_crds::member::{PlannedPolicySpec, PlannedThrough};
use spillway_dataplane::{Kernel, LinuxKernel};
use support::lab::plug_pod;
use support::traffic::{connect_to, exchange, service_at, socket};
use support::{Namespace, eventually, privileged};

const SERVERS: [&str; 2] = ["198.51.100.7", "2001:db8:99::7"];
/// Egress IPs of identities 7 and 8, and the source node's own address.
const FIRST: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const SECOND: [&str; 2] = ["203.0.113.11", "2001:db8:1::11"];
const NODE: [&str; 2] = ["10.0.0.1", "fd00:10::1"];

struct Lab {
    pod: Namespace,
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
            source: Namespace::new("source"),
            gateway: Namespace::new("gateway"),
            router: Namespace::new("router"),
            outside: Namespace::new("outside"),
            _lan: Namespace::new("lan"),
        };
        let Self {
            pod,
            source,
            gateway,
            router,
            outside,
            _lan: lan,
        } = &lab;
        lan.attempt("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
        lan.run("ip link add br0 type bridge && ip link set br0 up");
        for (node, device, port, addresses) in [
            (source, "eth0", "source", ["10.0.0.1/24", "fd00:10::1/64"]),
            (gateway, "eth0", "gateway", ["10.0.0.2/24", "fd00:10::2/64"]),
            (router, "lan0", "router", ["10.0.0.254/24", "fd00:10::254/64"]),
        ] {
            node.router();
            node.connect(device, lan, port);
            lan.run(&format!("ip link set {port} master br0"));
            node.address(device, &addresses);
        }
        for node in [source, gateway] {
            node.run("ip route add default via 10.0.0.254; ip -6 route add default via fd00:10::254");
        }
        gateway.connect("eth1", router, "egress0");
        gateway.address("eth1", &["203.0.113.2/24", "2001:db8:1::2/64"]);
        gateway.run("ip route add 198.51.100.0/24 via 203.0.113.254; ip -6 route add 2001:db8:99::/64 via 2001:db8:1::254");
        router.address("egress0", &["203.0.113.254/24", "2001:db8:1::254/64"]);
        router.connect("out0", outside, "eth0");
        router.address("out0", &["198.51.100.1/24", "2001:db8:99::1/64"]);
        outside.address("eth0", &["198.51.100.7/24", "2001:db8:99::7/64"]);
        outside.run("ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:99::1");
        // Who sent an echo request: the kernel answers these itself.
        outside.run(
            "nft 'table inet pings { set v4 { type ipv4_addr; flags dynamic; }; set v6 { type ipv6_addr; flags dynamic; }; \
             chain in { type filter hook input priority 0; icmp type echo-request add @v4 { ip saddr }; \
             icmpv6 type echo-request add @v6 { ip6 saddr }; }; }'",
        );
        plug_pod(source, "pod0", pod, ["10.244.0.5", "fd00:244::5"]);
        source.run(
            "nft 'table inet cni { chain post { type nat hook postrouting priority 100; \
             ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade; \
             ip6 saddr fd00:244::/48 ip6 daddr != fd00:244::/48 masquerade; }; }'",
        );
        lab
    }

    /// Whom the server sees at a TCP port, after bytes went both ways; nobody where packets are dropped.
    fn tcp(&self, family: usize, port: u16) -> Option<IpAddr> {
        let mut connection = connect_to(&self.pod, &self.outside, SERVERS[family], port)?;
        connection.exchange();
        Some(connection.seen.ip())
    }

    /// The same at a UDP port.
    fn udp(&self, family: usize, port: u16) -> Option<IpAddr> {
        let service = service_at(&self.outside, SERVERS[family], port);
        let client = socket(&self.pod, SERVERS[family]);
        exchange(&client, &service, 5).map(|seen| seen.ip())
    }

    /// Whom the server sees of a datagram that takes more than an Ethernet frame: only the first piece has the port.
    fn fragments(&self, family: usize, port: u16) -> Option<IpAddr> {
        let service = service_at(&self.outside, SERVERS[family], port);
        let client = socket(&self.pod, SERVERS[family]);
        let mut seen = None;
        service
            .set_read_timeout(Some(std::time::Duration::from_millis(300)))
            .expect("timeout");
        // The path's MTU takes a packet or two to be learned from the errors.
        eventually("a datagram in fragments arrives", || {
            let _ = client.send_to(&[7; 4000], service.local_addr().expect("address"));
            let mut buffer = [0; 5000];
            seen = service.recv_from(&mut buffer).ok();
            seen.is_some()
        });
        seen.filter(|(length, _)| *length == 4000)
            .map(|(_, from)| from.ip())
    }

    /// Whom the server sees where the pod pings it.
    fn ping(&self, family: usize) -> Option<IpAddr> {
        let set = ["v4", "v6"][family];
        self.outside.run(&format!("nft flush set inet pings {set}"));
        let (answered, _) = self
            .pod
            .attempt(&format!("ping -n -c1 -W0.5 {}", SERVERS[family]));
        let seen = self.outside.run(&format!("nft list set inet pings {set}"));
        let mut seen = seen
            .split([' ', ',', '\n', '\t'])
            .filter_map(|word| word.parse().ok());
        seen.next().filter(|_| answered)
    }
}

/// An address as one that was seen.
#[allow(
    clippy::unnecessary_wraps,
    reason = "compared with whom the server saw, which may be nobody"
)]
fn ip(s: &str) -> Option<IpAddr> {
    Some(s.parse().expect("address"))
}

fn port(protocol: Protocol, port: Option<i32>, end_port: Option<i32>) -> DestinationPort {
    DestinationPort {
        protocol,
        port,
        end_port,
    }
}

fn policy(name: &str, identity: u16, ports: Vec<DestinationPort>) -> PlannedPolicySpec {
    let mut policy = fixtures::bank();
    policy.source.name = name.into();
    policy.to.ports = ports;
    policy.through = vec![PlannedThrough {
        gateway: "frankfurt".into(),
        identity,
    }];
    policy
}

/// Inputs in which gateway frankfurt has both identities.
fn with_both(mut inputs: NodeInputs) -> NodeInputs {
    let gateway = &mut inputs.plan.as_mut().expect("a plan").gateways[0];
    let mut second = gateway.identities[0].clone();
    second.id = 8;
    second.egress_ip = AddressPair {
        ipv4: Some(SECOND[0].into()),
        ipv6: Some(SECOND[1].into()),
    };
    gateway.identities.push(second);
    inputs
}

/// A node's kernel, and what it was made from.
struct Node {
    kernel: LinuxKernel,
    inputs: NodeInputs,
    desired: DesiredState,
}

impl Node {
    async fn start(namespace: &Namespace, inputs: NodeInputs) -> Self {
        let mut inputs = with_both(inputs);
        let kernel = namespace.kernel();
        let underlay: Vec<IpAddr> = inputs.nodes[&inputs.node]
            .underlay
            .ipv4
            .iter()
            .filter_map(|a| ip(a))
            .collect();
        let facts = kernel.facts(&underlay).await.expect("facts");
        inputs.facts = facts.for_compiler(&inputs.settings.device);
        let mut node = Self {
            kernel,
            inputs,
            desired: DesiredState::default(),
        };
        node.apply().await;
        node
    }

    /// Has the kernel hold what the inputs say, and nothing else; answers how many flows were cut.
    async fn apply(&mut self) -> usize {
        self.desired = compile(&self.inputs);
        self.kernel.apply(&self.desired).await.expect("apply");
        let again = self.kernel.apply(&self.desired).await.expect("apply again");
        assert!(
            again.is_empty(),
            "a second apply of a compiled state wrote:\n{again}"
        );
        self.kernel.cut(&self.desired.flows).await.expect("cut")
    }

    async fn policies(&mut self, policies: Vec<PlannedPolicySpec>) -> usize {
        self.inputs.plan.as_mut().expect("a plan").policies = policies;
        self.apply().await
    }
}

async fn start(lab: &Lab) -> (Node, Node) {
    let gateway = Node::start(&lab.gateway, fixtures::gateway()).await;
    let mut inputs = fixtures::source();
    inputs.plan.as_mut().expect("a plan").policies.clear();
    (Node::start(&lab.source, inputs).await, gateway)
}

use Protocol::{Icmp, Tcp, Udp};

#[tokio::test(flavor = "multi_thread")]
async fn each_port_leaves_as_the_policy_that_claims_it_says() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let (mut source, _gateway) = start(&lab).await;
    let bank = || {
        policy(
            "bank",
            7,
            vec![port(Tcp, Some(443), None), port(Tcp, Some(8000), Some(8010))],
        )
    };
    source
        .policies(vec![bank(), policy("names", 8, vec![port(Udp, None, None)])])
        .await;
    for family in 0..2 {
        for (tcp, seen) in [
            (443, FIRST),
            (8000, FIRST),
            (8010, FIRST),
            (8011, NODE),
            (80, NODE),
        ] {
            assert_eq!(
                lab.tcp(family, tcp),
                ip(seen[family]),
                "TCP {tcp} of {}",
                SERVERS[family]
            );
        }
        assert_eq!(lab.udp(family, 53), ip(SECOND[family]));
        assert_eq!(
            lab.udp(family, 443),
            ip(SECOND[family]),
            "another protocol's port"
        );
        assert_eq!(lab.fragments(family, 53), ip(SECOND[family]));
        assert_eq!(lab.ping(family), ip(NODE[family]));
    }
    // One of the others claims ICMP, then all that is left.
    source
        .policies(vec![
            bank(),
            policy(
                "names",
                8,
                vec![port(Udp, Some(53), None), port(Icmp, None, None)],
            ),
        ])
        .await;
    for family in 0..2 {
        assert_eq!(lab.ping(family), ip(SECOND[family]));
        assert_eq!(lab.udp(family, 54), ip(NODE[family]));
        assert_eq!(lab.tcp(family, 443), ip(FIRST[family]));
    }
    let mut rest = policy("rest", 8, vec![]);
    rest.priority = 9;
    source.policies(vec![bank(), rest]).await;
    for family in 0..2 {
        assert_eq!(
            lab.tcp(family, 443),
            ip(FIRST[family]),
            "fewer ports go before priority"
        );
        assert_eq!(lab.tcp(family, 80), ip(SECOND[family]));
        assert_eq!(lab.udp(family, 53), ip(SECOND[family]));
        assert_eq!(lab.ping(family), ip(SECOND[family]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_flows_of_claimed_ports_are_cut() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let (mut source, _gateway) = start(&lab).await;
    let mut flows = Vec::new();
    for server in SERVERS {
        for udp in [53, 54] {
            let service = service_at(&lab.outside, server, udp);
            let client = socket(&lab.pod, server);
            assert!(exchange(&client, &service, 5).is_some());
            flows.push((client, service));
        }
    }
    let bank = policy("bank", 7, vec![port(Udp, Some(53), None)]);
    assert_eq!(source.policies(vec![bank]).await, 2, "one a family");
    for (n, (client, service)) in flows.iter().enumerate() {
        let seen = exchange(client, service, 5).map(|seen| seen.ip());
        let expected = if n % 2 == 0 { FIRST } else { NODE };
        assert_eq!(seen, ip(expected[n / 2]));
    }
    assert_eq!(source.policies(vec![]).await, 2, "they leave as ever again");
    for (n, (client, service)) in flows.iter().enumerate() {
        assert_eq!(
            exchange(client, service, 5).map(|seen| seen.ip()),
            ip(NODE[n / 2])
        );
    }
}

/// An error is no packet of a port: it goes the way of the connection that it is about, whoever claims ICMP.
#[tokio::test(flavor = "multi_thread")]
async fn errors_go_the_way_of_their_connection() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let (mut source, _gateway) = start(&lab).await;
    let bank = policy("bank", 7, vec![port(Udp, Some(53), None)]);
    let pings = policy("pings", 8, vec![port(Icmp, None, None)]);
    for policies in [vec![bank.clone()], vec![bank, pings]] {
        source.policies(policies).await;
        for (family, server) in SERVERS.into_iter().enumerate() {
            for (udp, expected) in [(53, FIRST), (54, NODE)] {
                let service = service_at(&lab.outside, server, udp);
                let client = socket(&lab.pod, server);
                let seen = exchange(&client, &service, 5).expect("a way");
                assert_eq!(Some(seen.ip()), ip(expected[family]));
                // Nobody is at the pod's port any more, which it says.
                drop(client);
                service.connect(seen).expect("connect");
                eventually("the pod's error reaches the server", || {
                    let _ = service.send(b"x");
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    matches!(service.take_error(), Ok(Some(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused)
                });
            }
        }
    }
}

/// What holds while tables are missing, and for pods that the node doesn't know, holds for claimed ports and no others.
#[tokio::test(flavor = "multi_thread")]
async fn seal_and_guard_know_ports() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let (mut source, _gateway) = start(&lab).await;
    let bank = || {
        policy(
            "bank",
            7,
            vec![port(Tcp, Some(443), None), port(Icmp, None, None)],
        )
    };
    source.policies(vec![bank()]).await;
    lab.source.run("nft delete table inet spillway");
    for (family, node) in NODE.into_iter().enumerate() {
        assert_eq!(lab.tcp(family, 443), None, "sealed");
        assert_eq!(lab.ping(family), None, "sealed");
        assert_eq!(lab.tcp(family, 80), ip(node));
        assert_eq!(lab.udp(family, 443), ip(node));
    }
    lab.source.run("nft delete table inet spillway_seal");
    assert_eq!(
        lab.tcp(0, 443),
        ip(NODE[0]),
        "without both nothing holds it: the test can fail"
    );
    source.apply().await;

    let pods = std::mem::take(&mut source.inputs.pods);
    source.inputs.guard = true;
    source.apply().await;
    for table in ["", "spillway"] {
        if !table.is_empty() {
            lab.source.run("nft delete table inet spillway");
        }
        for (family, node) in NODE.into_iter().enumerate() {
            assert_eq!(lab.tcp(family, 443), None, "nobody knows whose it is");
            assert_eq!(lab.ping(family), None, "nobody knows whose it is");
            assert_eq!(lab.tcp(family, 80), ip(node));
            assert_eq!(lab.udp(family, 443), ip(node));
        }
    }
    source.inputs.pods = pods;
    source.apply().await;
    assert_eq!(lab.tcp(0, 443), ip(FIRST[0]));
}

//! Two nodes with real traffic between them, over every kind of path, in every family, with both translations. What this
//! kernel can't is ignored, and the trial's kind says why: `make test-kernels` makes its table of that.
//!
//! ```text
//!  pod 10.244.0.5 ── source a-1 10.0.0.1 ── gateway b-1 10.0.0.2, 203.0.113.2 ── outside 198.51.100.7
//! ```
//!
//! The source address is always read at the outside server, which remembers everyone who ever sent. What passed between the
//! nodes, and how, is counted at the gateway.

mod support;

use std::fmt;
use std::net::IpAddr;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use spillway_core::node::gateways::Liveness;
use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::state::DesiredState;
use spillway_core::node::{compile, fixtures};
use spillway_crds::address::{AddressPair, PrefixPair};
use spillway_dataplane::{Choice, Implementation, Kernel, LinuxKernel, PrivateKey};
use support::lab::record_sources;
use support::traffic::{connect, strangers, tcp, udp};
use support::{Namespace, eventually, privileged};

const EIPS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const SERVERS: [&str; 2] = ["198.51.100.7", "2001:db8:99::7"];
/// UDP ports of the tunnel and of WireGuard.
const TUNNEL: u16 = 4799;
const WIREGUARD: u16 = 5713;

/// What lies between the nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Path {
    Vxlan,
    WireGuard(Choice),
}

/// Families that nodes, pods, gateway and server have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Families {
    V4,
    V6,
    /// Both, over an IPv4 underlay.
    Dual,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Translation {
    SourceNode,
    GatewayNode,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    path: Path,
    families: Families,
    translation: Translation,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self.path {
            Path::Vxlan => "vxlan",
            Path::WireGuard(Choice::Kernel) => "kernel-wireguard",
            Path::WireGuard(_) => "userspace-wireguard",
        };
        let families = match self.families {
            Families::V4 => "v4",
            Families::V6 => "v6",
            Families::Dual => "dual",
        };
        write!(f, "{path}/{families}/{:?}", self.translation)
    }
}

impl Families {
    fn v4(self) -> bool {
        self != Self::V6
    }

    fn v6(self) -> bool {
        self != Self::V4
    }

    /// Whether `text`, an address or a prefix, is of these.
    fn has(self, text: &str) -> bool {
        if text.contains(':') { self.v6() } else { self.v4() }
    }

    fn addresses(self, pair: &mut AddressPair) {
        pair.ipv4.take_if(|_| !self.v4());
        pair.ipv6.take_if(|_| !self.v6());
    }

    fn prefixes(self, pair: &mut PrefixPair) {
        pair.ipv4.take_if(|_| !self.v4());
        pair.ipv6.take_if(|_| !self.v6());
    }

    /// `inputs` of a federation that has no other families.
    fn only(self, mut inputs: NodeInputs) -> NodeInputs {
        for node in inputs.nodes.values_mut() {
            self.addresses(&mut node.overlay);
            self.addresses(&mut node.underlay);
        }
        for pod in &mut inputs.pods {
            pod.addresses.retain(|a| self.has(&a.to_string()));
        }
        let plan = inputs.plan.as_mut().expect("a plan");
        self.prefixes(&mut plan.member.overlay);
        self.prefixes(&mut plan.member.overlay_range);
        for node in plan.peers.iter_mut().flat_map(|p| &mut p.nodes) {
            self.addresses(&mut node.overlay);
            self.addresses(&mut node.underlay);
        }
        for gateway in &mut plan.gateways {
            gateway.slices.retain(|s| self.has(&s.address));
            for identity in &mut gateway.identities {
                self.addresses(&mut identity.egress_ip);
                identity.granted.iter_mut().for_each(|p| self.prefixes(p));
            }
        }
        for policy in &mut plan.policies {
            policy.to.cidrs.retain(|c| self.has(c));
            policy.to.except.retain(|c| self.has(c));
        }
        inputs
    }
}

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

struct Lab {
    families: Families,
    pod: Namespace,
    source: Namespace,
    gateway: Namespace,
    outside: Namespace,
}

impl Lab {
    fn new(families: Families) -> Self {
        let lab = Self {
            families,
            pod: Namespace::new("pod"),
            source: Namespace::new("source"),
            gateway: Namespace::new("gateway"),
            outside: Namespace::new("outside"),
        };
        let Self {
            pod,
            source,
            gateway,
            outside,
            ..
        } = &lab;
        for namespace in [pod, source, gateway, outside] {
            if !families.v6() {
                namespace
                    .run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
            }
        }
        for node in [source, gateway] {
            node.router();
            node.run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
        }
        source.connect("eth0", gateway, "eth0");
        gateway.connect("eth1", outside, "eth0");
        source.connect("pod0", pod, "eth0");
        lab.address(source, "eth0", &["10.0.0.1/24", "fd00:10::1/64"]);
        lab.address(gateway, "eth0", &["10.0.0.2/24", "fd00:10::2/64"]);
        lab.address(gateway, "eth1", &["203.0.113.2/24", "2001:db8:1::2/64"]);
        lab.address(outside, "eth0", &["203.0.113.254/24", "2001:db8:1::254/64"]);
        lab.address(outside, "lo", &["198.51.100.7/32", "2001:db8:99::7/128"]);
        lab.address(pod, "eth0", &["10.244.0.5/32", "fd00:244::5/128"]);
        lab.address(source, "pod0", &["10.244.0.1/32", "fd00:244::1/128"]);
        lab.routes(
            gateway,
            &["default via 203.0.113.254", "default via 2001:db8:1::254"],
        );
        lab.routes(source, &["default via 10.0.0.2", "default via fd00:10::2"]);
        lab.routes(source, &["10.244.0.5 dev pod0", "fd00:244::5 dev pod0"]);
        lab.routes(pod, &["10.244.0.1 dev eth0", "fd00:244::1 dev eth0"]);
        lab.routes(pod, &["default via 10.244.0.1", "default via fd00:244::1"]);
        record_sources(outside);
        gateway.run(&format!(
            "nft 'table inet wire {{ counter tunnel {{ }}; counter wireguard {{ }}; \
             chain in {{ type filter hook prerouting priority -450; iifname eth0 udp dport {TUNNEL} counter name tunnel; \
             iifname eth0 udp dport {WIREGUARD} counter name wireguard; }}; }}'"
        ));
        lab
    }

    fn address(&self, namespace: &Namespace, device: &str, addresses: &[&str]) {
        for address in addresses.iter().filter(|a| self.families.has(a)) {
            namespace.address(device, &[address]);
        }
    }

    /// One route of each family.
    fn routes(&self, namespace: &Namespace, [v4, v6]: &[&str; 2]) {
        if self.families.v4() {
            namespace.run(&format!("ip route add {v4}"));
        }
        if self.families.v6() {
            namespace.run(&format!("ip -6 route add {v6}"));
        }
    }

    /// Servers with the addresses that they must see.
    fn servers(&self) -> impl Iterator<Item = (&'static str, IpAddr)> {
        let all = SERVERS.into_iter().zip(EIPS.map(ip));
        all.filter(|(server, _)| self.families.has(server))
    }

    /// Packets of the tunnel and of WireGuard that came to the gateway by the wire.
    fn wire(&self) -> [u64; 2] {
        ["tunnel", "wireguard"].map(|counter| {
            let text = self.gateway.run(&format!("nft list counter inet wire {counter}"));
            let packets = text.split("packets ").nth(1).and_then(|t| t.split(' ').next());
            packets.and_then(|n| n.parse().ok()).expect("a count")
        })
    }
}

/// A node's kernel and what it holds.
struct Node {
    kernel: LinuxKernel,
    desired: DesiredState,
}

impl Node {
    async fn start(
        lab: &Lab,
        namespace: &Namespace,
        key: &PrivateKey,
        who: Choice,
        mut inputs: NodeInputs,
    ) -> Self {
        let kernel = namespace.kernel_encrypting(key.clone(), who);
        let underlay = &inputs.nodes[&inputs.node].underlay;
        let underlay = underlay.ipv4.iter().chain(&underlay.ipv6).map(|a| ip(a));
        let facts = kernel.facts(&underlay.collect::<Vec<_>>()).await.expect("facts");
        assert_eq!(facts.capabilities.ipv6, lab.families.v6());
        inputs.facts = facts.for_compiler(&inputs.settings.device);
        // The gateway's other node isn't there.
        inputs.liveness = Liveness {
            dead: [fixtures::node_ref("b", "b-2")].into(),
            ..Liveness::default()
        };
        let node = Self {
            kernel,
            desired: compile(&inputs),
        };
        node.kernel.apply(&node.desired).await.expect("apply");
        let again = node.kernel.apply(&node.desired).await.expect("apply again");
        assert!(
            again.is_empty(),
            "a second apply of a compiled state wrote:\n{again}"
        );
        node.kernel.cut(&node.desired.flows).await.expect("cut");
        node
    }
}

/// Both nodes of a cell.
struct Pair {
    cell: Cell,
    keys: [PrivateKey; 3],
}

impl Pair {
    fn new(cell: Cell) -> Self {
        Self {
            cell,
            keys: std::array::from_fn(|_| PrivateKey::generate()),
        }
    }

    fn inputs(&self, [plain, stateless]: [fn() -> NodeInputs; 2]) -> NodeInputs {
        let inputs = self.cell.families.only(match self.cell.translation {
            Translation::GatewayNode => plain(),
            Translation::SourceNode => stateless(),
        });
        match self.cell.path {
            Path::Vxlan => inputs,
            Path::WireGuard(_) => fixtures::encrypted(inputs, |node| {
                let n = ["a-1", "b-1", "b-2"].iter().position(|n| *n == node)?;
                Some(self.keys[n].public().to_string())
            }),
        }
    }

    async fn gateway(&self, lab: &Lab, who: Choice) -> Node {
        let inputs = self.inputs([fixtures::gateway, fixtures::stateless_gateway]);
        Node::start(lab, &lab.gateway, &self.keys[1], who, inputs).await
    }

    async fn source(&self, lab: &Lab, who: Choice) -> Node {
        let inputs = self.inputs([fixtures::source, fixtures::stateless_source]);
        Node::start(lab, &lab.source, &self.keys[0], who, inputs).await
    }
}

impl Cell {
    fn who(self) -> Choice {
        match self.path {
            Path::Vxlan => Choice::Userspace,
            Path::WireGuard(who) => who,
        }
    }

    /// Traffic of every kind, seen from the egress IP and from nobody else; also while there is no agent.
    async fn check(self) {
        let lab = Lab::new(self.families);
        let pair = Pair::new(self);
        let who = self.who();
        // Make before break: the gateway knows what it will be sent before the source sends it.
        let gateway = pair.gateway(&lab, who).await;
        let source = pair.source(&lab, who).await;
        let mut connections = Vec::new();
        for (server, eip) in lab.servers() {
            eventually("a way is open", || {
                lab.pod.attempt(&format!("ping -n -c1 -W1 {server}")).0
            });
            for size in [5, 1300] {
                let seen = udp(&lab.pod, &lab.outside, server, size).expect("a way");
                assert_eq!(seen.ip(), eip);
            }
            // More than the path's MTU, which takes a packet or two each way to be learned from the errors.
            eventually("a ping in fragments", || {
                lab.pod.attempt(&format!("ping -n -c1 -W1 -s 4000 {server}")).0
            });
            assert_eq!(tcp(&lab.pod, &lab.outside, server).expect("a way").ip(), eip);
            let mut connection = connect(&lab.pod, &lab.outside, server).expect("a way");
            connection.exchange();
            connections.push(connection);
        }
        if self.path != Path::WireGuard(Choice::Userspace) {
            let before = source.kernel.encryption().await.expect("encryption").peers;
            drop((source, gateway));
            for connection in &mut connections {
                connection.exchange();
            }
            // The next agents find everything as it was left.
            let gateway = pair.gateway(&lab, who).await;
            let source = pair.source(&lab, who).await;
            let after = source.kernel.encryption().await.expect("encryption").peers;
            assert_eq!(after.len(), before.len());
            assert!(
                before
                    .iter()
                    .all(|(key, age)| age.is_none() || after[key] >= *age),
                "no peer shook hands anew: {before:?}, {after:?}"
            );
            drop(gateway);
        }
        let [tunnel, wireguard] = lab.wire();
        match self.path {
            Path::Vxlan => assert!(tunnel > 20 && wireguard == 0, "{tunnel}, {wireguard}"),
            Path::WireGuard(_) => assert!(tunnel == 0 && wireguard > 20, "{tunnel}, {wireguard}"),
        }
        assert_eq!(strangers(&lab.outside, EIPS), "");
    }
}

/// The next agent encrypts otherwise than the one before: the device is replaced, connections go on, and nothing goes in the
/// clear meanwhile.
async fn another_takes_over() {
    let cell = Cell {
        path: Path::WireGuard(Choice::Kernel),
        families: Families::Dual,
        translation: Translation::GatewayNode,
    };
    let lab = Lab::new(cell.families);
    let pair = Pair::new(cell);
    let _gateway = pair.gateway(&lab, Choice::Kernel).await;
    let mut connection = None;
    for who in [Choice::Kernel, Choice::Userspace, Choice::Kernel, Choice::Auto] {
        let source = pair.source(&lab, who).await;
        eventually("a way is open", || {
            lab.pod.attempt(&format!("ping -n -c1 -W1 {}", SERVERS[0])).0
        });
        let connection =
            connection.get_or_insert_with(|| connect(&lab.pod, &lab.outside, SERVERS[0]).expect("a way"));
        connection.exchange();
        assert_eq!(connection.seen.ip(), ip(EIPS[0]));
        let encryption = source.kernel.encryption().await.expect("encryption");
        let expected = if who == Choice::Userspace {
            "userspace"
        } else {
            "kernel"
        };
        let implementation = encryption.implementation.map(Implementation::as_str);
        assert_eq!(implementation, Some(expected), "{encryption:?}");
        assert!(!encryption.reason.is_empty());
        // Without any path that must be encrypted the device goes.
        if who == Choice::Auto {
            let mut desired = source.desired.clone();
            desired.wireguard = None;
            desired
                .routes
                .retain(|r| !format!("{r:?}").contains("spillway-wg"));
            desired.sysctls.retain(|path, _| !path.contains("spillway-wg"));
            source.kernel.apply(&desired).await.expect("without");
            assert!(!lab.source.attempt("ip link show spillway-wg").0);
        }
    }
    assert_eq!(lab.wire()[0], 0, "nothing went in the clear");
    assert_eq!(strangers(&lab.outside, EIPS), "");
}

fn trial(name: String, why_not: Option<String>, body: impl Future<Output = ()> + Send + 'static) -> Trial {
    let ignored = why_not.is_some();
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Failed::from(e.to_string()))?;
        runtime.block_on(body);
        Ok(())
    })
    .with_kind(why_not.unwrap_or_default())
    .with_ignored_flag(ignored)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    privileged();
    let node = Namespace::new("probe");
    let (can, said) = node.attempt("ip link add probe type wireguard");
    let no_wireguard = (!can).then(|| format!("this kernel has no WireGuard: {}", said.trim()));
    let (can, said) = node.attempt("ls /dev/net/tun");
    let no_tun = (!can).then(|| format!("no TUN devices: {}", said.trim()));
    let no_hook = (!support::egress_hook()).then(|| "this kernel has no netdev egress hook".to_owned());
    drop(node);
    let paths = [
        Path::Vxlan,
        Path::WireGuard(Choice::Kernel),
        Path::WireGuard(Choice::Userspace),
    ];
    let mut trials = vec![trial(
        "wireguard/another-takes-over".into(),
        no_wireguard.clone().or(no_tun.clone()),
        another_takes_over(),
    )];
    for path in paths {
        for families in [Families::V4, Families::V6, Families::Dual] {
            for translation in [Translation::SourceNode, Translation::GatewayNode] {
                let cell = Cell {
                    path,
                    families,
                    translation,
                };
                let of_path = match path {
                    Path::Vxlan => None,
                    Path::WireGuard(Choice::Kernel) => no_wireguard.clone(),
                    Path::WireGuard(_) => no_tun.clone(),
                };
                let of_translation = no_hook.clone().filter(|_| translation == Translation::SourceNode);
                trials.push(trial(cell.to_string(), of_path.or(of_translation), cell.check()));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

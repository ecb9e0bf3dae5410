//! A gateway that is reached at a published endpoint, and a source behind a NAT that nobody can call: the source calls, and
//! the gateway answers to wherever it was heard from last.
//!
//! ```text
//!  pod 10.244.0.5 ── source a-1 10.0.0.1 ── nat 192.0.2.1 ══ public 192.0.2.0/24 ══ 192.0.2.2 dnat ── gateway b-1 10.0.0.2 ── outside
//! ```
//!
//! Both partitions have the range 10.0.0.0/24 for themselves.

mod support;

use std::net::IpAddr;

use spillway_core::node::gateways::Liveness;
use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::{compile, fixtures};
use spillway_dataplane::{Kernel, LinuxKernel, PrivateKey};
use support::traffic::{connect, tcp};
use support::{Namespace, eventually, needs_egress_hook, privileged};

const EIP: &str = "203.0.113.10";
const SERVER: &str = "198.51.100.7";
/// Where the gateway is reached; its own port is another.
const ENDPOINT: &str = "192.0.2.2:7000";

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

struct Lab {
    pod: Namespace,
    source: Namespace,
    nat: Namespace,
    dnat: Namespace,
    gateway: Namespace,
    outside: Namespace,
}

impl Lab {
    fn new() -> Self {
        needs_egress_hook();
        let lab = Self {
            pod: Namespace::new("pod"),
            source: Namespace::new("source"),
            nat: Namespace::new("nat"),
            dnat: Namespace::new("dnat"),
            gateway: Namespace::new("gateway"),
            outside: Namespace::new("outside"),
        };
        let Self {
            pod,
            source,
            nat,
            dnat,
            gateway,
            outside,
        } = &lab;
        for node in [source, nat, dnat, gateway] {
            node.router();
        }
        for (node, name, inner) in [(source, nat, "10.0.0.254"), (gateway, dnat, "10.0.0.254")] {
            node.connect("eth0", name, "inner");
            name.address("inner", &[&format!("{inner}/24")]);
        }
        source.address("eth0", &["10.0.0.1/24"]);
        gateway.address("eth0", &["10.0.0.2/24"]);
        nat.connect("public", dnat, "public");
        nat.address("public", &["192.0.2.1/24", "192.0.2.11/24"]);
        dnat.address("public", &["192.0.2.2/24"]);
        nat.run(
            "nft 'table ip nat { chain post { type nat hook postrouting priority 100; \
             oifname public udp dport 7000 snat to 192.0.2.1:40001; }; \
             chain forward { type filter hook forward priority 0; iifname public ct state new drop; }; }'",
        );
        dnat.run(
            "nft 'table ip nat { chain pre { type nat hook prerouting priority -100; \
             iifname public udp dport 7000 dnat to 10.0.0.2:5713; }; }'",
        );
        source.run("ip route add default via 10.0.0.254");
        gateway.run("ip route add 192.0.2.0/24 via 10.0.0.254");
        gateway.connect("eth1", outside, "eth0");
        gateway.address("eth1", &["203.0.113.2/24"]);
        outside.address("eth0", &["203.0.113.254/24"]);
        outside.address("lo", &["198.51.100.7/32"]);
        gateway.run("ip route add default via 203.0.113.254");
        source.connect("pod0", pod, "eth0");
        pod.address("eth0", &["10.244.0.5/32"]);
        pod.run("ip route add 10.244.0.1 dev eth0; ip route add default via 10.244.0.1");
        source.address("pod0", &["10.244.0.1/32"]);
        source.run("ip route add 10.244.0.5 dev pod0");
        lab
    }
}

async fn start(namespace: &Namespace, key: &PrivateKey, mut inputs: NodeInputs) -> LinuxKernel {
    let kernel = namespace.kernel_with(key.clone());
    inputs.liveness = Liveness {
        dead: [fixtures::node_ref("b", "b-2")].into(),
        ..Liveness::default()
    };
    let underlay = inputs.nodes[&inputs.node].underlay.ipv4.iter();
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
    kernel
}

#[tokio::test(flavor = "multi_thread")]
async fn the_side_behind_nat_calls_and_may_come_from_elsewhere_at_any_time() {
    if !privileged() {
        return;
    }
    let lab = Lab::new();
    let keys: [PrivateKey; 2] = std::array::from_fn(|_| PrivateKey::generate());
    let key = |node: &str| {
        let n = ["a-1", "b-1"].iter().position(|n| *n == node)?;
        Some(keys[n].public().to_string())
    };
    let gateway = fixtures::encrypted(fixtures::stateless_gateway(), key);
    let mut source = fixtures::encrypted(fixtures::stateless_source(), key);
    for node in &mut source.plan.as_mut().expect("a plan").peers[0].nodes {
        if node.name == "b-1" {
            node.endpoint = Some(ENDPOINT.into());
        }
    }
    let _gateway = start(&lab.gateway, &keys[1], gateway).await;
    let _source = start(&lab.source, &keys[0], source).await;

    eventually("the source has called", || {
        tcp(&lab.pod, &lab.outside, SERVER).is_some()
    });
    let mut connection = connect(&lab.pod, &lab.outside, SERVER).expect("a way");
    assert_eq!(connection.seen.ip(), ip(EIP));
    connection.exchange();

    // The NAT forgets and gives out another address and port.
    lab.nat.run(
        "nft flush chain ip nat post; nft add rule ip nat post oifname public udp dport 7000 snat to 192.0.2.11:50001; \
         conntrack -F 2>/dev/null",
    );
    connection.exchange();
    let tracked = lab.dnat.run("conntrack -L -p udp 2>/dev/null");
    assert!(
        tracked.contains("src=192.0.2.11"),
        "it comes from elsewhere now: {tracked}"
    );
}

//! What the labs of several tests are made of.

use super::Namespace;

/// Plugs `pod` into `node`'s `device`, with the gateway addresses that pods have in all labs.
pub fn plug_pod(node: &Namespace, device: &str, pod: &Namespace, [v4, v6]: [&str; 2]) {
    node.connect(device, pod, "eth0");
    pod.address("eth0", &[&format!("{v4}/32"), &format!("{v6}/128")]);
    pod.run(
        "ip route add 10.244.0.1 dev eth0; ip route add default via 10.244.0.1; \
         ip -6 route add fd00:244::1 dev eth0; ip -6 route add default via fd00:244::1",
    );
    node.address(device, &["10.244.0.1/32", "fd00:244::1/128"]);
    node.run(&format!(
        "ip route add {v4} dev {device}; ip -6 route add {v6} dev {device}"
    ));
}

/// Puts the outside server on the segment of `gateway`'s `eth1`, on which egress IPs are.
pub fn plug_outside(gateway: &Namespace, outside: &Namespace) {
    gateway.connect("eth1", outside, "eth0");
    gateway.address("eth1", &["203.0.113.2/24", "2001:db8:1::2/64"]);
    outside.address("eth0", &["203.0.113.254/24", "2001:db8:1::254/64"]);
    outside.address("lo", &["198.51.100.7/32", "2001:db8:99::7/128"]);
    gateway.run("ip route add default via 203.0.113.254; ip -6 route add default via 2001:db8:1::254");
}

/// Has the outside server write down whom TCP and UDP come from, whether or not anybody answers.
pub fn record_sources(outside: &Namespace) {
    outside.run(
        "nft 'table inet seen { set v4 { type ipv4_addr; flags dynamic; }; set v6 { type ipv6_addr; flags dynamic; }; \
         chain in { type filter hook input priority 0; meta l4proto { tcp, udp } add @v4 { ip saddr }; \
         meta l4proto { tcp, udp } add @v6 { ip6 saddr }; }; }'",
    );
}

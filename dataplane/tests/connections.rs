//! Connections are judged and counted.

mod support;

use spillway_crds::hub::PortRange;
use spillway_dataplane::Kernel;
use support::fixture::ip;
use support::{Namespace, privileged};

/// Only flows from the sources that are asked for are looked at.
#[tokio::test]
async fn few_sources_flows_are_cut_alone() {
    use spillway_core::node::flows::{Flows, Verdict};
    use spillway_core::node::interval::{Family, Interval};
    use spillway_core::node::outcome::Outcome;

    if !privileged() {
        return;
    }
    let node = Namespace::new("flows");
    node.run("nft add table inet t");
    node.run("nft add chain inet t c '{ type filter hook output priority 0; }'");
    node.run("nft add rule inet t c ct state new counter");
    for source in ["127.0.0.2", "127.0.0.3", "127.0.0.4", "::1"] {
        node.inside(|| {
            let socket = std::net::UdpSocket::bind((ip(source), 0)).expect("socket");
            let to = if source.contains(':') { "::1" } else { "127.0.0.1" };
            socket.send_to(b"x", (ip(to), 9)).expect("sent");
        });
    }
    let kernel = node.kernel();
    let everything = Family::BOTH.map(|f| (Interval::from(f.everything()), Outcome::Any(Verdict::Block)));
    let flows = |only: Option<&[&str]>| Flows {
        pods: ["127.0.0.2", "127.0.0.3", "::1"]
            .map(|s| (ip(s), "a".to_owned()))
            .into(),
        classes: [("a".to_owned(), everything.to_vec())].into(),
        only: only.map(|o| o.iter().map(|s| ip(s)).collect()),
        ..Flows::default()
    };
    for (only, count) in [
        (Some([].as_slice()), 0),
        (Some(&["127.0.0.4"]), 0),
        (Some(&["127.0.0.2"]), 1),
        (Some(&["127.0.0.2", "::1"]), 1),
        (None, 1),
        (None, 0),
    ] {
        assert_eq!(kernel.cut(&flows(only)).await.expect("cut"), count, "{only:?}");
    }
}

/// Connections are counted by egress IP and range, and only ours.
#[tokio::test]
async fn connections_are_counted_by_range() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("ports");
    node.run("ip addr add 203.0.113.10/32 dev lo; ip addr add 2001:db8:1::10/128 dev lo nodad");
    // Everything leaves from the egress IPs, at ports of one of two ranges; connections to port 7 aren't ours.
    node.run(
        "nft 'table inet t { chain tag { type filter hook output priority -140; \
         udp dport != 7 ct mark set 0x53000007; icmp type echo-request ct mark set 0x53000007; }; \
         chain leave { type nat hook postrouting priority 90; \
         udp dport 9 snat ip to 203.0.113.10:1024-1033; udp dport 9 snat ip6 to [2001:db8:1::10]:1024-1033; \
         udp dport 11 snat ip to 203.0.113.10:2000-2009; udp dport 7 snat ip to 203.0.113.10:1024-1033; \
         icmp type echo-request snat ip to 203.0.113.10:2000-2009; }; }'",
    );
    for (source, to, count) in [
        ("127.0.0.2", "127.0.0.1:9", 3),
        ("127.0.0.2", "127.0.0.3:9", 2),
        ("127.0.0.2", "127.0.0.1:11", 1),
        ("127.0.0.2", "127.0.0.1:7", 5),
        ("::1", "[::1]:9", 4),
    ] {
        for _ in 0..count {
            node.inside(|| {
                let socket = std::net::UdpSocket::bind((ip(source), 0)).expect("socket");
                socket.send_to(b"x", to).expect("sent");
            });
        }
    }
    for _ in 0..4 {
        node.run("ping -n -c1 -W1 127.0.0.9 || true");
    }
    let kernel = node.kernel();
    let range = |first, last| PortRange { first, last };
    let asked = [
        (ip("203.0.113.10"), vec![range(1024, 1033), range(2000, 2009)]),
        (ip("2001:db8:1::10"), vec![range(1024, 1033), range(3000, 3999)]),
        (ip("203.0.113.99"), vec![range(1024, 65535)]),
    ];
    let counts = kernel.port_use(&asked).await.expect("counts");
    assert_eq!(
        counts[0].connections,
        [5, 5],
        "three and two; one and four echoes"
    );
    assert_eq!(counts[0].busiest, 4, "the echoes");
    assert_eq!(counts[1].connections, [4, 0]);
    assert_eq!(counts[1].busiest, 4);
    assert_eq!(
        (&counts[2].connections[..], counts[2].busiest),
        ([0].as_slice(), 0)
    );
}

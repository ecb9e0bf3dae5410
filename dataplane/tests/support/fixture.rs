//! A node's desired state with one of everything, and the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use spillway_core::node::nft::{Atom, Chain, Hook, Ruleset, Set};
use spillway_core::node::state::{
    DesiredState, ForwardingEntry, Neighbour, ProxyNeighbour, Route, RouteTarget, Rule, TunnelDevice, UdpPort,
};

use super::{Namespace, egress_hook};

pub fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

pub fn chain(hook: Option<(&str, &str, i32)>, rules: &[&str]) -> Chain {
    Chain {
        hook: hook.map(|(kind, hook, priority)| Hook {
            kind: kind.into(),
            hook: hook.into(),
            priority,
            device: None,
        }),
        rules: rules.iter().map(|r| (*r).to_owned()).collect(),
    }
}

pub fn set(
    key: &str,
    value: Option<&str>,
    interval: bool,
    elements: impl IntoIterator<Item = (Vec<Atom>, Option<Atom>)>,
) -> Set {
    Set {
        key: key.into(),
        expression: None,
        value: value.map(str::to_owned),
        interval,
        elements: elements.into_iter().collect(),
    }
}

/// The same set, declared by an expression.
pub fn declared(expression: &str, set: Set) -> Set {
    Set {
        expression: Some(expression.to_owned()),
        ..set
    }
}

/// What peer `peer` may send as identity 7.
pub fn out(peer: u8, eip: &str, first: u16, last: u16) -> Vec<Atom> {
    vec![
        Atom::Mac([2, 0x53, 100, 64, 8, peer]),
        Atom::Number(7),
        Atom::Ip(ip(eip)),
        Atom::Ports(first, last),
    ]
}

/// The table that gives replies their way to the peer.
pub fn steering() -> Ruleset {
    let mut steer = chain(
        Some(("filter", "egress", 0)),
        &[
            "ether daddr 02:53:00:00:00:00 meta mark != 0x00000000 ether daddr set meta mark map @peers \
             meta mark set 0x00000000",
        ],
    );
    if let Some(hook) = &mut steer.hook {
        hook.device = Some("spillway0".into());
    }
    let peer = |n: u8| {
        (
            vec![Atom::Number(0x6440_0800 | u32::from(n))],
            Some(Atom::Mac([2, 0x53, 100, 64, 8, n])),
        )
    };
    Ruleset {
        family: "netdev".into(),
        table: "spillway".into(),
        sets: BTreeMap::from([(
            "peers".into(),
            set("mark", Some("ether_addr"), false, [peer(1), peer(2)]),
        )]),
        chains: BTreeMap::from([("steer".into(), steer)]),
    }
}

/// A default route to both peers.
pub fn spread(table: u32, ipv6: bool) -> Route {
    let (destination, via) = if ipv6 {
        ("::/0", ["fd64:5711:2::1", "fd64:5711:2::2"])
    } else {
        ("0.0.0.0/0", ["100.64.8.1", "100.64.8.2"])
    };
    Route {
        table,
        destination: destination.parse().expect("prefix"),
        metric: 100,
        target: RouteTarget::Spread {
            device: "spillway0".into(),
            via: via.map(ip).into(),
            mtu: 1390,
        },
    }
}

pub fn ruleset() -> Ruleset {
    let net = |s: &str| Atom::Net(s.parse().expect("prefix"));
    Ruleset {
        family: "inet".into(),
        table: "spillway".into(),
        sets: BTreeMap::from([
            (
                "pods4".into(),
                set(
                    "ipv4_addr",
                    Some("verdict"),
                    false,
                    [(vec![Atom::Ip(ip("10.1.0.5"))], Some(Atom::Jump("class_1".into())))],
                ),
            ),
            (
                "dst_1_4".into(),
                set(
                    "ipv4_addr",
                    Some("verdict"),
                    true,
                    [
                        (vec![net("198.51.100.0/24")], Some(Atom::Goto("egress_7".into()))),
                        (
                            vec![Atom::Range(ip("198.51.101.0"), ip("198.51.101.127"))],
                            Some(Atom::Goto("egress_7".into())),
                        ),
                        (
                            vec![Atom::Range(ip("198.51.102.1"), ip("198.51.102.9"))],
                            Some(Atom::Drop),
                        ),
                        (vec![net("0.0.0.0/3")], Some(Atom::Drop)),
                    ],
                ),
            ),
            (
                "granted4".into(),
                set(
                    "ipv4_addr . mark",
                    None,
                    true,
                    [
                        (vec![net("100.64.4.0/22"), Atom::Number(7)], None),
                        (vec![net("100.64.8.0/22"), Atom::Number(7)], None),
                    ],
                ),
            ),
            (
                "reply4".into(),
                set(
                    "ipv4_addr . inet_service",
                    Some("mark"),
                    true,
                    [
                        (
                            vec![Atom::Ip(ip("203.0.113.10")), Atom::Ports(1024, 2047)],
                            Some(Atom::Number(0x6440_0801)),
                        ),
                        (
                            vec![Atom::Ip(ip("203.0.113.10")), Atom::Ports(5000, 5000)],
                            Some(Atom::Number(0x6440_0802)),
                        ),
                    ],
                ),
            ),
            (
                "reply_err6".into(),
                declared(
                    "ip6 daddr . @th,384,16 : meta mark",
                    set(
                        "ipv6_addr . integer",
                        Some("mark"),
                        true,
                        [(
                            vec![Atom::Ip(ip("2001:db8:1::10")), Atom::Ports(1024, 2047)],
                            Some(Atom::Number(0x6440_0801)),
                        )],
                    ),
                ),
            ),
            (
                "out_id4".into(),
                declared(
                    "ether saddr . meta mark . ip saddr . icmp id",
                    set(
                        "ether_addr . mark . ipv4_addr . integer",
                        None,
                        true,
                        [(out(1, "203.0.113.10", 1024, 2047), None)],
                    ),
                ),
            ),
            (
                "local6".into(),
                set("ipv6_addr", None, true, [(vec![net("fd00::/8")], None)]),
            ),
            (
                "snat4".into(),
                set(
                    "mark",
                    Some("ipv4_addr"),
                    false,
                    [(vec![Atom::Number(7)], Some(Atom::Ip(ip("203.0.113.10"))))],
                ),
            ),
        ]),
        chains: BTreeMap::from([
            ("class_1".into(), chain(None, &["ip daddr vmap @dst_1_4"])),
            (
                "egress_7".into(),
                chain(
                    None,
                    &[
                        "ct state new ct mark set ct mark & 0xffff0000 | 0x7",
                        "counter accept",
                    ],
                ),
            ),
            (
                "classify".into(),
                chain(
                    Some(("filter", "prerouting", -90)),
                    &[
                        "ct direction original ip saddr vmap @pods4",
                        "ip6 daddr @local6 return",
                    ],
                ),
            ),
            (
                "translate".into(),
                chain(
                    Some(("nat", "postrouting", 90)),
                    &["oifname != \"spillway0\" snat ip to ct mark map @snat4"],
                ),
            ),
            (
                "guard".into(),
                chain(
                    Some(("filter", "postrouting", 300)),
                    &["iifname \"spillway0\" ip saddr . ct mark != @granted4 counter drop"],
                ),
            ),
        ]),
    }
}

pub fn desired() -> DesiredState {
    let mac = |n| [2, 0x53, 100, 64, 8, n];
    let device = || "spillway0".to_owned();
    DesiredState {
        tunnel: Some(TunnelDevice {
            name: device(),
            vni: 5711,
            port: 5711,
            mac: [2, 0x53, 100, 64, 4, 1],
            mtu: 1450,
            local: ip("192.0.2.1"),
            without_checksums: true,
            addresses: ["100.64.4.1/32", "fd64:5711:1::1/128"]
                .iter()
                .map(|a| a.parse().expect("prefix"))
                .collect(),
        }),
        forwarding: BTreeSet::from([
            ForwardingEntry {
                mac: mac(1),
                remote: ip("192.0.2.2"),
            },
            ForwardingEntry {
                mac: mac(2),
                remote: ip("192.0.2.3"),
            },
        ]),
        neighbours: BTreeSet::from([
            Neighbour {
                address: ip("100.64.8.1"),
                mac: mac(1),
            },
            Neighbour {
                address: ip("fd64:5711:2::1"),
                mac: mac(1),
            },
            Neighbour {
                address: ip("203.0.113.10"),
                mac: [2, 0x53, 0, 0, 0, 0],
            },
            Neighbour {
                address: ip("2001:db8:1::10"),
                mac: [2, 0x53, 0, 0, 0, 0],
            },
        ]),
        routes: BTreeSet::from([
            spread(5_711_002, false),
            spread(5_711_002, true),
            Route {
                table: 5_711_001,
                destination: "0.0.0.0/0".parse().expect("prefix"),
                metric: 0,
                target: RouteTarget::Device {
                    device: device(),
                    via: Some(ip("100.64.8.1")),
                    mtu: 1450,
                },
            },
            Route {
                table: 5_711_001,
                destination: "0.0.0.0/0".parse().expect("prefix"),
                metric: 9999,
                target: RouteTarget::Unreachable,
            },
            Route {
                table: 5_711_001,
                destination: "::/0".parse().expect("prefix"),
                metric: 0,
                target: RouteTarget::Device {
                    device: device(),
                    via: Some(ip("fd64:5711:2::1")),
                    mtu: 0,
                },
            },
            Route {
                table: 5_711_001,
                destination: "::/0".parse().expect("prefix"),
                metric: 9999,
                target: RouteTarget::Unreachable,
            },
            Route {
                table: 254,
                destination: "203.0.113.10/32".parse().expect("prefix"),
                metric: 50,
                target: RouteTarget::Device {
                    device: device(),
                    via: None,
                    mtu: 0,
                },
            },
            Route {
                table: 254,
                destination: "2001:db8:1::10/128".parse().expect("prefix"),
                metric: 50,
                target: RouteTarget::Device {
                    device: device(),
                    via: None,
                    mtu: 0,
                },
            },
        ]),
        rules: [false, true]
            .into_iter()
            .map(|ipv6| Rule {
                ipv6,
                priority: 20_001,
                mark: 0x0100_0000,
                mask: 0xff00_0000,
                udp: None,
                table: 5_711_001,
            })
            .chain(["100.64.0.0/10", "fd64:5711::/48"].map(|range| Rule {
                ipv6: range.contains(':'),
                priority: 20_000,
                mark: 0,
                mask: 0,
                udp: Some((range.parse().expect("prefix"), UdpPort::Destination(4799))),
                table: 5_711_000,
            }))
            .collect(),
        proxies: BTreeSet::from([
            ProxyNeighbour {
                address: ip("203.0.113.10"),
                device: "eth0".into(),
            },
            ProxyNeighbour {
                address: ip("2001:db8:1::10"),
                device: "eth0".into(),
            },
        ]),
        sysctls: BTreeMap::from([
            ("net/ipv4/conf/spillway0/rp_filter".to_owned(), "2".to_owned()),
            ("net/ipv6/conf/eth0/proxy_ndp".to_owned(), "1".to_owned()),
        ]),
        ruleset: Some(ruleset()),
        steering: egress_hook().then(steering),
        ..DesiredState::default()
    }
}

/// A node with an uplink to a peer that does nothing.
pub fn node() -> (Namespace, Namespace) {
    let (node, peer) = (Namespace::new("node"), Namespace::new("peer"));
    node.connect("eth0", &peer, "eth0");
    node.address("eth0", &["192.0.2.1/24", "2001:db8::1/64"]);
    node.run("ip route add default via 192.0.2.254");
    peer.address("eth0", &["192.0.2.2/24", "2001:db8::2/64"]);
    (node, peer)
}

/// Everything that `ip` and `nft` can tell about what is ours.
pub fn dump(node: &Namespace) -> String {
    node.run(
        "ip -d link show spillway0 | sed -n '/vxlan/p;/ether/p;/alias/p'; ip -o addr show spillway0 | sed 's/ valid_lft.*//; s/^[0-9]*: //'; \
         bridge fdb show dev spillway0 | sort; ip neigh show dev spillway0 | sort; \
         ip route show table all proto 87; ip -6 route show table all proto 87; \
         ip rule; ip -6 rule; ip neigh show proxy; ip -6 neigh show proxy; \
         { nft list table inet spillway; nft list table netdev spillway; } | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'",
    )
}

//! Every driver against the real kernel: built, kept, repaired, removed.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use spillway_core::node::state::{DesiredState, ForwardingEntry, ProxyNeighbour, Route, RouteTarget};
use spillway_crds::hub::PortRange;
use spillway_dataplane::{Kernel, Operation};
use support::fixture::{chain, desired, dump, ip, node, spread};
use support::{Namespace, eventually, privileged};

#[tokio::test]
async fn what_is_applied_is_there_and_a_second_apply_writes_nothing() {
    if !privileged() {
        return;
    }
    let (node, _peer) = node();
    let kernel = node.kernel();
    let desired = desired();
    let planned = kernel.plan(&desired).await.expect("plan");
    assert!(dump_is_empty(&node), "planning writes nothing");
    let done = kernel.apply(&desired).await.expect("apply");
    assert!(planned.len() <= done.len(), "planned:\n{planned}\ndone:\n{done}");
    for change in &planned {
        assert!(
            done.iter().any(|d| d.object == change.object),
            "{change} was planned, but not done:\n{done}"
        );
    }
    let text = dump(&node);
    for needle in [
        "vxlan id 5711 local 192.0.2.1",
        "dstport 5711",
        "nolearning",
        " gbp",
        "02:53:64:40:04:01",
        "inet 100.64.4.1/32",
        "inet6 fd64:5711:1::1/128",
        "02:53:64:40:08:01 dst 192.0.2.2 self permanent",
        "100.64.8.1 lladdr 02:53:64:40:08:01 PERMANENT",
        "fd64:5711:2::1 lladdr 02:53:64:40:08:01 PERMANENT",
        "default via 100.64.8.1 dev spillway0 table 5711001 onlink mtu 1450",
        "default via fd64:5711:2::1 dev spillway0 table 5711001 metric 1024 onlink",
        "unreachable default table 5711001 metric 9999",
        "203.0.113.10 dev spillway0 scope link metric 50",
        "2001:db8:1::10 dev spillway0 metric 50",
        "20001:\tfrom all fwmark 0x1000000/0xff000000 lookup 5711001 proto 87",
        "203.0.113.10 dev eth0 proxy",
        "2001:db8:1::10 dev eth0 proxy",
        "10.1.0.5 : jump class_1",
        "198.51.101.0/25 : goto egress_7",
    ] {
        assert!(text.contains(needle), "no {needle:?} in:\n{text}");
    }
    assert!(
        !text.contains("fe80::"),
        "the device makes no link-local address:\n{text}"
    );

    let monitor = Monitor::start(&node);
    let again = kernel.apply(&desired).await.expect("apply again");
    assert!(again.is_empty(), "a second apply wrote:\n{again}");
    // A restarted agent knows nothing, and changes nothing either.
    let again = node.kernel().apply(&desired).await.expect("apply by another");
    assert!(again.is_empty(), "an apply after a restart wrote:\n{again}");
    let seen = monitor.stop(&node);
    assert_eq!(seen, "", "the kernel saw writes");
}

fn dump_is_empty(node: &Namespace) -> bool {
    !node.attempt("ip link show spillway0").0 && !node.attempt("nft list table inet spillway").0
}

/// `ip monitor` and `nft monitor` over a while.
struct Monitor {
    children: [(Child, Reader); 2],
}

impl Monitor {
    fn start(node: &Namespace) -> Self {
        let lines = [
            "exec stdbuf -oL ip monitor link address route rule",
            "exec stdbuf -oL nft monitor",
        ];
        let children = lines.map(|line| {
            let spawn = || {
                Command::new("sh")
                    .args(["-c", line])
                    .stdout(Stdio::piped())
                    .spawn()
            };
            let mut child = node.inside(spawn).expect("monitor");
            let reader = Reader::new(child.stdout.take().expect("pipe"));
            (child, reader)
        });
        let monitor = Self { children };
        monitor.hear(node);
        for (_, reader) in &monitor.children {
            reader.forget();
        }
        monitor
    }

    /// Waits until both have told of everything up to now.
    fn hear(&self, node: &Namespace) {
        eventually("both monitors tell of a change", || {
            node.run(
                "ip route add 198.18.0.0/16 dev lo; ip route del 198.18.0.0/16 dev lo; \
                 nft add table inet probe; nft delete table inet probe",
            );
            let [(_, ip), (_, nft)] = &self.children;
            ip.text().contains("198.18.0.0/16") && nft.text().contains("probe")
        });
    }

    fn stop(self, node: &Namespace) -> String {
        self.hear(node);
        let text: String = self.children.iter().map(|(_, reader)| reader.text()).collect();
        text.lines()
            .filter(|l| {
                !["198.18.0.0/16", "inet probe", "# new generation"]
                    .iter()
                    .any(|own| l.contains(own))
            })
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        for (child, _) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Collects what a pipe says.
struct Reader(std::sync::Arc<std::sync::Mutex<String>>);

impl Reader {
    fn new(mut pipe: impl std::io::Read + Send + 'static) -> Self {
        let text = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let into = text.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                into.lock()
                    .expect("text")
                    .push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self(text)
    }

    fn text(&self) -> String {
        self.0.lock().expect("text").clone()
    }

    fn forget(&self) {
        self.0.lock().expect("text").clear();
    }
}

/// What belongs to others stays, whatever is applied or torn down.
#[tokio::test]
async fn teardown_leaves_what_others_made() {
    if !privileged() {
        return;
    }
    let (node, _peer) = node();
    node.run(
        "ip rule add pref 30 fwmark 4 lookup 44; ip route add 10.50.0.0/16 dev eth0 table 44; \
         ip neigh add proxy 192.0.2.77 dev eth0; nft add table inet others; nft add chain inet others c; \
         ip link add vx9 type vxlan id 9 dstport 4789 local 192.0.2.1",
    );
    let listing = "ip -o link | cut -d: -f2,3 | cut -d' ' -f1-4; ip -4 route show table all; ip rule; ip -6 rule; \
                   ip neigh show proxy; nft list ruleset";
    let before = node.run(listing);
    let kernel = node.kernel();
    kernel.apply(&desired()).await.expect("apply");
    assert_ne!(node.run(listing), before);
    let empty = DesiredState::default();
    let planned = kernel.plan(&empty).await.expect("plan");
    assert!(
        planned.iter().all(|c| c.operation == Operation::Remove),
        "{planned}"
    );
    let done = kernel.apply(&empty).await.expect("teardown");
    assert_eq!(
        done.iter().last().map(|c| c.object.as_str()),
        Some("table inet spillway"),
        "the guards go last:\n{done}"
    );
    assert_eq!(node.run(listing), before);
    assert!(kernel.apply(&empty).await.expect("again").is_empty());
}

/// A step that can't be done is told, and the others are done.
#[tokio::test]
async fn one_failure_does_not_stop_the_rest() {
    if !privileged() {
        return;
    }
    let (node, _peer) = node();
    let kernel = node.kernel();
    let mut desired = desired();
    desired.proxies.insert(ProxyNeighbour {
        address: ip("203.0.113.11"),
        device: "nosuch0".into(),
    });
    desired
        .sysctls
        .insert("net/ipv4/conf/nosuch0/rp_filter".into(), "2".into());
    node.run("ip route add 203.0.113.10/32 dev eth0 metric 50");
    let error = kernel
        .apply(&desired)
        .await
        .expect_err("three steps fail")
        .to_string();
    for needle in [
        "nosuch0: there is no such device",
        "net/ipv4/conf/nosuch0/rp_filter",
        "somebody else has a route",
    ] {
        assert!(error.contains(needle), "{needle} in {error}");
    }
    assert!(node.run("ip -6 neigh show proxy").contains("2001:db8:1::10"));
    node.run("ip route del 203.0.113.10/32");
    desired.proxies.retain(|p| p.device == "eth0");
    desired.sysctls.remove("net/ipv4/conf/nosuch0/rp_filter");
    kernel.apply(&desired).await.expect("the rest");
    assert!(kernel.apply(&desired).await.expect("again").is_empty());
}

/// A table that nft refuses leaves everything as it was: nothing is built without guards.
#[tokio::test]
async fn nothing_is_built_without_the_table() {
    if !privileged() {
        return;
    }
    let (node, _peer) = node();
    let kernel = node.kernel();
    let mut desired = desired();
    if let Some(ruleset) = &mut desired.ruleset {
        ruleset
            .chains
            .insert("broken".into(), chain(None, &["this is no rule"]));
    }
    let error = kernel.apply(&desired).await.expect_err("nft refuses").to_string();
    assert!(error.contains("syntax error"), "{error}");
    assert!(dump_is_empty(&node));
}

#[tokio::test]
async fn facts_tell_the_uplink_and_where_addresses_are_asked_for() {
    if !privileged() {
        return;
    }
    let (node, peer) = node();
    node.connect("eth1", &peer, "eth1");
    node.address("eth1", &["203.0.113.1/24"]);
    node.run("ip link set eth1 mtu 1400; ip -6 route add default via 2001:db8::2 dev eth0");
    let kernel = node.kernel();
    let mut drift = kernel.drift();
    let facts = kernel.facts(&[ip("192.0.2.1")]).await.expect("facts");
    assert_eq!(facts.uplink.as_deref(), Some("eth0"));
    assert_eq!(facts.uplink_mtu, Some(1500));
    assert_eq!(facts.default_v4.as_deref(), Some("eth0"));
    assert_eq!(facts.default_v6.as_deref(), Some("eth0"));
    assert_eq!(facts.device_towards(ip("203.0.113.10")), Some("eth1"), "on link");
    assert_eq!(
        facts.device_towards(ip("8.8.8.8")),
        Some("eth0"),
        "by the default route"
    );
    assert!(facts.capabilities.missing.is_empty(), "{:?}", facts.capabilities);
    let all = &facts.capabilities;
    assert!(all.nftables && all.vxlan_gbp && all.egress_hook && all.conntrack && all.ipv6);
    assert!(!node.run("ip link").contains("spillway"), "the probe is gone");
    assert!(
        !node.run("nft list tables").contains("probe"),
        "nothing is left of the asking"
    );

    // Settle what the probe itself caused.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = drift.borrow_and_update().facts;
    node.run("ip link set eth0 mtu 1300");
    tokio::time::timeout(Duration::from_secs(5), drift.changed())
        .await
        .expect("told")
        .expect("alive");
    assert_eq!(drift.borrow().facts, before + 1);
    assert_eq!(
        kernel.facts(&[ip("192.0.2.1")]).await.expect("facts").uplink_mtu,
        Some(1300)
    );
}

/// What can't be changed on a device is changed by another device; what can is changed in place.
#[tokio::test]
async fn the_device_follows_its_description() {
    if !privileged() {
        return;
    }
    let (node, _peer) = node();
    let kernel = node.kernel();
    let mut desired = desired();
    kernel.apply(&desired).await.expect("apply");
    let index = || node.run("ip -o link show spillway0 | cut -d: -f1");
    let first = index();
    let tunnel = desired.tunnel.as_mut().expect("tunnel");
    tunnel.mtu = 1380;
    tunnel.addresses = ["100.64.4.7/32".parse().expect("prefix")].into();
    kernel.apply(&desired).await.expect("in place");
    assert_eq!(index(), first, "the device stays");
    assert!(node.run("ip addr show spillway0").contains("mtu 1380"));
    assert!(!node.run("ip addr show spillway0").contains("100.64.4.1/32"));

    // The underlay's other family, and another port and name.
    let tunnel = desired.tunnel.as_mut().expect("tunnel");
    tunnel.local = ip("2001:db8::1");
    tunnel.port = 5712;
    desired.forwarding = [ForwardingEntry {
        mac: [2, 0x53, 100, 64, 8, 1],
        remote: ip("2001:db8::2"),
    }]
    .into();
    let planned = kernel.plan(&desired).await.expect("plan");
    let done = kernel.apply(&desired).await.expect("anew");
    assert!(done.iter().any(|c| c.object.contains("another port")), "{done}");
    assert!(
        planned.iter().all(|p| done.iter().any(|d| d == p)),
        "{planned}\n\n{done}"
    );
    assert_ne!(index(), first);
    let text = dump(&node);
    for needle in [
        "local 2001:db8::1",
        "dstport 5712",
        "02:53:64:40:08:01 dst 2001:db8::2 self permanent",
    ] {
        assert!(text.contains(needle), "no {needle:?} in:\n{text}");
    }
    assert!(kernel.apply(&desired).await.expect("again").is_empty());

    desired.tunnel.as_mut().expect("tunnel").name = "spillway1".into();
    desired.sysctls.clear();
    desired
        .routes
        .retain(|r| matches!(r.target, RouteTarget::Unreachable));
    kernel.apply(&desired).await.expect("renamed");
    assert!(!node.attempt("ip link show spillway0").0, "the old one is gone");
    assert!(kernel.apply(&desired).await.expect("again").is_empty());
}

/// Another next hop is one replacement: no moment without a route.
#[tokio::test]
async fn a_failover_is_one_change_a_family() {
    if !privileged() {
        return;
    }
    let (node, _peer) = node();
    let kernel = node.kernel();
    let mut desired = desired();
    kernel.apply(&desired).await.expect("apply");
    desired.routes = desired
        .routes
        .into_iter()
        .map(|mut route| {
            if let RouteTarget::Device { via: Some(via), .. } = &mut route.target {
                *via = if via.is_ipv4() {
                    ip("100.64.8.2")
                } else {
                    ip("fd64:5711:2::2")
                };
            }
            route
        })
        .collect();
    let done = kernel.apply(&desired).await.expect("apply");
    assert_eq!(done.len(), 2, "{done}");
    assert!(done.iter().all(|c| c.operation == Operation::Change), "{done}");
    let text = dump(&node);
    assert!(
        text.contains("default via 100.64.8.2") && !text.contains("default via 100.64.8.1"),
        "{text}"
    );
    assert!(
        text.contains("default via fd64:5711:2::2") && !text.contains("default via fd64:5711:2::1"),
        "{text}"
    );
    assert!(kernel.apply(&desired).await.expect("again").is_empty());
}

/// A next hop more or less of several is one replacement a family, in every combination: no moment without a route.
#[tokio::test]
async fn next_hops_come_and_go_by_one_replacement() {
    if !privileged() {
        return;
    }
    let (node, _peer) = node();
    let kernel = node.kernel();
    let mut desired = desired();
    kernel.apply(&desired).await.expect("apply");
    let hops = |ipv6: bool, last: &[u8]| -> Route {
        let prefix = if ipv6 { "fd64:5711:2::" } else { "100.64.8." };
        let via = last.iter().map(|n| ip(&format!("{prefix}{n}")));
        let mut route = spread(5_711_002, ipv6);
        route.target = RouteTarget::Spread {
            device: "spillway0".into(),
            via: via.collect(),
        };
        route
    };
    for last in [
        [1].as_slice(),
        &[1, 2, 3],
        &[2, 3],
        &[3, 4],
        &[1, 2],
        &[5],
        &[1],
        &[1, 2],
    ] {
        desired.routes.retain(|r| r.table != 5_711_002);
        desired.routes.extend([hops(false, last), hops(true, last)]);
        let monitor = Monitor::start(&node);
        let done = kernel.apply(&desired).await.expect("apply");
        let told = monitor.stop(&node);
        assert!(done.len() == 2 && !done.repaired(), "to {last:?}:\n{done}");
        assert!(
            !told.contains("Deleted") && told.contains("5711002"),
            "a moment without a route on the way to {last:?}:\n{told}"
        );
        // One that knows nothing finds what was meant.
        let left = node.kernel().plan(&desired).await.expect("plan");
        assert!(left.is_empty(), "at {last:?}:\n{left}");
        for family in ["-4", "-6"] {
            let text = node.run(&format!("ip {family} route show table 5711002"));
            let count = text.matches(" via ").count();
            assert_eq!(count, last.len(), "at {last:?}:\n{text}");
        }
    }
    // What somebody did meanwhile to one of the next hops doesn't stop the next change.
    node.run("ip -6 route del default via fd64:5711:2::2 dev spillway0 table 5711002 metric 100");
    desired.routes.retain(|r| r.table != 5_711_002);
    desired.routes.extend([hops(false, &[2]), hops(true, &[2])]);
    kernel.apply(&desired).await.expect("apply");
    assert!(node.kernel().plan(&desired).await.expect("plan").is_empty());
}

/// Only flows from the sources that are asked for are looked at.
#[tokio::test]
async fn few_sources_flows_are_cut_alone() {
    use spillway_core::node::flows::{Flows, Verdict};
    use spillway_core::node::interval::{Family, Interval};

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
    let everything = Family::BOTH.map(|f| (Interval::from(f.everything()), Verdict::Block));
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

/// A new proxy is announced at once and again, and not any more once the address has moved on.
#[tokio::test]
async fn announcements_stop_when_the_address_moves_on() {
    if !privileged() {
        return;
    }
    let (node, peer) = node();
    peer.run(
        "nft 'table arp heard { chain in { type filter hook input priority 0; \
         arp operation request arp saddr ip 203.0.113.10 arp daddr ip 203.0.113.10 counter; \
         arp operation reply arp saddr ip 203.0.113.10 arp daddr ip 203.0.113.10 counter; }; }; \
         table ip6 heard { chain in { type filter hook input priority 0; \
         ip6 saddr 2001:db8:1::10 icmpv6 type nd-neighbor-advert counter; }; }'",
    );
    let heard = || -> Vec<u32> {
        let text = peer.run("nft list table arp heard; nft list table ip6 heard");
        let counts = text.split("packets ").skip(1);
        counts
            .map(|rest| {
                rest.split(' ')
                    .next()
                    .and_then(|n| n.parse().ok())
                    .expect("count")
            })
            .collect()
    };
    let kernel = node.kernel();
    let mut desired = desired();
    kernel.apply(&desired).await.expect("apply");
    eventually("both families are announced, ARP in both forms", || {
        heard().iter().all(|n| *n > 0)
    });
    eventually("and again", || heard().iter().all(|n| *n > 2));
    let proxies = std::mem::take(&mut desired.proxies);
    kernel.apply(&desired).await.expect("moved away");
    desired.proxies = proxies;
    kernel.apply(&desired).await.expect("back again");
    desired.proxies.clear();
    kernel.apply(&desired).await.expect("away again");
    let before = heard();
    // That nothing comes any more can't be waited for; the next would have come within 400 ms.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(heard(), before);
}

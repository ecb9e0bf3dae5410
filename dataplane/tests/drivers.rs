//! Every driver against the real kernel: built, kept, repaired, removed.

mod support;

use std::time::Duration;

use spillway_core::node::state::{DesiredState, ForwardingEntry, ProxyNeighbour, RouteTarget};
use spillway_dataplane::{Kernel, Operation};
use support::fixture::{chain, desired, dump, ip, node};
use support::monitor::Monitor;
use support::{Namespace, egress_hook, patient, privileged};

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
        "20000:\tfrom all to 100.64.0.0/10 ipproto udp dport 4799 lookup 5711000 proto 87",
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
    let all = &facts.capabilities;
    let missing: Vec<_> = all.missing.keys().map(String::as_str).collect();
    let expected: &[_] = if egress_hook() { &[] } else { &["egress_hook"] };
    assert_eq!(missing, expected, "{:?}", all.missing);
    assert_eq!(all.egress_hook, egress_hook());
    assert!(all.nftables && all.vxlan_gbp && all.conntrack && all.ipv6);
    assert!(!node.run("ip link").contains("spillway"), "the probe is gone");
    assert!(
        !node.run("nft list tables").contains("probe"),
        "nothing is left of the asking"
    );

    // Settle what the probe itself caused.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = drift.borrow_and_update().facts;
    node.run("ip link set eth0 mtu 1300");
    tokio::time::timeout(patient(Duration::from_secs(5)), drift.changed())
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

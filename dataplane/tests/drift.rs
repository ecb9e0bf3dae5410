//! What others do to what is ours is told of and repaired.

mod support;

use std::time::Duration;

use spillway_core::node::nft::Atom;
use spillway_dataplane::Kernel;
use support::fixture::{chain, desired, dump, ip, node};
use support::{patient, privileged};

/// What is broken by hand is told of, and an apply restores exactly what was there.
#[tokio::test]
async fn drift_is_noticed_and_repaired() {
    if !privileged() {
        return;
    }
    let (node, _peer) = node();
    let kernel = node.kernel();
    let desired = desired();
    kernel.apply(&desired).await.expect("apply");
    let whole = dump(&node);
    let mut drift = kernel.drift();
    for (damage, silent) in [
        ("ip rule del pref 20001", false),
        ("ip -6 rule del pref 20001", false),
        (
            "ip route del default via 100.64.8.1 dev spillway0 table 5711001",
            false,
        ),
        (
            "ip route replace 203.0.113.10/32 dev eth0 metric 50 proto 87",
            false,
        ),
        ("ip -6 route del unreachable default table 5711001", false),
        ("ip route add 10.99.0.0/24 dev eth0 proto 87", false),
        (
            "ip route change default via 100.64.8.1 dev spillway0 onlink table 5711002 metric 100 proto 87",
            false,
        ),
        (
            "ip -6 route del default via fd64:5711:2::2 dev spillway0 table 5711002 metric 100",
            false,
        ),
        (
            "ip -6 route append default via fd64:5711:2::9 dev spillway0 onlink table 5711002 metric 100 proto 87",
            false,
        ),
        ("ip neigh del 203.0.113.10 dev spillway0", false),
        (
            "nft delete element inet spillway reply4 { 203.0.113.10 . 5000 }",
            false,
        ),
        (
            "nft add element inet spillway out_id4 { 02:53:64:40:08:02 . 0x7 . 203.0.113.10 . 3000-3063 }",
            false,
        ),
        ("nft delete table netdev spillway", false),
        ("nft flush map netdev spillway peers", false),
        ("nft flush chain netdev spillway steer", false),
        (
            "nft flush chain netdev spillway steer; nft delete chain netdev spillway steer; \
             nft add chain netdev spillway steer \
             '{ type filter hook egress device \"eth0\" priority 0; }'",
            false,
        ),
        ("ip rule add pref 777 fwmark 9 lookup 999 protocol 87", false),
        (
            "bridge fdb del 02:53:64:40:08:01 dev spillway0 dst 192.0.2.2",
            false,
        ),
        (
            "bridge fdb replace 02:53:64:40:08:02 dev spillway0 dst 192.0.2.66",
            false,
        ),
        (
            "bridge fdb add 02:53:64:40:08:09 dev spillway0 dst 192.0.2.66",
            false,
        ),
        ("ip neigh del 100.64.8.1 dev spillway0", false),
        (
            "ip neigh replace fd64:5711:2::1 lladdr 02:00:00:00:00:99 dev spillway0 nud permanent",
            false,
        ),
        ("ip addr del 100.64.4.1/32 dev spillway0", false),
        ("ip addr add 100.64.4.9/32 dev spillway0", false),
        ("ip link set spillway0 mtu 1400", false),
        ("ip link set spillway0 address 02:00:00:00:00:01", false),
        ("ip link set spillway0 down", false),
        ("ip link del spillway0", false),
        (
            "ip link del spillway0; ip link add spillway0 type vxlan id 5 dstport 5711 local 192.0.2.1",
            false,
        ),
        ("ip link set eth0 down; ip link set eth0 up", false),
        ("ip neigh del proxy 203.0.113.10 dev eth0", true),
        ("ip -6 neigh del proxy 2001:db8:1::10 dev eth0", true),
        ("sysctl -qw net.ipv4.conf.spillway0.rp_filter=1", true),
        ("nft delete element inet spillway pods4 { 10.1.0.5 }", false),
        (
            "nft add element inet spillway pods4 { 10.1.0.6 : jump class_1 }",
            false,
        ),
        (
            "nft delete element inet spillway dst_1_4 { 198.51.102.1-198.51.102.9 }",
            false,
        ),
        ("nft flush set inet spillway granted4", false),
        ("nft flush chain inet spillway guard", false),
        ("nft insert rule inet spillway guard accept", false),
        ("nft add chain inet spillway extra", false),
        ("nft add set inet spillway extra { type ipv4_addr\\; }", false),
        ("nft flush ruleset", false),
        ("nft add table inet spillway { flags dormant\\; }", false),
        (
            "c=$(nft -a list chain inet spillway guard | sed -n 's/.*comment \"\\(sw:[^\"]*\\)\".*/\\1/p'); \
             nft flush chain inet spillway guard; nft add rule inet spillway guard accept comment \"\\\"$c\\\"\"",
            false,
        ),
    ] {
        drift.borrow_and_update();
        node.run(damage);
        if !silent {
            tokio::time::timeout(patient(Duration::from_secs(5)), drift.changed())
                .await
                .unwrap_or_else(|_| panic!("nobody told of: {damage}"))
                .expect("kernel thread");
        }
        let done = kernel
            .apply(&desired)
            .await
            .unwrap_or_else(|e| panic!("after {damage}: {e}"));
        assert!(!done.is_empty(), "nothing repaired after: {damage}");
        assert_eq!(dump(&node), whole, "after {damage}, with\n{done}");
        let again = kernel.apply(&desired).await.expect("apply again");
        assert!(again.is_empty(), "after {damage}, a second apply wrote:\n{again}");
    }
    // Our own repairs didn't count as drift that would call for another.
    let repairs = drift.borrow_and_update().repairs;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(drift.borrow().repairs, repairs, "own writes are no drift");
}

/// From state to state only the difference is written, and what somebody took away meanwhile comes back with it
/// or soon afterwards.
#[tokio::test]
async fn a_difference_is_written_over_what_somebody_broke() {
    if !privileged() {
        return;
    }
    let (node, _peer) = node();
    let kernel = node.kernel();
    let first = desired();
    let mut second = desired();
    let table = second.ruleset.as_mut().expect("table");
    let pods = &mut table.sets.get_mut("pods4").expect("set").elements;
    pods.insert(vec![Atom::Ip(ip("10.1.0.9"))], Some(Atom::Jump("class_1".into())));
    table
        .chains
        .insert("egress_8".into(), chain(None, &["counter accept"]));
    second.proxies.pop_first();
    kernel.apply(&second).await.expect("apply");
    for damage in [
        "true",
        "nft flush ruleset",
        "nft flush map inet spillway pods4",
        "nft delete element inet spillway pods4 { 10.1.0.5 }; ip route flush table 5711001; ip rule del pref 20001",
        "nft flush chain inet spillway guard",
        "ip link del spillway0",
    ] {
        kernel.apply(&first).await.expect("the first again");
        node.run(damage);
        let done = kernel
            .apply(&second)
            .await
            .unwrap_or_else(|e| panic!("after {damage}: {e}"));
        assert!(!done.is_empty(), "after {damage}");
        // Whoever listens for drift applies again.
        let mut drift = kernel.drift();
        tokio::time::timeout(patient(Duration::from_secs(5)), async {
            while !node.kernel().plan(&second).await.expect("plan").is_empty() {
                drift.changed().await.expect("kernel thread");
                kernel.apply(&second).await.expect("repair");
            }
        })
        .await
        .unwrap_or_else(|_| panic!("never repaired after {damage}"));
    }
}

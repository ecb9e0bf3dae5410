//! A failover is one change, and nothing is without a way meanwhile.

mod support;

use std::time::Duration;

use spillway_core::node::state::{Route, RouteTarget};
use spillway_dataplane::{Kernel, Operation};
use support::fixture::{desired, dump, ip, node, spread};
use support::monitor::Monitor;
use support::{eventually, privileged};

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
            mtu: 1390,
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

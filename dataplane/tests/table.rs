//! The table alone: updates element by element, and from any state to any other.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use spillway_core::node::nft::{Atom, Chain, Hook, Ruleset, Set};
use spillway_core::node::state::DesiredState;
use spillway_dataplane::Kernel;
use spillway_dataplane::nft::batch;
use support::fixture::{self, chain, ip, set};
use support::{Namespace, privileged};

/// A small generator, so that a failure repeats itself.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's MMIX constants; the high bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn byte(&mut self, bound: u64) -> u8 {
        u8::try_from(self.below(bound)).unwrap_or(u8::MAX)
    }
}

const CHAINS: [&str; 5] = ["egress_1", "egress_2", "egress_3", "class_a", "class_b"];

/// A verdict that never leads in a circle: classes lead to egress chains only.
fn verdict(dice: &mut Dice, chains: &[String]) -> Atom {
    match dice.below(3) {
        0 if !chains.is_empty() => Atom::Goto(chains[usize::from(dice.byte(chains.len() as u64))].clone()),
        1 if !chains.is_empty() => Atom::Jump(chains[usize::from(dice.byte(chains.len() as u64))].clone()),
        _ => Atom::Drop,
    }
}

/// Blocks of 16 addresses, each whole, as an odd range, or in part: disjoint whatever is drawn.
fn interval(dice: &mut Dice, block: u8) -> Atom {
    let at = |low: u8| IpAddr::from([198, 18, block / 16, (block % 16) * 16 + low]);
    match dice.below(4) {
        0 => Atom::Net(format!("{}/28", at(0)).parse().expect("prefix")),
        1 => Atom::Range(at(1), at(14)),
        2 => Atom::Range(at(8), at(15)),
        _ => Atom::Ip(at(3)),
    }
}

fn draw(dice: &mut Dice) -> Ruleset {
    let chains: Vec<String> = CHAINS[..3]
        .iter()
        .filter(|_| dice.below(3) > 0)
        .map(|c| (*c).to_owned())
        .collect();
    let classes: Vec<String> = CHAINS[3..]
        .iter()
        .filter(|_| dice.below(3) > 0)
        .map(|c| (*c).to_owned())
        .collect();
    let mut out = Ruleset {
        family: "inet".into(),
        table: "spillway".into(),
        ..Ruleset::default()
    };
    for chain in &chains {
        let rules = (0..dice.below(3))
            .map(|n| format!("meta mark {n} counter drop"))
            .collect();
        out.chains.insert(chain.clone(), Chain { hook: None, rules });
    }
    for class in &classes {
        let set = format!("to_{class}");
        let elements = (0..40)
            .filter(|_| dice.below(3) == 0)
            .collect::<Vec<u8>>()
            .into_iter()
            .map(|block| (vec![interval(dice, block)], Some(verdict(dice, &chains))))
            .collect();
        out.sets.insert(
            set.clone(),
            Set {
                key: "ipv4_addr".into(),
                expression: None,
                value: Some("verdict".into()),
                interval: true,
                elements,
            },
        );
        let rules = vec![
            "fib daddr type local return".into(),
            format!("ip daddr vmap @{set}"),
        ];
        out.chains.insert(class.clone(), Chain { hook: None, rules });
    }
    let pods = (0..dice.below(30))
        .map(|_| {
            (
                vec![Atom::Ip(IpAddr::from([10, 0, 0, dice.byte(60)]))],
                Some(verdict(dice, &classes)),
            )
        })
        .collect();
    out.sets.insert(
        "pods4".into(),
        Set {
            key: "ipv4_addr".into(),
            expression: None,
            value: Some("verdict".into()),
            interval: false,
            elements: pods,
        },
    );
    let granted = (0..30)
        .filter(|_| dice.below(3) == 0)
        .collect::<Vec<u8>>()
        .into_iter()
        .map(|block| {
            (
                vec![interval(dice, block), Atom::Number(u32::from(dice.byte(9)))],
                None,
            )
        })
        .collect();
    out.sets.insert(
        "granted4".into(),
        Set {
            key: "ipv4_addr . mark".into(),
            expression: None,
            value: None,
            interval: true,
            elements: granted,
        },
    );
    let slices: BTreeMap<_, _> = (0..60_u16)
        .filter(|_| dice.below(3) == 0)
        .collect::<Vec<_>>()
        .into_iter()
        .map(|slice| {
            let first = 1024 + 64 * slice;
            let last = if dice.below(8) == 0 { first } else { first + 63 };
            let eip = Atom::Ip(IpAddr::from([203, 0, 113, dice.byte(3)]));
            let peer = Atom::Number(0x6440_0400 | u32::from(dice.byte(5)));
            (vec![eip, Atom::Ports(first, last)], Some(peer))
        })
        .collect();
    for (name, expression, port) in [
        ("reply4", None, "inet_service"),
        ("reply_err4", Some("ip daddr . @th,224,16 : meta mark"), "integer"),
    ] {
        out.sets.insert(
            name.into(),
            Set {
                key: format!("ipv4_addr . {port}"),
                expression: expression.map(str::to_owned),
                value: Some("mark".into()),
                interval: true,
                elements: slices.clone(),
            },
        );
    }
    let eips = (0..dice.below(12))
        .map(|id| {
            let eip = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(dice.byte(200))]);
            (
                vec![Atom::Number(u32::try_from(id).expect("small"))],
                Some(Atom::Ip(eip)),
            )
        })
        .collect::<BTreeMap<_, _>>();
    out.sets.insert(
        "eip6".into(),
        Set {
            key: "mark".into(),
            expression: None,
            value: Some("ipv6_addr".into()),
            interval: false,
            elements: eips,
        },
    );
    let hook = |kind: &str, hook: &str, priority| {
        Some(Hook {
            kind: kind.into(),
            hook: hook.into(),
            priority,
            device: None,
        })
    };
    out.chains.insert(
        "classify".into(),
        Chain {
            hook: hook("filter", "prerouting", -90),
            rules: vec![
                "ip saddr vmap @pods4".into(),
                format!("meta mark {} return", dice.below(3)),
            ],
        },
    );
    out.chains.insert(
        "guard".into(),
        Chain {
            hook: hook("filter", "postrouting", 400),
            rules: vec!["ip saddr . meta mark != @granted4 counter".into()],
        },
    );
    out.chains.insert(
        "translate".into(),
        Chain {
            hook: hook("nat", "postrouting", 90),
            rules: vec!["meta nfproto ipv6 snat ip6 to ct mark map @eip6".into()],
        },
    );
    out
}

#[tokio::test]
async fn any_table_becomes_any_other_by_updates() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("table");
    let kernel = node.kernel();
    let mut dice = Dice(20_261_123);
    for step in 0..80 {
        let desired = DesiredState {
            ruleset: Some(draw(&mut dice)),
            ..DesiredState::default()
        };
        let done = kernel
            .apply(&desired)
            .await
            .unwrap_or_else(|e| panic!("step {step}: {e}"));
        if step > 0 {
            assert!(
                !done.iter().any(|c| c.object.contains("table")),
                "step {step} replaced the table:\n{done}"
            );
        }
        let again = kernel.apply(&desired).await.expect("again");
        assert!(again.is_empty(), "step {step}, a second apply wrote:\n{again}");
        // A fresh one must come to the same.
        if step % 20 == 0 {
            assert!(node.kernel().plan(&desired).await.expect("plan").is_empty());
        }
    }
}

/// Elements change one by one, chains as wholes, and the rest is left alone.
#[tokio::test]
async fn a_pod_more_is_an_element_more() {
    if !privileged() {
        return;
    }
    let (node, _peer) = fixture::node();
    let kernel = node.kernel();
    let mut desired = fixture::desired();
    kernel.apply(&desired).await.expect("apply");
    let counted = "nft list chain inet spillway egress_7";
    let handles = node.run("nft -a list table inet spillway | grep -o 'chain.*handle.*\\|comment.*handle.*'");
    if let Some(ruleset) = &mut desired.ruleset {
        let pods = ruleset.sets.get_mut("pods4").expect("set");
        for n in 1..=250_u8 {
            let pod = Atom::Ip(IpAddr::from([10, 1, 1, n]));
            pods.elements
                .insert(vec![pod], Some(Atom::Jump("class_1".into())));
        }
    }
    let done = kernel.apply(&desired).await.expect("apply");
    assert_eq!(done.len(), 250);
    assert_eq!(
        node.run("nft -a list table inet spillway | grep -o 'chain.*handle.*\\|comment.*handle.*'"),
        handles,
        "no rule was touched"
    );
    if let Some(ruleset) = &mut desired.ruleset {
        ruleset
            .chains
            .get_mut("guard")
            .expect("chain")
            .rules
            .push("meta mark 5 drop".into());
        ruleset.chains.insert(
            "class_2".into(),
            chain(None, &["ip daddr @new return", "goto egress_7"]),
        );
        ruleset
            .sets
            .insert("new".into(), set("ipv4_addr", None, true, []));
        let pods = ruleset.sets.get_mut("pods4").expect("set");
        pods.elements
            .insert(vec![Atom::Ip(ip("10.1.1.1"))], Some(Atom::Jump("class_2".into())));
    }
    let done = kernel.apply(&desired).await.expect("apply");
    assert!(done.iter().any(|c| c.object == "chain guard (2 rules)"), "{done}");
    assert!(
        !done.iter().any(|c| c.object.contains("table")),
        "no replacement:\n{done}"
    );
    assert!(node.run(counted).contains("accept"));
    let fewer = fixture::desired();
    let done = kernel.apply(&fewer).await.expect("back");
    assert!(done.iter().any(|c| c.object == "chain class_2"), "{done}");
    assert!(
        !done.iter().any(|c| c.object.contains("table")),
        "no replacement:\n{done}"
    );
    assert!(kernel.apply(&fewer).await.expect("again").is_empty());
}

/// A node with thousands of pods is still told apart in well under a second.
#[tokio::test]
async fn what_rules_have_counted_is_read() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("counts");
    let kernel = node.kernel();
    assert_eq!(
        kernel.counts().await.expect("counts"),
        [],
        "no table has counted nothing"
    );
    let dropping = "ip daddr 127.0.0.9 counter drop";
    let hook = Some(("filter", "output", 0));
    let mut ruleset = Ruleset {
        family: "inet".into(),
        table: "spillway".into(),
        ..Ruleset::default()
    };
    ruleset.chains.insert("out".into(), chain(hook, &[dropping]));
    let mut desired = DesiredState {
        ruleset: Some(ruleset),
        ..DesiredState::default()
    };
    kernel.apply(&desired).await.expect("apply");
    let send = || {
        node.inside(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
            // The kernel says that it dropped the packet.
            _ = socket.send_to(b"x", "127.0.0.9:9");
        });
    };
    for _ in 0..3 {
        send();
    }
    let counts = kernel.counts().await.expect("counts");
    let [count] = &counts[..] else {
        panic!("{counts:?}")
    };
    assert_eq!((count.chain.as_str(), count.packets), ("out", 3));
    assert_eq!(count.stamp, spillway_dataplane::nft::stamp(dropping));
    // Another chain leaves this one's counters alone.
    if let Some(ruleset) = &mut desired.ruleset {
        ruleset
            .chains
            .insert("other".into(), chain(None, &["counter drop"]));
    }
    kernel.apply(&desired).await.expect("apply");
    send();
    let counts = kernel.counts().await.expect("counts");
    let packets: Vec<_> = counts.iter().map(|c| (c.chain.as_str(), c.packets)).collect();
    assert_eq!(packets, [("out", 4), ("other", 0)]);
}

#[tokio::test]
async fn thousands_of_elements_are_compared() {
    if !privileged() {
        return;
    }
    let (node, _peer) = fixture::node();
    let kernel = node.kernel();
    let mut desired = fixture::desired();
    let sets = &mut desired.ruleset.as_mut().expect("table").sets;
    for n in 0..5000_u16 {
        let [high, low] = n.to_be_bytes();
        let pod = vec![Atom::Ip(IpAddr::from([10, 2, high, low]))];
        sets.get_mut("pods4")
            .expect("set")
            .elements
            .insert(pod, Some(Atom::Jump("class_1".into())));
        let net = format!(
            "172.{}.{}.{}/28",
            16 + (high >> 4),
            (high << 4) | (low >> 4),
            low << 4
        );
        let net = vec![Atom::Net(net.parse().expect("prefix"))];
        sets.get_mut("dst_1_4")
            .expect("set")
            .elements
            .insert(net, Some(Atom::Goto("egress_7".into())));
    }
    kernel.apply(&desired).await.expect("apply");
    assert!(kernel.apply(&desired).await.expect("again").is_empty());
    let sets = &mut desired.ruleset.as_mut().expect("table").sets;
    sets.get_mut("pods4")
        .expect("set")
        .elements
        .remove(&vec![Atom::Ip(ip("10.2.0.7"))]);
    assert_eq!(kernel.apply(&desired).await.expect("one less").len(), 1);
}

/// Elements of plain sets are written without nft, and nft reads what was meant.
#[tokio::test]
async fn plain_elements_are_written_as_nft_would_write_them() {
    if !privileged() {
        return;
    }
    let node = Namespace::new("elements");
    let kernel = node.kernel();
    let mut before = fixture::ruleset();
    before
        .sets
        .insert("pods6".into(), set("ipv6_addr", Some("verdict"), false, []));
    before.sets.insert("away".into(), set("mark", None, false, []));
    before.chains.insert("class_2".into(), chain(None, &["counter"]));
    let mut after = before.clone();
    let mut put = |set: &str, key: Atom, value: Option<Atom>| {
        after
            .sets
            .get_mut(set)
            .expect("set")
            .elements
            .insert(vec![key], value);
    };
    put(
        "pods4",
        Atom::Ip(ip("10.1.0.9")),
        Some(Atom::Jump("class_2".into())),
    );
    put(
        "pods4",
        Atom::Ip(ip("10.1.0.5")),
        Some(Atom::Goto("class_2".into())),
    );
    put(
        "pods6",
        Atom::Ip(ip("fd00::9")),
        Some(Atom::Jump("class_1".into())),
    );
    put("away", Atom::Number(0x5300_0102), None);
    put("snat4", Atom::Number(7), Some(Atom::Ip(ip("203.0.113.99"))));
    let out = after.sets.get_mut("out_id4").expect("set");
    out.elements.clear();
    for first in [2048, 4096, 8000] {
        out.elements
            .insert(fixture::out(2, "203.0.113.11", first, first + 63), None);
    }
    for (set, eip) in [("reply4", "203.0.113.0/24"), ("reply_err6", "2001:db8:2::7")] {
        let eip = eip.parse().map_or_else(|_| Atom::Ip(ip(eip)), Atom::Net);
        for (first, last) in [(7000, 7001), (9, 9)] {
            let key = vec![eip.clone(), Atom::Ports(first, last)];
            let value = Some(Atom::Number(0x0102_0304));
            after.sets.get_mut(set).expect("set").elements.insert(key, value);
        }
    }
    assert!(batch(&before, &after, 1).is_some(), "it takes no nft");
    let state = |ruleset: &Ruleset| DesiredState {
        ruleset: Some(ruleset.clone()),
        ..DesiredState::default()
    };
    kernel.apply(&state(&before)).await.expect("apply");
    for (from, to) in [(&before, &after), (&after, &before)] {
        let done = kernel.apply(&state(to)).await.expect("apply");
        assert!(!done.repaired() && done.len() >= 5, "{done}");
        let left = node.kernel().plan(&state(to)).await.expect("plan");
        assert!(left.is_empty(), "nft reads:\n{left}");
        assert!(batch(from, from, 1).is_none(), "nothing to be done is no batch");
    }
    // What isn't there as it was is found out.
    node.run("nft delete element inet spillway pods4 { 10.1.0.5 }");
    let done = kernel.apply(&state(&after)).await.expect("apply");
    let left = node.kernel().plan(&state(&after)).await.expect("plan");
    assert!(left.is_empty() && done.repaired(), "{done}\nleft:\n{left}");
}

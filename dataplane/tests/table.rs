//! The table through many random states: every step is an update that the kernel takes, and leads to exactly what
//! was asked for.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use spillway_core::node::nft::{Atom, Chain, Hook, Ruleset, Set};
use spillway_core::node::state::DesiredState;
use spillway_dataplane::Kernel;
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
            value: None,
            interval: true,
            elements: granted,
        },
    );
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

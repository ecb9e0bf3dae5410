//! Whatever crashes, hangs, is cut off or goes back in time: at no moment does anybody hold what it shouldn't, and once
//! it is over everybody holds the newest plan.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::world::{HUB, World, cases, plan, simulate};

const MEMBERS: [&str; 3] = ["ber", "fra", "par"];
/// Longest way back: a hub's longest wait before it offers a refused plan again is a minute, a member's longest
/// between two attempts half of one, and as long may it believe in a dead connection.
const REST: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
enum Event {
    Publish {
        member: usize,
        /// `None`: a plan of nothing at all.
        peers: Option<BTreeMap<String, usize>>,
        removal_intended: bool,
    },
    CrashHub {
        down: u64,
        /// It comes back from a backup: of later or earlier.
        epochs: i64,
        /// So long until its caches are read.
        sync: u64,
    },
    CrashMember {
        member: usize,
        down: u64,
    },
    /// Nothing passes, one way or both.
    Partition {
        member: usize,
        up: bool,
        down: bool,
        time: u64,
    },
    Reset(usize),
    Delay(u64),
    FailOnce(usize),
    Refuse(usize, bool),
    Slow(usize, u64),
    Lose(usize),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let member = || 0..MEMBERS.len();
    let some = prop::collection::btree_map("[a-p]", 0usize..3, 0..6);
    // So that most can be lost at once.
    let many = (0usize..2, 14u8..=16)
        .prop_map(|(nodes, n)| (0..n).map(|i| (char::from(b'a' + i).into(), nodes)).collect());
    let peers = prop_oneof![5 => some.prop_map(Some), 3 => many.prop_map(Some), 1 => Just(None)];
    let event = prop_oneof![
        8 => (member(), peers, any::<bool>())
            .prop_map(|(member, peers, removal_intended)| Event::Publish { member, peers, removal_intended }),
        3 => (0u64..40_000, prop_oneof![3 => Just(0i64), 1 => Just(1), 1 => Just(-1)], 0u64..8_000)
            .prop_map(|(down, epochs, sync)| Event::CrashHub { down, epochs, sync }),
        3 => (member(), 0u64..5_000).prop_map(|(member, down)| Event::CrashMember { member, down }),
        3 => (member(), any::<bool>(), any::<bool>(), 0u64..50_000)
            .prop_map(|(member, up, down, time)| Event::Partition { member, up, down, time }),
        2 => member().prop_map(Event::Reset),
        1 => (1u64..2_000).prop_map(Event::Delay),
        1 => member().prop_map(Event::FailOnce),
        1 => (member(), any::<bool>()).prop_map(|(m, on)| Event::Refuse(m, on)),
        1 => (member(), 0u64..20_000).prop_map(|(m, ms)| Event::Slow(m, ms)),
        1 => member().prop_map(Event::Lose),
        8 => (0u64..3_000).prop_map(Event::Wait),
    ];
    prop::collection::vec(event, 1..40)
}

async fn happen(world: &mut World, event: Event) {
    let ms = Duration::from_millis;
    match event {
        Event::Publish {
            member,
            peers,
            removal_intended,
        } => {
            let name = MEMBERS[member];
            let plan = peers.map(|p| plan(name, &p)).unwrap_or_default();
            world.publish(name, &plan, removal_intended);
        }
        Event::CrashHub { down, epochs, sync } => {
            world.crash_hub();
            tokio::time::sleep(ms(down)).await;
            world.start_hub(epochs, ms(sync));
        }
        Event::CrashMember { member, down } => {
            world.crash_member(MEMBERS[member]);
            tokio::time::sleep(ms(down)).await;
            world.start_member(MEMBERS[member]);
        }
        Event::Partition {
            member,
            up,
            down,
            time,
        } => {
            let (name, net) = (MEMBERS[member], world.net.clone());
            net.set_open(name, HUB, !up);
            net.set_open(HUB, name, !down);
            tokio::spawn(async move {
                tokio::time::sleep(ms(time)).await;
                net.set_open(name, HUB, true);
                net.set_open(HUB, name, true);
            });
        }
        Event::Reset(member) => world.net.reset(MEMBERS[member], HUB),
        Event::Delay(slowest) => world.net.delay(ms(slowest)),
        Event::FailOnce(member) => world.truth.facts().member(MEMBERS[member]).fails_once = true,
        Event::Refuse(member, on) => world.truth.facts().member(MEMBERS[member]).refuses = on,
        Event::Slow(member, time) => world.truth.facts().member(MEMBERS[member]).slowness = ms(time),
        Event::Lose(member) => world.lose(MEMBERS[member]),
        Event::Wait(time) => tokio::time::sleep(ms(time)).await,
    }
}

async fn run(seed: u64, events: Vec<Event>) -> Result<(), String> {
    let mut world = World::new(seed, &MEMBERS);
    for name in MEMBERS {
        world.publish(name, &plan(name, &BTreeMap::new()), false);
    }
    world.start_hub(0, Duration::from_millis(100));
    for name in MEMBERS {
        world.start_member(name);
    }
    for event in events {
        happen(&mut world, event).await;
        world.verdict()?;
    }
    // The last word is meant.
    for name in MEMBERS {
        let last = world.truth.facts().member(name).published.last().cloned();
        if let Some((_, last)) = last {
            world.publish(name, &last.plan, true);
        }
    }
    world.heal();
    world.come_to_rest(REST).await?;
    world.verdict()
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn nobody_holds_what_it_should_not_and_in_the_end_all_hold_the_newest(seed in any::<u64>(), events in events()) {
        simulate(run(seed, events)).map_err(TestCaseError::fail)?;
    }
}

/// What happens in the first seconds of a hub whose caches are slow is seldom drawn.
#[test]
fn nobody_is_served_before_the_caches_are_read() {
    simulate(async {
        let mut world = World::new(1, &MEMBERS);
        for name in MEMBERS {
            world.publish(name, &plan(name, &BTreeMap::new()), false);
        }
        world.start_hub(0, Duration::from_secs(8));
        for name in MEMBERS {
            world.start_member(name);
        }
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert_eq!(world.behind().len(), MEMBERS.len());
        world.come_to_rest(REST).await.expect("rest");
        world.verdict().expect("nothing is wrong");
    });
}

/// A refusal keeps the old plan, and the hub hears of it each time it offers the plan again.
#[test]
fn a_refused_plan_changes_nothing_and_is_told() {
    simulate(async {
        let mut world = World::new(1, &MEMBERS);
        let old = plan("ber", &BTreeMap::from([("a".into(), 1)]));
        world.publish("ber", &old, false);
        world.start_hub(0, Duration::ZERO);
        world.start_member("ber");
        world.come_to_rest(REST).await.expect("rest");
        world.truth.facts().member("ber").refuses = true;
        let new = plan("ber", &BTreeMap::from([("b".into(), 1)]));
        world.publish("ber", &new, false);
        tokio::time::sleep(Duration::from_secs(20)).await;
        {
            let mut facts = world.truth.facts();
            let ber = facts.member("ber");
            assert_eq!(ber.held.digest(), Some(old.digest()));
            assert!(ber.refusals.len() >= 2, "{:?}", ber.refusals);
            assert!(
                ber.refusals
                    .iter()
                    .all(|r| r.digest == new.digest() && r.reason == "not now")
            );
        }
        world.heal();
        world.come_to_rest(REST).await.expect("rest");
        world.verdict().expect("nothing is wrong");
    });
}

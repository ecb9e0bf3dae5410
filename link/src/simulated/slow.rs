//! A member that is slow, in whatever way, delays nobody else.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::world::{HUB, World, cases, plan, simulate};

const SLOW: &str = "slow";
const OTHERS: [&str; 3] = ["ber", "fra", "par"];
/// Longest time for a change to reach an undisturbed member and the word of it to come back: some round trips of
/// 10 ms at most.
const SOON: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
enum Slowness {
    /// Its disk takes for ever.
    Storage,
    /// It takes in nothing.
    Deaf,
    /// Nothing of it arrives.
    Mute,
    /// It comes again and again.
    Restless,
}

async fn run(seed: u64, slowness: Slowness, rounds: Vec<(usize, usize)>) -> Result<(), String> {
    let mut world = World::new(seed, &[SLOW, OTHERS[0], OTHERS[1], OTHERS[2]]);
    for name in world.identities.keys() {
        world.publish(name, &plan(name, &BTreeMap::new()), true);
    }
    world.start_hub(0, Duration::ZERO);
    for name in world.identities.keys().cloned().collect::<Vec<_>>() {
        world.start_member(&name);
    }
    world.come_to_rest(Duration::from_secs(5)).await?;
    match slowness {
        Slowness::Storage => world.truth.facts().member(SLOW).slowness = Duration::from_secs(100_000),
        Slowness::Deaf => world.net.set_open(HUB, SLOW, false),
        Slowness::Mute => world.net.set_open(SLOW, HUB, false),
        Slowness::Restless => {}
    }
    for (round, (who, peers)) in rounds.into_iter().enumerate() {
        // More than fits on the way.
        let large = (0..100).map(|i| (format!("p{round}-{i}"), 20)).collect();
        world.publish(SLOW, &plan(SLOW, &large), true);
        if matches!(slowness, Slowness::Restless) {
            world.start_member(SLOW);
        }
        let name = OTHERS[who];
        let peers = (0..peers).map(|i| (format!("p{round}-{i}"), 1)).collect();
        world.publish(name, &plan(name, &peers), true);
        let begun = tokio::time::Instant::now();
        while world.behind().iter().any(|b| !b.starts_with(SLOW)) {
            if begun.elapsed() > SOON {
                return Err(format!("round {round}, {slowness:?}: {:?}", world.behind()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    world.verdict()
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn a_slow_member_delays_nobody(
        seed in any::<u64>(),
        slowness in prop_oneof![
            Just(Slowness::Storage), Just(Slowness::Deaf), Just(Slowness::Mute), Just(Slowness::Restless)
        ],
        rounds in prop::collection::vec((0..OTHERS.len(), 0usize..20), 1..8),
    ) {
        simulate(run(seed, slowness, rounds)).map_err(TestCaseError::fail)?;
    }
}

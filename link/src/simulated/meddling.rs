//! Between both ends sits a relay that lies, or one that speaks a later version. No word of it makes anybody hold, or
//! believe, what isn't so.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::meddler::{self, MEDDLER, Mischief};
use super::world::{HUB, World, cases, plan, simulate};

const MEMBERS: [&str; 2] = ["ber", "fra"];

/// Few plans, so that the same one comes again: an old word about it then fits the new one, but for its number.
fn rounds() -> impl Strategy<Value = Vec<(usize, BTreeMap<String, usize>, u64)>> {
    let peers = prop_oneof![
        2 => Just(BTreeMap::from([("a".to_owned(), 1)])),
        2 => Just(BTreeMap::from([("b".to_owned(), 1)])),
        1 => prop::collection::btree_map("[a-f]", 0usize..3, 0..6),
        // Several pieces.
        1 => Just((0..6).map(|i| (format!("p{i}"), 800)).collect()),
    ];
    // Changes that come while the one before is on its way, too.
    let pause = prop_oneof![0u64..12, 0u64..500];
    prop::collection::vec((0..MEMBERS.len(), peers, pause), 1..30)
}

async fn run(
    seed: u64,
    mischief: Mischief,
    rounds: Vec<(usize, BTreeMap<String, usize>, u64)>,
) -> Result<(), String> {
    let mut world = World::new(seed, &MEMBERS);
    // A relay may well say that the hub means it.
    world.truth.facts().judge_removals = mischief == Mischief::LaterVersion;
    world.through(MEDDLER);
    world.start_hub(0, Duration::ZERO);
    let relay = meddler::start(&world, mischief);
    for name in MEMBERS {
        world.publish(name, &plan(name, &BTreeMap::new()), true);
        world.start_member(name);
    }
    for (who, peers, pause) in rounds {
        let name = MEMBERS[who];
        world.publish(name, &plan(name, &peers), true);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        world.verdict()?;
        if mischief == Mischief::Lies && pause % 4 == 0 {
            // What was dropped ends with the stream.
            world.net.reset(MEDDLER, HUB);
        }
    }
    relay.stop();
    world.net.reset(MEDDLER, HUB);
    world.heal();
    world.come_to_rest(Duration::from_secs(300)).await?;
    world.verdict()
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn no_lie_of_a_relay_is_believed(seed in any::<u64>(), rounds in rounds()) {
        simulate(run(seed, Mischief::Lies, rounds)).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn a_later_version_is_understood_as_far_as_it_can_be(seed in any::<u64>(), rounds in rounds()) {
        simulate(run(seed, Mischief::LaterVersion, rounds)).map_err(TestCaseError::fail)?;
    }
}

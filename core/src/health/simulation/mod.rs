//! Several nodes over a network that loses, is cut in one direction, and whose nodes die, hang and come back, in small
//! steps of time.

mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::node::gateways::carriers;
use world::{Fault, STALE, STEP, World};

/// As it is by default, but for shorter holds, so that a test's minute is enough.
fn timing() -> Timing {
    Timing {
        hold_max: Moment::from_secs(4),
        ..Timing::default()
    }
}

/// One healthy node answers for each address, and nobody else that isn't broken.
fn settled(world: &World) -> Result<(), TestCaseError> {
    let gateways: Vec<usize> = (0..world.nodes.len())
        .filter(|n| world.nodes[*n].gateway)
        .collect();
    if !gateways.iter().any(|n| world.healthy(*n)) {
        return Ok(());
    }
    prop_assert!(world.connected(), "no way out or back: {}", world.trace());
    for address in &world.eips {
        let claims = world.claims(*address);
        prop_assert_eq!(
            claims.len(),
            1,
            "{} is held by {:?}: {}",
            address,
            claims,
            world.trace()
        );
        // Where the only other node is drained, nobody tells one that can't send; nor does anybody hear it.
        let told = |n: &usize| world.nodes[*n].sends || !world.drains();
        for n in gateways.iter().filter(|n| world.half_open(**n) && told(n)) {
            prop_assert!(
                !world.nodes[*n].kernel.held.contains_key(address),
                "{} is half open and answers for {}: {}",
                n,
                address,
                world.trace()
            );
        }
    }
    Ok(())
}

fn fault() -> impl Strategy<Value = Fault> {
    use Fault::*;
    proptest::sample::select(vec![
        PowerOff, PowerOn, PowerOn, Hang, Resume, Resume, CutReceive, CutSend, Unplug, Mend, Mend, Drain,
        Undrain, Expel, Admit, Restart, Pin, Unpin,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: an address is without a working holder for a bounded time only while a
    /// working node exists, and once all is quiet exactly one has it.
    #[test]
    fn no_address_is_without_a_holder_for_long(
        gateways in 2..4_usize,
        sources in 1..3_usize,
        lost in prop_oneof![Just(0_u64), 0..80_u64],
        delay in 0..800_u64,
        events in proptest::collection::vec((0..6_usize, fault(), 50..4_000_u64), 1..12),
    ) {
        let mut world = World::new(gateways, sources, lost, timing());
        world.delay = delay;
        world.run(Moment::from_secs(3));
        // Since when nobody works that could hold it, or somebody holds it.
        let mut without: BTreeMap<IpAddr, Moment> = world.eips.iter().map(|a| (*a, world.now)).collect();
        let mut since_healthy = vec![Moment::ZERO; world.nodes.len()];
        for (n, fault, pause) in events {
            world.strike(n % world.nodes.len(), fault);
            let end = world.now + Moment::from_millis(pause);
            while world.now < end {
                world.step();
                for (n, since) in since_healthy.iter_mut().enumerate() {
                    if !world.healthy(n) {
                        *since = world.now;
                    }
                }
                let age = |n: usize| world.now.saturating_sub(since_healthy[n]);
                // With somebody else to hear, a node knows at once; the last one of several waits.
                let company = (0..world.nodes.len()).filter(|n| age(*n) > Moment::from_secs(2)).count();
                let able = (0..gateways).any(|n| age(n) > Moment::from_secs(2)) && company >= 2;
                for address in world.eips.clone() {
                    if !able || world.answered(address) {
                        without.insert(address, world.now);
                    }
                    let gap = world.now.saturating_sub(without[&address]);
                    prop_assert!(
                        gap < Moment::from_millis(1_500),
                        "nobody has answered for {} for {:?}: {}",
                        address, gap, world.trace()
                    );
                }
            }
        }
        // Loss alone may make a node look dead at any moment: quiet means that it stops as well. Where faults overlap,
        // as when a hung node that still answers is cut off, nobody tells a neighbour that believes in it; then its own
        // timers have to run out.
        world.lost = 0;
        world.run(STALE + Moment::from_secs(7));
        settled(&world)?;
    }

    #[test]
    fn equal_runs_are_equal(events in proptest::collection::vec((0..4_usize, fault(), 50..2_000_u64), 1..8)) {
        let run = || {
            let mut world = World::new(2, 2, 30, timing());
            for (n, fault, pause) in &events {
                world.strike(n % 4, *fault);
                world.run(Moment::from_millis(*pause));
            }
            world.trace()
        };
        prop_assert_eq!(run(), run());
    }

    /// A node that dies and comes back for ever moves its addresses ever more rarely.
    #[test]
    fn flapping_is_damped(
        down in 400..3_000_u64,
        up in 700..3_000_u64,
        gateways in 2..4_usize,
        flapping in 0..2_usize,
        unplugged in any::<bool>(),
    ) {
        let mut world = World::new(gateways, 1, 0, Timing::default());
        world.run(Moment::from_secs(3));
        let flap = |world: &mut World, time: Moment| {
            let end = world.now + time;
            let before: u32 = world.nodes.iter().map(|n| n.moves).sum();
            while world.now < end {
                if unplugged {
                    world.strike(flapping, Fault::Unplug);
                } else {
                    world.strike(flapping, Fault::CutReceive);
                    world.strike(flapping, Fault::CutSend);
                }
                world.run(Moment::from_millis(down));
                world.strike(flapping, Fault::Mend);
                world.run(Moment::from_millis(up));
            }
            world.nodes.iter().map(|n| n.moves).sum::<u32>() - before
        };
        let first = flap(&mut world, Moment::from_secs(60));
        prop_assert!(first <= 24, "{first} moves in the first minute");
        let second = flap(&mut world, Moment::from_secs(60));
        prop_assert!(second <= 6, "{second} moves in the second minute");
    }
}

/// How long packets of pods find no way out, or replies none back, while `time` passes.
fn gap(world: &mut World, time: Moment) -> Moment {
    let end = world.now + time;
    let mut gap = Moment::ZERO;
    while world.now < end {
        world.step();
        if !world.connected() {
            gap += STEP;
        }
    }
    gap
}

/// Detection takes 350 ms, and what follows from it 40 ms, twice where the kernel is just being written, and some
/// steps of the simulation.
const TAKE_OVER: Moment = Moment::from_millis(480);

/// The same where the one that is left was itself away a moment ago, and has just begun to be heard.
const AGAIN: Moment = Moment::from_millis(800);

#[test]
fn a_node_that_dies_is_replaced_within_half_a_second() {
    for (gateways, sources) in [(2, 1), (2, 2), (3, 2)] {
        for fault in [Fault::PowerOff, Fault::CutReceive, Fault::CutSend] {
            for node in 0..gateways {
                let mut world = World::new(gateways, sources, 0, Timing::default());
                world.run(Moment::from_secs(3));
                world.strike(node, fault);
                let gap = gap(&mut world, Moment::from_secs(15));
                assert!(
                    gap > Moment::ZERO && gap <= TAKE_OVER,
                    "{fault:?} of {node} of {gateways}: {gap:?}"
                );
            }
        }
    }
}

/// A whole cluster of two goes dark at once.
#[test]
fn half_of_the_nodes_and_more_are_replaced_as_fast_as_one() {
    for (gateways, dead) in [(3, 2), (4, 2), (4, 3)] {
        for fault in [Fault::PowerOff, Fault::CutReceive, Fault::CutSend] {
            let mut world = World::new(gateways, 2, 0, Timing::default());
            world.run(Moment::from_secs(3));
            for node in 0..dead {
                world.strike(node, fault);
            }
            let gap = gap(&mut world, Moment::from_secs(15));
            assert!(gap <= TAKE_OVER, "{fault:?} of {dead} of {gateways}: {gap:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Two fail in turns, in ways that change, and one of them is always there: however long it is held down by then,
    /// nothing waits for that.
    #[test]
    fn of_two_that_fail_in_turns_the_other_takes_over_though_it_is_held_down(
        turns in proptest::collection::vec(
            (
                proptest::sample::select(vec![
                    (Fault::CutReceive, Fault::Mend),
                    (Fault::CutSend, Fault::Mend),
                    (Fault::PowerOff, Fault::PowerOn),
                ]),
                0..2_usize,
                600..6_000_u64,
                1_000..6_000_u64,
            ),
            1..6,
        ),
        sources in 1..3_usize,
    ) {
        let mut world = World::new(2, sources, 0, Timing::default());
        world.run(Moment::from_secs(3));
        for ((breaks, mends), node, broken, mended) in turns {
            world.strike(node, breaks);
            let lost = gap(&mut world, Moment::from_millis(broken));
            prop_assert!(lost <= AGAIN, "{breaks:?} of {node}: {lost:?}: {}", world.trace());
            world.strike(node, mends);
            if mends == Fault::PowerOn {
                world.run(Moment::from_millis(1_500));
            }
            let lost = gap(&mut world, Moment::from_millis(mended));
            prop_assert_eq!(lost, Moment::ZERO, "{:?} of {} mended: {}", breaks, node, world.trace());
        }
    }

    /// What is meant loses nothing, whenever which node hears of it.
    #[test]
    fn what_is_planned_loses_nothing(
        gateways in 2..4_usize,
        delay in 0..2_500_u64,
        turns in proptest::collection::vec(
            (
                0..3_usize,
                proptest::sample::select(vec![
                    (Fault::Drain, Fault::Undrain),
                    (Fault::Expel, Fault::Admit),
                    (Fault::Restart, Fault::Mend),
                    (Fault::Pin, Fault::Unpin),
                    (Fault::Pin, Fault::Mend),
                ]),
                prop_oneof![Just(20_000_u64), Just(80_000)],
            ),
            1..4,
        ),
    ) {
        let mut world = World::new(gateways, 2, 0, Timing::default());
        world.delay = delay;
        world.run(Moment::from_secs(3));
        for (node, (leave, back), pause) in turns {
            let node = node % gateways;
            for fault in [leave, back] {
                world.strike(node, fault);
                let lost = gap(&mut world, Moment::from_millis(pause));
                prop_assert_eq!(lost, Moment::ZERO, "{:?} of {}: {}", fault, node, world.trace());
            }
        }
        settled(&world)?;
    }
}

/// A pinned node that is there has all addresses, and has them again once it is back.
#[test]
fn a_pinned_node_holds_all_while_it_can() {
    for pinned in 0..3 {
        let mut world = World::new(3, 1, 0, Timing::default());
        world.run(Moment::from_secs(3));
        world.strike(pinned, Fault::Pin);
        let all = |world: &mut World, time| {
            let lost = gap(world, Moment::from_secs(time));
            assert_eq!(lost, Moment::ZERO, "{}", world.trace());
            assert_eq!(world.nodes[pinned].kernel.held.len(), 4, "{}", world.trace());
        };
        all(&mut world, 10);
        world.strike(pinned, Fault::PowerOff);
        world.run(Moment::from_secs(1));
        assert!(world.connected(), "{}", world.trace());
        world.strike(pinned, Fault::PowerOn);
        all(&mut world, 20);
        world.strike(3, Fault::Pin);
        world.run(Moment::from_secs(10));
        let held: Vec<usize> = (0..4).map(|n| world.nodes[n].kernel.held.len()).collect();
        assert!(held[3] == 0 && held.iter().sum::<usize>() == 4, "{held:?}");
    }
}

#[test]
fn the_last_one_of_a_pair_holds_all_at_once_and_the_last_of_many_later() {
    let mut world = World::new(2, 0, 0, Timing::default());
    world.run(Moment::from_secs(3));
    world.strike(0, Fault::PowerOff);
    world.run(Moment::from_secs(1));
    assert_eq!(world.nodes[1].kernel.held.len(), 4, "{}", world.trace());

    let mut world = World::new(3, 1, 0, Timing::default());
    world.run(Moment::from_secs(3));
    for n in [0, 1, 3] {
        world.strike(n, Fault::PowerOff);
    }
    world.run(Moment::from_secs(2));
    assert_eq!(
        world.nodes[2].kernel.held.len(),
        0,
        "deaf or alone? {}",
        world.trace()
    );
    world.run(Moment::from_secs(10));
    assert_eq!(world.nodes[2].kernel.held.len(), 4, "{}", world.trace());
}

#[test]
fn a_node_alone_in_its_gateway_is_never_held_down() {
    let mut world = World::new(1, 2, 0, Timing::default());
    world.run(Moment::from_secs(3));
    assert_eq!(world.nodes[0].kernel.held.len(), 4);
    for _ in 0..5 {
        world.strike(0, Fault::CutReceive);
        world.run(Moment::from_secs(1));
        world.strike(0, Fault::Mend);
        world.run(Moment::from_secs(1));
        assert_eq!(world.nodes[0].kernel.held.len(), 4, "{}", world.trace());
        for source in [1, 2] {
            let inputs = world.inputs(source);
            let gateway = &inputs.plan.as_ref().expect("a plan").gateways[0];
            assert_eq!(carriers(gateway, &inputs.liveness).len(), 1, "{}", world.trace());
        }
    }
}

/// Its announcements were lost, the other one has announced since and went deaf, and nothing else changes once it is heard.
#[test]
fn a_node_that_is_heard_again_announces_what_it_has() {
    for away in (500..6_000).step_by(250) {
        let mut world = World::new(2, 2, 0, timing());
        world.run(Moment::from_secs(3));
        world.strike(0, Fault::CutSend);
        world.run(Moment::from_millis(50));
        world.strike(1, Fault::CutReceive);
        world.run(Moment::from_millis(away));
        world.strike(0, Fault::Mend);
        world.run(Moment::from_secs(8));
        assert!(world.connected(), "away for {away} ms: {}", world.trace());
    }
}

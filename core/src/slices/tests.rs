//! Whatever happens in whatever order, a port is one node's.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const NODES: u8 = 9;
const GATEWAYS: usize = 2;

fn node(n: u8) -> NodeRef {
    NodeRef::new("m", format!("n{n}"))
}

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    Claim(u8),
    Unclaim(u8),
    Level(u8, PortLevel),
    /// The hub looks.
    Step,
    /// A gateway's node programs a plan: the newest, or one in between.
    Gateway(usize, bool),
    /// The same for a source.
    Source(u8, bool),
    /// A source sees that no connection is left in some draining ports; what it says may be late.
    Vacate(u8, u8),
    /// A source is gone for good.
    Gone(u8),
    /// The hub forgets old plans.
    Forget,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let level = prop_oneof![
        Just(PortLevel::Idle),
        Just(PortLevel::Normal),
        Just(PortLevel::High),
        Just(PortLevel::Full)
    ];
    let event = prop_oneof![
        3 => (0..NODES).prop_map(Event::Claim),
        1 => (0..NODES).prop_map(Event::Unclaim),
        3 => ((0..NODES), level).prop_map(|(n, l)| Event::Level(n, l)),
        8 => Just(Event::Step),
        5 => ((0..GATEWAYS), any::<bool>()).prop_map(|(g, newest)| Event::Gateway(g, newest)),
        6 => ((0..NODES), any::<bool>()).prop_map(|(n, newest)| Event::Source(n, newest)),
        3 => ((0..NODES), any::<u8>()).prop_map(|(n, mask)| Event::Vacate(n, mask)),
        1 => (0..NODES).prop_map(Event::Gone),
        1 => Just(Event::Forget),
    ];
    prop::collection::vec(event, 0..120)
}

/// A source, seen from outside of the hub.
#[derive(Clone, Default)]
struct Source {
    level: PortLevel,
    measured: u16,
    vacated: Ports,
    /// Which record its plan was made of.
    runs: Option<usize>,
    gone: bool,
}

struct World {
    /// Every record there was.
    records: Vec<Slices>,
    claimants: BTreeSet<NodeRef>,
    sources: BTreeMap<NodeRef, Source>,
    /// Which record each gateway node's plan was made of.
    gateways: Vec<usize>,
    /// Plans from here on are known.
    known_from: usize,
}

impl World {
    fn new() -> Self {
        Self {
            records: vec![Slices::new()],
            claimants: BTreeSet::new(),
            sources: (0..NODES).map(|n| (node(n), Source::default())).collect(),
            gateways: vec![0; GATEWAYS],
            known_from: 0,
        }
    }

    fn newest(&self) -> usize {
        self.records.len() - 1
    }

    fn source(&mut self, n: u8) -> &mut Source {
        self.sources.entry(node(n)).or_default()
    }

    fn input(&self) -> Input {
        let known_plan = |version: usize| version >= self.known_from || version == self.newest();
        let facts = self
            .sources
            .iter()
            .map(|(name, s)| {
                let runs = s.runs.filter(|v| known_plan(*v));
                let facts = Facts {
                    level: s.level,
                    measured: s.measured,
                    vacated: s.vacated,
                    runs: runs.map(|v| self.records[v].get(name).copied().unwrap_or_default()),
                    settled: s.runs == Some(self.newest()),
                    silent: s.gone,
                    gone: s.gone,
                };
                (name.clone(), facts)
            })
            .collect();
        let all_known = self.gateways.iter().all(|v| known_plan(*v));
        let known = self.sources.keys().filter(|_| all_known).map(|name| {
            let slice = |v: &usize| self.records[*v].get(name).copied().unwrap_or_default();
            let said = self.gateways.iter().map(|v| Known::of(&slice(v)));
            (name.clone(), said.reduce(|a, b| a.and(&b)).unwrap_or_default())
        });
        Input {
            recorded: self.records[self.newest()].clone(),
            claimants: self.claimants.clone(),
            facts,
            known: known.collect(),
            unwatched: false,
        }
    }

    /// The hub looks once. Returns whether it wrote.
    fn step(&mut self) -> Result<bool, TestCaseError> {
        let input = self.input();
        let outcome = allot(&input);
        prop_assert_eq!(&outcome, &allot(&input));
        let after = outcome.slices;
        let before = &input.recorded;
        let mut owner: BTreeMap<u16, &NodeRef> = BTreeMap::new();
        for (name, slice) in &after {
            prop_assert!(!slice.is_empty());
            prop_assert!(slice.pending.and(&slice.ports.or(&slice.draining)).is_empty());
            prop_assert!(slice.ports.and(&slice.draining).is_empty());
            for list in [
                slice.ports.ranges(),
                slice.pending.ranges(),
                slice.draining.pieces(),
            ] {
                prop_assert!(list.len() <= ports::MAX_RANGES);
                for range in list {
                    prop_assert!(range.first >= 1024 && range.first % 64 == 0 && range.last % 64 == 63);
                    prop_assert!(owner.insert(range.first, name).is_none());
                }
            }
            for (other, theirs) in &after {
                prop_assert!(other == name || theirs.all().and(&slice.all()).is_empty());
            }
            for (other, theirs) in before {
                let taken = theirs.all().and(&slice.all());
                prop_assert!(
                    other == name || taken.is_empty(),
                    "{:?} went from {:?} to {:?}",
                    taken,
                    other,
                    name
                );
            }
            let had = before.get(name).copied().unwrap_or_default();
            let new = slice.ports.minus(&had.ports);
            prop_assert!(
                new.minus(&had.pending.or(&had.draining)).is_empty(),
                "ports before they were pending"
            );
            for version in &self.gateways {
                let known = self.records[*version]
                    .get(name)
                    .map(Slice::all)
                    .unwrap_or_default();
                prop_assert!(
                    new.minus(&known).is_empty(),
                    "a gateway doesn't know {:?}",
                    new.minus(&known)
                );
            }
        }
        let wrote = after != input.recorded;
        if wrote {
            self.records.push(after);
        }
        Ok(wrote)
    }

    /// What leaves now finds its way back: every gateway knows every port that a source uses.
    fn check(&self) -> Result<(), TestCaseError> {
        for (name, source) in self.sources.iter().filter(|(_, s)| !s.gone) {
            let Some(runs) = source.runs else { continue };
            let uses = self.records[runs].get(name).map(|s| s.ports).unwrap_or_default();
            for version in &self.gateways {
                let known = self.records[*version]
                    .get(name)
                    .map(Slice::all)
                    .unwrap_or_default();
                prop_assert!(
                    uses.minus(&known).is_empty(),
                    "{:?} uses {:?}, of which a gateway doesn't know",
                    name,
                    uses.minus(&known)
                );
            }
        }
        Ok(())
    }

    fn apply(&mut self, event: Event) -> Result<(), TestCaseError> {
        let newest = self.newest();
        match event {
            Event::Claim(n) => {
                let source = self.source(n);
                if source.gone {
                    // The node is made anew.
                    *source = Source::default();
                }
                self.claimants.insert(node(n));
            }
            Event::Unclaim(n) => {
                self.claimants.remove(&node(n));
            }
            Event::Level(n, level) => {
                self.source(n).level = level;
                self.measure(&node(n));
            }
            Event::Step => {
                self.step()?;
            }
            Event::Gateway(g, all) => {
                let at = &mut self.gateways[g];
                *at = if all { newest } else { newest.min(*at + 1) };
            }
            Event::Source(n, all) => {
                let source = self.source(n);
                if !source.gone {
                    let next = source.runs.map_or(newest, |v| newest.min(v + 1));
                    source.runs = Some(if all { newest } else { next });
                }
            }
            Event::Vacate(n, mask) => self.vacate(&node(n), mask),
            Event::Gone(n) => {
                self.source(n).gone = true;
                self.claimants.remove(&node(n));
            }
            Event::Forget => self.known_from = newest,
        }
        Ok(())
    }

    /// What the source says of its slice is said of what it runs.
    fn measure(&mut self, name: &NodeRef) {
        let runs = self.sources[name].runs;
        let slice = runs.and_then(|v| self.records[v].get(name));
        let measured = slice.map(|s| s.ports.count()).unwrap_or_default();
        if let Some(source) = self.sources.get_mut(name) {
            source.measured = measured;
        }
    }

    fn vacate(&mut self, name: &NodeRef, mask: u8) {
        let source = &self.sources[name];
        let drains = source
            .runs
            .and_then(|v| self.records[v].get(name))
            .map(|s| s.draining.pieces())
            .unwrap_or_default();
        let empty: Vec<_> = drains
            .into_iter()
            .enumerate()
            .filter(|(i, _)| mask >> (i % 8) & 1 == 1)
            .map(|(_, r)| r)
            .collect();
        if let Some(source) = self.sources.get_mut(name) {
            source.vacated = Ports::within(&empty);
        }
    }

    /// Everybody does what is to be done until nothing moves any more.
    fn come_to_rest(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..400 {
            let wrote = self.step()?;
            let newest = self.newest();
            let mut moved = false;
            for at in &mut self.gateways {
                moved |= std::mem::replace(at, newest) != newest;
            }
            let names: Vec<_> = self.sources.keys().cloned().collect();
            for name in names {
                let source = self.sources.get_mut(&name).expect("known");
                if source.gone {
                    continue;
                }
                moved |= source.runs.replace(newest) != Some(newest);
                let said = source.vacated;
                self.vacate(&name, u8::MAX);
                moved |= self.sources[&name].vacated != said;
                let of = self.sources[&name].measured;
                self.measure(&name);
                moved |= self.sources[&name].measured != of;
            }
            self.check()?;
            if !wrote && !moved {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("it never comes to rest"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn a_port_is_one_nodes_and_every_gateway_knows_it(events in events()) {
        let mut world = World::new();
        for event in events {
            world.apply(event)?;
            world.check()?;
        }
        world.come_to_rest()?;
        let last = &world.records[world.newest()];
        for name in &world.claimants {
            prop_assert!(last.get(name).is_some_and(|s| !s.ports.is_empty()), "{:?} got nothing: {:?}", name, last);
        }
        for (name, slice) in last {
            prop_assert!(world.claimants.contains(name), "{:?} has ports for nothing: {:?}", name, slice);
            prop_assert!(slice.pending.is_empty() && slice.draining.is_empty());
        }
    }
}

fn first_grants(n: u16) -> Outcome {
    let claimants = (0..n).map(|i| NodeRef::new("m", format!("n{i:04}"))).collect();
    allot(&Input {
        claimants,
        ..Input::default()
    })
}

#[test]
fn first_grants_leave_half_free() {
    for (nodes, ports) in [
        (1, 32768),
        (2, 16384),
        (3, 8192),
        (100, 256),
        (512, 64),
        (1000, 64),
    ] {
        let outcome = first_grants(nodes);
        assert!(
            outcome.slices.values().all(|s| s.pending.blocks() * 64 == ports),
            "{nodes} nodes"
        );
        assert_eq!(outcome.slices.len(), usize::from(nodes));
    }
}

#[test]
fn what_is_too_much_is_said() {
    let outcome = first_grants(1100);
    assert_eq!(outcome.slices.len(), 1008);
    assert_eq!(
        (outcome.without.len(), outcome.waiting.len()),
        (0, 92),
        "it may change at once"
    );
    let claimants: BTreeSet<_> = outcome.slices.keys().chain(&outcome.waiting).cloned().collect();
    let again = allot(&Input {
        claimants,
        recorded: outcome.slices.clone(),
        ..Input::default()
    });
    assert_eq!(again.slices, outcome.slices);
    assert_eq!((again.without.len(), again.waiting.len()), (92, 0));
}

#[test]
fn a_full_slice_that_nobody_can_help_is_said() {
    let mut world = World::new();
    world.claimants = BTreeSet::from([node(0), node(1)]);
    for n in [0, 1] {
        world.source(n).level = PortLevel::High;
    }
    world.come_to_rest().expect("quiet");
    let outcome = allot(&world.input());
    assert_eq!(outcome.cramped.len(), 2);
    let used = outcome.slices.values().fold(Ports::NONE, |a, s| a.or(&s.ports));
    assert_eq!(used, Ports::all());
    // One of them rests: the other gets some of its.
    world.source(1).level = PortLevel::Idle;
    let before = outcome.slices[&node(0)].ports.blocks();
    world.come_to_rest().expect("quiet");
    assert!(world.records[world.newest()][&node(0)].ports.blocks() > before);
}

#[test]
fn a_newcomer_waits_for_the_largest_and_gets_its_ports() {
    let mut world = World::new();
    world.claimants = BTreeSet::from([node(0)]);
    world.source(0).level = PortLevel::High;
    world.come_to_rest().expect("quiet");
    assert_eq!(world.records[world.newest()][&node(0)].ports, Ports::all());
    world.source(0).level = PortLevel::Normal;
    world.claimants.insert(node(1));
    let outcome = allot(&world.input());
    assert_eq!(outcome.waiting, [node(1)]);
    assert!(!outcome.slices[&node(0)].draining.is_empty());
    world.come_to_rest().expect("quiet");
    let slices = &world.records[world.newest()];
    assert_eq!(slices[&node(1)].ports.blocks(), 256);
}

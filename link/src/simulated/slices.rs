//! Make before break, on the wire: the hub allots ports by what members report, and whoever is cut off, late or dead in
//! between, no source uses a port of which a gateway doesn't know whose it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use spillway_core::plan::ResourceKind;
use spillway_core::slices::{self, Input, Known, Ports, Slice, Slices, allot};
use spillway_crds::hub::PortLevel;
use spillway_crds::member::NodeRef;

use super::world::{Facts, HUB, MemberFacts, World, cases, plan, simulate};

const GATEWAYS: [&str; 2] = ["gate-1", "gate-2"];
const SOURCES: [&str; 4] = ["src-1", "src-2", "src-3", "src-4"];

fn all() -> impl Iterator<Item = &'static str> {
    GATEWAYS.into_iter().chain(SOURCES)
}

fn node(source: &str) -> NodeRef {
    NodeRef::new(source, "n")
}

/// Every record there was. A plan says which one it was made of.
type Records = Arc<Mutex<Vec<Slices>>>;

/// Of which record the plan is that the member holds.
fn version(member: &MemberFacts) -> Option<usize> {
    let mut peers = member.contents.keys().filter(|k| k.kind == ResourceKind::Peer);
    peers.find_map(|k| k.name.strip_prefix('v')?.parse().ok())
}

fn slice(records: &[Slices], version: Option<usize>, source: &str) -> Slice {
    version
        .and_then(|v| records[v].get(&node(source)))
        .copied()
        .unwrap_or_default()
}

/// What leaves now finds its way back.
fn known_everywhere(records: &[Slices], facts: &Facts) -> Result<(), String> {
    for source in SOURCES {
        let uses = slice(records, version(&facts.members[source]), source).ports;
        for gateway in GATEWAYS {
            let known = slice(records, version(&facts.members[gateway]), source).all();
            let unknown = uses.minus(&known);
            if !unknown.is_empty() {
                return Err(format!(
                    "{source} uses {unknown:?}, of which {gateway} doesn't know"
                ));
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Claim(usize),
    Unclaim(usize),
    Level(usize, PortLevel),
    CrashHub(u64),
    CrashMember(usize, u64),
    Partition(usize, u64),
    Reset(usize),
    Slow(usize, u64),
    Delay(u64),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let source = || 0..SOURCES.len();
    let member = || 0..GATEWAYS.len() + SOURCES.len();
    let level = prop_oneof![
        Just(PortLevel::Idle),
        Just(PortLevel::Normal),
        Just(PortLevel::High),
        Just(PortLevel::Full)
    ];
    let event = prop_oneof![
        4 => source().prop_map(Event::Claim),
        2 => source().prop_map(Event::Unclaim),
        4 => (source(), level).prop_map(|(s, l)| Event::Level(s, l)),
        1 => (0u64..5_000).prop_map(Event::CrashHub),
        2 => (member(), 0u64..2_000).prop_map(|(m, ms)| Event::CrashMember(m, ms)),
        3 => (member(), 0u64..20_000).prop_map(|(m, ms)| Event::Partition(m, ms)),
        1 => member().prop_map(Event::Reset),
        2 => (member(), 0u64..3_000).prop_map(|(m, ms)| Event::Slow(m, ms)),
        1 => (1u64..500).prop_map(Event::Delay),
        8 => (0u64..2_000).prop_map(Event::Wait),
    ];
    prop::collection::vec(event, 1..40)
}

struct Allotment {
    world: World,
    records: Records,
    claimants: BTreeSet<NodeRef>,
    levels: BTreeMap<&'static str, PortLevel>,
}

impl Allotment {
    fn new(seed: u64) -> Self {
        let names: Vec<_> = all().collect();
        let mut world = World::new(seed, &names);
        let records: Records = Arc::new(Mutex::new(vec![Slices::new()]));
        for name in all() {
            world.truth.facts().member(name);
        }
        let of = records.clone();
        world.truth.facts().rule = Some(Arc::new(move |facts| {
            known_everywhere(&of.lock().expect("no panic"), facts)
        }));
        world.start_hub(0, Duration::ZERO);
        let mut this = Self {
            world,
            records,
            claimants: BTreeSet::new(),
            levels: BTreeMap::new(),
        };
        this.publish();
        for name in all() {
            this.world.start_member(name);
        }
        this
    }

    fn publish(&mut self) {
        let newest = self.records.lock().expect("no panic").len() - 1;
        for name in all() {
            let peers = BTreeMap::from([(format!("v{newest}"), 1)]);
            self.world.publish(name, &plan(name, &peers), true);
        }
    }

    /// The hub looks, by what it was told. True where it allotted anew.
    fn step(&mut self) -> bool {
        let records = self.records.lock().expect("no panic").clone();
        let newest = records.len() - 1;
        let programmed: BTreeMap<_, _> = {
            let facts = self.world.truth.facts();
            let told = all().map(|name| {
                let member = &facts.members[name];
                let at = member
                    .published
                    .iter()
                    .position(|(digest, _)| Some(*digest) == member.programmed);
                (name, at)
            });
            told.collect()
        };
        let said = |source: &str, slice: Slice| slices::Facts {
            level: self.levels.get(source).copied().unwrap_or_default(),
            measured: slice.ports.count(),
            // Nobody keeps a connection longer than its ports.
            vacated: slice.draining,
            runs: programmed[source].map(|_| slice),
            settled: programmed[source] == Some(newest),
            ..slices::Facts::default()
        };
        let facts = SOURCES.map(|s| (node(s), said(s, slice(&records, programmed[s], s))));
        let known = SOURCES.iter().filter_map(|s| {
            let views = GATEWAYS.map(|g| programmed[g].map(|v| Known::of(&slice(&records, Some(v), s))));
            let views: Option<Vec<_>> = views.into_iter().collect();
            Some((node(s), views?.into_iter().reduce(|a, b| a.and(&b))?))
        });
        let outcome = allot(&Input {
            recorded: records[newest].clone(),
            claimants: self.claimants.clone(),
            facts: facts.into_iter().collect(),
            known: known.collect(),
            unwatched: false,
        });
        let anew = outcome.slices != records[newest];
        if anew {
            self.records.lock().expect("no panic").push(outcome.slices);
            self.publish();
        }
        anew
    }

    async fn wait(&mut self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        loop {
            self.step();
            if tokio::time::Instant::now() >= until {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn happen(&mut self, event: Event) {
        let ms = Duration::from_millis;
        let name = |m: usize| all().nth(m).unwrap_or_default();
        match event {
            Event::Claim(s) => drop(self.claimants.insert(node(SOURCES[s]))),
            Event::Unclaim(s) => drop(self.claimants.remove(&node(SOURCES[s]))),
            Event::Level(s, level) => drop(self.levels.insert(SOURCES[s], level)),
            Event::CrashHub(down) => {
                self.world.crash_hub();
                tokio::time::sleep(ms(down)).await;
                self.world.start_hub(0, Duration::ZERO);
            }
            Event::CrashMember(m, down) => {
                self.world.crash_member(name(m));
                self.wait(ms(down)).await;
                self.world.start_member(name(m));
            }
            Event::Partition(m, time) => {
                let (name, net) = (name(m), self.world.net.clone());
                net.set_open(name, HUB, false);
                net.set_open(HUB, name, false);
                tokio::spawn(async move {
                    tokio::time::sleep(ms(time)).await;
                    net.set_open(name, HUB, true);
                    net.set_open(HUB, name, true);
                });
            }
            Event::Reset(m) => self.world.net.reset(name(m), HUB),
            Event::Slow(m, time) => self.world.truth.facts().member(name(m)).slowness = ms(time),
            Event::Delay(slowest) => self.world.net.delay(ms(slowest)),
            Event::Wait(time) => self.wait(ms(time)).await,
        }
    }
}

async fn run(seed: u64, events: Vec<Event>) -> Result<(), String> {
    let mut allotment = Allotment::new(seed);
    for event in events {
        allotment.happen(event).await;
        allotment.world.verdict()?;
    }
    allotment.world.heal();
    for _ in 0..200 {
        allotment.wait(Duration::from_millis(500)).await;
        if allotment.world.behind().is_empty() && !allotment.step() {
            break;
        }
    }
    allotment.world.come_to_rest(Duration::from_secs(10)).await?;
    allotment.world.verdict()?;
    let records = allotment.records.lock().expect("no panic");
    let last = &records[records.len() - 1];
    for name in &allotment.claimants {
        if last.get(name).is_none_or(|s| s.ports == Ports::NONE) {
            return Err(format!("{name:?} got no ports: {last:?}"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn no_source_uses_a_port_before_every_gateway_knows_whose_it_is(seed in any::<u64>(), events in events()) {
        simulate(run(seed, events)).map_err(TestCaseError::fail)?;
    }
}

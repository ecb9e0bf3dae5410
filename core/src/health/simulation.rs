//! Several nodes over a network that loses, is cut in one direction, and whose nodes die, hang and come back, in small
//! steps of time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use spillway_crds::address::AddressPair;
use spillway_crds::member::{GatewayNode, GatewayNodeState, NodeRef, PlannedIdentity};

use super::*;
use crate::node::fixtures;
use crate::node::gateways::{Liveness, carriers, holder};
use crate::node::inputs::NodeInputs;

const STEP: Moment = Moment::from_millis(10);
/// From a change of mind to the kernel.
const APPLY: Moment = Moment::from_millis(40);
/// Frames that a live uplink brings whatever the tunnel does.
const BACKGROUND: Moment = Moment::from_millis(300);
/// Time from power to a running agent.
const BOOT: Moment = Moment::from_millis(1500);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    PowerOff,
    /// Back with an empty kernel.
    PowerOn,
    /// The agent stands still; its kernel goes on.
    Hang,
    Resume,
    CutReceive,
    CutSend,
    Mend,
    Drain,
    Undrain,
    /// The agent ends properly, leaving first, and comes back.
    Restart,
}

#[expect(clippy::struct_excessive_bools, reason = "each breaks by itself")]
struct Node {
    name: NodeRef,
    gateway: bool,
    powered: bool,
    hung: bool,
    receives: bool,
    sends: bool,
    draining: bool,
    /// The agent runs from then on.
    starts: Moment,
    /// When an agent that leaves ends, if it does.
    ends: Option<Moment>,
    tracker: Tracker,
    handover: Handover,
    confirmed: BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    asked: BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    /// What the kernel answers for.
    held: BTreeMap<IpAddr, String>,
    /// What it is about to be told, and when it has it.
    coming: Option<(Moment, BTreeMap<IpAddr, String>)>,
    inbox: Vec<(Moment, usize, Heard, Said)>,
    frames: Option<Moment>,
    moves: u32,
    /// What its last decision was made of, where nothing but time could change it.
    decided: Option<(Liveness, Vec<bool>)>,
}

struct World {
    now: Moment,
    timing: Timing,
    nodes: Vec<Node>,
    eips: Vec<IpAddr>,
    random: u64,
    /// Of a thousand datagrams.
    lost: u64,
}

impl World {
    fn new(gateways: usize, sources: usize, lost: u64, timing: Timing) -> Self {
        let name = |n: usize| {
            if n < gateways {
                fixtures::node_ref("b", &format!("b-{n}"))
            } else {
                fixtures::node_ref("a", &format!("a-{n}"))
            }
        };
        let all: Vec<NodeRef> = (0..gateways + sources).map(name).collect();
        let nodes = (0..gateways + sources)
            .map(|n| Node {
                name: all[n].clone(),
                gateway: n < gateways,
                powered: true,
                hung: false,
                receives: true,
                sends: true,
                draining: false,
                starts: Moment::from_millis(37) * u32::try_from(n).expect("few"),
                ends: None,
                tracker: Tracker::new(timing),
                handover: Handover::default(),
                confirmed: BTreeMap::new(),
                asked: BTreeMap::new(),
                held: BTreeMap::new(),
                coming: None,
                inbox: Vec::new(),
                frames: None,
                moves: 0,
                decided: None,
            })
            .collect();
        let mut world = Self {
            now: Moment::ZERO,
            timing,
            nodes,
            eips: (10..14).map(|n| IpAddr::from([203, 0, 113, n])).collect(),
            random: 0x9e37_79b9_7f4a_7c15,
            lost,
        };
        for n in 0..gateways + sources {
            world.boot(n);
        }
        world
    }

    fn role(&self, n: usize) -> Role {
        let me = self.nodes[n].name.clone();
        let others = self.nodes.iter().filter(|o| o.gateway && o.name != me);
        let watched: BTreeSet<NodeRef> = others.map(|o| o.name.clone()).collect();
        Role {
            colleagues: if self.nodes[n].gateway {
                watched.clone()
            } else {
                BTreeSet::new()
            },
            gateway: self.nodes[n].gateway,
            watched,
            me,
        }
    }

    /// A fresh agent.
    fn boot(&mut self, n: usize) {
        let role = self.role(n);
        let node = &mut self.nodes[n];
        node.tracker = Tracker::new(self.timing);
        node.tracker.assign(role);
        node.tracker.programmed(Some([1; 8]));
        node.handover = Handover::default();
        node.confirmed.clear();
        node.asked.clear();
        node.coming = None;
        node.decided = None;
        node.inbox.clear();
        node.frames = None;
        node.ends = None;
    }

    fn chance(&mut self) -> u64 {
        // xorshift64* (Vigna, 2016), so that equal runs are equal.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % 1000
    }

    fn runs(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.powered && !node.hung && self.now >= node.starts
    }

    /// Nothing is wrong with it.
    fn healthy(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        self.runs(n) && node.receives && node.sends && node.ends.is_none()
    }

    fn send(&mut self, from: usize, to: usize, heard: Heard, said: Said) {
        let lost = self.chance() < self.lost;
        let passes = self.nodes[from].sends && self.nodes[from].powered;
        if passes && !lost && self.nodes[to].powered && self.nodes[to].receives {
            let at = self.now + Moment::from_millis(1);
            self.nodes[to].inbox.push((at, from, heard, said));
        }
    }

    fn strike(&mut self, n: usize, fault: Fault) {
        let now = self.now;
        let node = &mut self.nodes[n];
        match fault {
            Fault::PowerOff => {
                node.powered = false;
                node.held.clear();
            }
            Fault::PowerOn if !node.powered => {
                node.powered = true;
                node.hung = false;
                node.starts = now + BOOT;
                self.boot(n);
            }
            Fault::Hang => node.hung = true,
            Fault::Resume => node.hung = false,
            Fault::CutReceive => node.receives = false,
            Fault::CutSend => node.sends = false,
            Fault::Mend => (node.receives, node.sends) = (true, true),
            Fault::Drain if node.gateway => node.draining = true,
            Fault::Undrain => node.draining = false,
            Fault::Restart if node.powered && !node.hung && node.ends.is_none() && now >= node.starts => {
                node.tracker.leave(true);
                node.tracker.hurry(now);
                node.ends = Some(now + Moment::from_secs(7));
            }
            Fault::PowerOn | Fault::Drain | Fault::Restart => {}
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        for n in 0..self.nodes.len() {
            let now = self.now;
            let powered = self.nodes[n].powered;
            let node = &mut self.nodes[n];
            if powered && let Some((_, held)) = node.coming.take_if(|(at, _)| *at <= now) {
                if held != node.held {
                    node.moves += 1;
                }
                node.held = held;
            }
            let brings = node.powered && node.receives;
            if brings && now.as_millis() % BACKGROUND.as_millis() < STEP.as_millis() {
                node.frames = Some(now);
            }
            if self.runs(n) {
                self.act(n);
            }
        }
    }

    fn act(&mut self, n: usize) {
        let now = self.now;
        let inbox = std::mem::take(&mut self.nodes[n].inbox);
        for (at, from, heard, said) in inbox {
            if at > now {
                self.nodes[n].inbox.push((at, from, heard, said));
                continue;
            }
            let peer = self.nodes[from].name.clone();
            self.nodes[n].frames = Some(now);
            self.nodes[n].tracker.heard(now, &peer, heard, said);
            if heard == Heard::Request {
                let said = self.nodes[n].tracker.say(&peer);
                self.send(n, from, Heard::Answer, said);
            } else {
                // The answer says as well which of the addresses asked for it has.
                let has: BTreeSet<IpAddr> = self.nodes[from].held.keys().copied().collect();
                let node = &mut self.nodes[n];
                let asked = node.asked.get(&peer).cloned().unwrap_or_default();
                node.confirmed
                    .insert(peer, asked.intersection(&has).copied().collect());
            }
        }
        let node = &mut self.nodes[n];
        node.tracker.uplink(Uplink {
            carrier: true,
            received: node.frames,
        });
        if now >= node.tracker.next(now) {
            for peer in node.tracker.poll(now) {
                let to = self.nodes.iter().position(|o| o.name == peer).expect("known");
                let said = self.nodes[n].tracker.say(&peer);
                self.send(n, to, Heard::Request, said);
            }
        }
        self.decide(n);
        let node = &mut self.nodes[n];
        if let Some(end) = node.ends {
            let gone = node.asked.is_empty() && node.held.is_empty() && node.coming.is_none();
            if now >= end || (gone && now + Moment::from_millis(6_400) >= end) {
                self.boot(n);
                self.nodes[n].starts = now + BOOT;
            }
        }
    }

    fn inputs(&self, n: usize) -> NodeInputs {
        let mut inputs = fixtures::gateway();
        inputs.node.clone_from(&self.nodes[n].name.node);
        let plan = inputs.plan.as_mut().expect("a plan");
        let gateway = &mut plan.gateways[0];
        gateway.translation = spillway_crds::hub::Translation::SourceNode;
        let nodes = self.nodes.iter().filter(|o| o.gateway);
        gateway.nodes = nodes
            .map(|o| GatewayNode {
                node: o.name.clone(),
                state: if o.draining {
                    GatewayNodeState::Draining
                } else {
                    GatewayNodeState::Ready
                },
            })
            .collect();
        gateway.identities = self
            .eips
            .iter()
            .map(|eip| PlannedIdentity {
                egress_ip: AddressPair {
                    ipv4: Some(eip.to_string()),
                    ipv6: None,
                },
                ..PlannedIdentity::default()
            })
            .collect();
        inputs.liveness = self.nodes[n].tracker.liveness();
        inputs
    }

    fn decide(&mut self, n: usize) {
        if !self.nodes[n].gateway {
            return;
        }
        let now = self.now;
        let seen = (
            self.nodes[n].tracker.liveness(),
            self.nodes.iter().map(|o| o.draining).collect(),
        );
        if self.nodes[n].decided.as_ref() == Some(&seen) && self.nodes[n].coming.is_none() {
            return;
        }
        let inputs = self.inputs(n);
        let node = &mut self.nodes[n];
        let kept = node.handover.step(now, &node.held, &inputs, &node.confirmed);
        node.asked = kept.successors;
        node.confirmed.retain(|peer, _| node.asked.contains_key(peer));
        let gateway = &inputs.plan.as_ref().expect("a plan").gateways[0];
        let live = carriers(gateway, &inputs.liveness);
        let wanted: BTreeMap<IpAddr, String> = self
            .eips
            .iter()
            .filter(|a| holder(gateway, &live, **a) == Some(&node.name) || kept.addresses.contains(a))
            .map(|a| (*a, gateway.gateway.clone()))
            .collect();
        node.decided = kept.addresses.is_empty().then_some(seen);
        let known = node.coming.as_ref().map_or(&node.held, |(_, held)| held);
        if *known != wanted {
            node.coming = Some((now + APPLY, wanted));
        }
    }

    fn run(&mut self, time: Moment) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Nodes that answer for `address` and work.
    fn claims(&self, address: IpAddr) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|n| self.healthy(*n) && self.nodes[*n].held.contains_key(&address))
            .collect()
    }

    /// A fingerprint of everything that anybody can see.
    fn trace(&self) -> String {
        let of = |n: &Node| format!("{:?} {:?} {}", n.held, n.tracker.liveness(), n.moves);
        self.nodes.iter().map(of).collect()
    }
}

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
        let broken = gateways.iter().filter(|n| {
            let node = &world.nodes[**n];
            world.runs(**n) && !(node.receives && node.sends)
        });
        for n in broken {
            prop_assert!(
                !world.nodes[*n].held.contains_key(address),
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
        PowerOff, PowerOn, PowerOn, Hang, Resume, Resume, CutReceive, CutSend, Mend, Mend, Drain, Undrain,
        Restart,
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
        events in proptest::collection::vec((0..6_usize, fault(), 50..4_000_u64), 1..12),
    ) {
        let mut world = World::new(gateways, sources, lost, timing());
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
                    if !able || !world.claims(address).is_empty() {
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
        // Loss alone may make a node look dead at any moment: quiet means that it stops as well.
        world.lost = 0;
        world.run(Moment::from_secs(40));
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
    fn flapping_is_damped(down in 400..3_000_u64, up in 700..3_000_u64) {
        let mut world = World::new(2, 1, 0, Timing::default());
        world.run(Moment::from_secs(3));
        let flap = |world: &mut World, time: Moment| {
            let end = world.now + time;
            let before: u32 = world.nodes.iter().map(|n| n.moves).sum();
            while world.now < end {
                world.strike(0, Fault::CutReceive);
                world.strike(0, Fault::CutSend);
                world.run(Moment::from_millis(down));
                world.strike(0, Fault::Mend);
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

/// Seconds without a working holder of `address` while `time` passes.
fn gap(world: &mut World, time: Moment) -> Moment {
    let end = world.now + time;
    let mut gap = Moment::ZERO;
    while world.now < end {
        world.step();
        if world.eips.iter().any(|a| {
            !world
                .nodes
                .iter()
                .any(|n| n.powered && n.receives && n.sends && n.held.contains_key(a))
        }) {
            gap += STEP;
        }
    }
    gap
}

#[test]
fn a_node_that_dies_is_replaced_within_half_a_second() {
    for fault in [Fault::PowerOff, Fault::CutReceive, Fault::CutSend] {
        let mut world = World::new(3, 2, 0, Timing::default());
        world.run(Moment::from_secs(3));
        world.strike(0, fault);
        let gap = gap(&mut world, Moment::from_secs(10));
        assert!(gap <= Moment::from_millis(450), "{fault:?}: {gap:?}");
    }
}

#[test]
fn what_is_planned_loses_nothing() {
    for fault in [Fault::Drain, Fault::Restart] {
        let mut world = World::new(2, 1, 0, Timing::default());
        world.run(Moment::from_secs(3));
        for node in [0, 1] {
            world.strike(node, fault);
            assert_eq!(
                gap(&mut world, Moment::from_secs(15)),
                Moment::ZERO,
                "{fault:?} of {node}"
            );
            world.strike(node, Fault::Undrain);
            assert_eq!(
                gap(&mut world, Moment::from_secs(15)),
                Moment::ZERO,
                "return of {node}"
            );
        }
    }
}

#[test]
fn the_last_one_of_a_pair_holds_all_at_once_and_the_last_of_many_later() {
    let mut world = World::new(2, 0, 0, Timing::default());
    world.run(Moment::from_secs(3));
    world.strike(0, Fault::PowerOff);
    world.run(Moment::from_secs(1));
    assert_eq!(world.nodes[1].held.len(), 4, "{}", world.trace());

    let mut world = World::new(3, 1, 0, Timing::default());
    world.run(Moment::from_secs(3));
    for n in [0, 1, 3] {
        world.strike(n, Fault::PowerOff);
    }
    world.run(Moment::from_secs(2));
    assert_eq!(world.nodes[2].held.len(), 0, "deaf or alone? {}", world.trace());
    world.run(Moment::from_secs(10));
    assert_eq!(world.nodes[2].held.len(), 4, "{}", world.trace());
}

#[test]
fn a_node_alone_in_its_gateway_is_never_held_down() {
    let mut world = World::new(1, 2, 0, Timing::default());
    world.run(Moment::from_secs(3));
    assert_eq!(world.nodes[0].held.len(), 4);
    for _ in 0..5 {
        world.strike(0, Fault::CutReceive);
        world.run(Moment::from_secs(1));
        world.strike(0, Fault::Mend);
        world.run(Moment::from_secs(1));
        assert_eq!(world.nodes[0].held.len(), 4, "{}", world.trace());
        for source in [1, 2] {
            let inputs = world.inputs(source);
            let gateway = &inputs.plan.as_ref().expect("a plan").gateways[0];
            assert_eq!(carriers(gateway, &inputs.liveness).len(), 1, "{}", world.trace());
        }
    }
}

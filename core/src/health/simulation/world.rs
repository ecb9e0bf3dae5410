//! The world: nodes with their agents and kernels, the network between them, and the router outside.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use spillway_crds::address::AddressPair;
use spillway_crds::hub::{AddressPin, Translation};
use spillway_crds::member::{GatewayNode, GatewayNodeState, NodeRef, PeerNode, PlannedIdentity};

use super::super::*;
use crate::node::fixtures;
use crate::node::gateways::{Liveness, carriers, holder};
use crate::node::inputs::NodeInputs;

pub(super) const STEP: Moment = Moment::from_millis(10);
/// From a change of mind to the kernel.
const APPLY: Moment = Moment::from_millis(40);
/// Frames that a live uplink brings whatever the tunnel does.
const BACKGROUND: Moment = Moment::from_millis(300);
/// From an announcement to its last repetition.
const REPEAT: Moment = Moment::from_secs(2);
/// How long a router believes in a node that is silent: 45 s until it doubts, and 8 s from then on.
pub(super) const STALE: Moment = Moment::from_secs(53);
/// Time from power to a running agent.
const BOOT: Moment = Moment::from_millis(1500);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    PowerOff,
    /// Back with an empty kernel.
    PowerOn,
    /// The agent stands still; its kernel goes on.
    Hang,
    Resume,
    CutReceive,
    CutSend,
    /// Nothing passes, and the node sees that its cable is out.
    Unplug,
    Mend,
    Drain,
    Undrain,
    /// It is taken out of the gateway.
    Expel,
    Admit,
    /// All egress IPs are pinned to it, whatever state it is in and whether or not it is the gateway's.
    Pin,
    /// None are any more.
    Unpin,
    /// The agent ends properly, leaving first, and comes back.
    Restart,
}

/// What a plan says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Places {
    /// The gateway's nodes by number, and whether each is to be drained.
    nodes: BTreeMap<usize, bool>,
    /// Who is to answer for every egress IP, the gateway's node or not.
    pinned: Option<usize>,
}

/// What a node's kernel does for gateways.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Kernel {
    /// Egress IPs that it answers for.
    pub(super) held: BTreeMap<IpAddr, String>,
    /// It knows the gateway's grants and ports.
    forwards: bool,
    /// Next hops of its pods.
    hops: BTreeSet<NodeRef>,
}

#[expect(clippy::struct_excessive_bools, reason = "each breaks by itself")]
pub(super) struct Node {
    pub(super) name: NodeRef,
    /// It may be the gateway's. All others are pods' nodes.
    pub(super) gateway: bool,
    powered: bool,
    hung: bool,
    pub(super) receives: bool,
    pub(super) sends: bool,
    carrier: bool,
    /// The plan that it has, and those on their way to it.
    places: Places,
    plans: Vec<(Moment, Places)>,
    /// The agent runs from then on.
    starts: Moment,
    /// When an agent that leaves ends, if it does.
    ends: Option<Moment>,
    tracker: Tracker,
    /// It neither asks nor answers.
    idle: bool,
    handover: Handover,
    leaving: Leaving,
    /// What was compiled last.
    inputs: NodeInputs,
    /// When time alone is a reason to compile.
    wake: Option<Moment>,
    /// What to announce, and what to repeat later.
    again: BTreeSet<IpAddr>,
    repeats: Vec<(Moment, IpAddr)>,
    confirmed: BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    asked: BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    pub(super) kernel: Kernel,
    /// What it is about to be told, out of which inputs, and when it has it.
    coming: Option<(Moment, Kernel, NodeInputs)>,
    inbox: Vec<(Moment, usize, Heard, Said)>,
    frames: Option<Moment>,
    pub(super) moves: u32,
    /// What its last decision was made of, where nothing but time could change it.
    decided: Option<(Liveness, Places)>,
}

pub(super) struct World {
    pub(super) now: Moment,
    timing: Timing,
    pub(super) nodes: Vec<Node>,
    pub(super) eips: Vec<IpAddr>,
    random: u64,
    /// Of a thousand datagrams.
    pub(super) lost: u64,
    /// Longest time that a plan takes to a node, in milliseconds.
    pub(super) delay: u64,
    /// The hub's plan.
    places: Places,
    /// Where the router outside sends replies to.
    believed: BTreeMap<IpAddr, usize>,
    /// When it last heard from whom it believes in.
    confirmed: BTreeMap<IpAddr, Moment>,
}

impl World {
    pub(super) fn new(gateways: usize, sources: usize, lost: u64, timing: Timing) -> Self {
        let name = |n: usize| {
            if n < gateways {
                fixtures::node_ref("b", &format!("b-{n}"))
            } else {
                fixtures::node_ref("a", &format!("a-{n}"))
            }
        };
        let all: Vec<NodeRef> = (0..gateways + sources).map(name).collect();
        let places = Places {
            nodes: (0..gateways).map(|n| (n, false)).collect(),
            pinned: None,
        };
        let nodes = (0..gateways + sources)
            .map(|n| Node {
                name: all[n].clone(),
                gateway: n < gateways,
                powered: true,
                hung: false,
                receives: true,
                sends: true,
                carrier: true,
                places: places.clone(),
                plans: Vec::new(),
                starts: Moment::from_millis(37) * u32::try_from(n).expect("few"),
                ends: None,
                tracker: Tracker::new(timing),
                idle: true,
                handover: Handover::default(),
                leaving: Leaving::default(),
                inputs: NodeInputs::default(),
                wake: None,
                again: BTreeSet::new(),
                repeats: Vec::new(),
                confirmed: BTreeMap::new(),
                asked: BTreeMap::new(),
                kernel: Kernel::default(),
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
            delay: 0,
            places,
            believed: BTreeMap::new(),
            confirmed: BTreeMap::new(),
        };
        for n in 0..gateways + sources {
            world.boot(n);
        }
        world
    }

    /// A fresh agent, with the newest plan.
    fn boot(&mut self, n: usize) {
        self.nodes[n].plans.clear();
        self.nodes[n].places.clone_from(&self.places);
        let inputs = self.inputs(n);
        let node = &mut self.nodes[n];
        node.tracker = Tracker::new(self.timing);
        let assignment = Assignment::of(&inputs);
        node.idle = assignment.idle();
        node.tracker.assign(assignment.role);
        node.tracker.programmed(Some([1; 8]));
        node.handover = Handover::default();
        node.leaving = Leaving::default();
        node.inputs = inputs;
        node.wake = None;
        node.again.clear();
        node.repeats.clear();
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
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    fn runs(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.powered && !node.hung && self.now >= node.starts
    }

    /// Nothing is wrong with it, and the plan wants it.
    pub(super) fn healthy(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let wanted = !node.gateway || self.places.nodes.contains_key(&n);
        self.runs(n) && node.receives && node.sends && node.ends.is_none() && wanted
    }

    /// Its agent runs, and one direction of its cable doesn't.
    pub(super) fn half_open(&self, n: usize) -> bool {
        self.runs(n) && !(self.nodes[n].receives && self.nodes[n].sends)
    }

    /// Some node is to be drained.
    pub(super) fn drains(&self) -> bool {
        self.places.nodes.values().any(|draining| *draining)
    }

    /// What reaches it is passed on, whatever its agent does.
    fn forwards(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.powered && node.receives && node.sends && node.kernel.forwards
    }

    /// Packets of every pod find a way out by any next hop of theirs, and replies to every egress IP a way back.
    pub(super) fn connected(&self) -> bool {
        let place = |name: &NodeRef| self.nodes.iter().position(|n| n.name == *name);
        let out = |n: &Node| {
            let mut hops = n.kernel.hops.iter().filter_map(place);
            !n.kernel.hops.is_empty() && hops.all(|hop| self.forwards(hop))
        };
        let sources = self.nodes.iter();
        let sources = sources.filter(|n| !n.gateway && n.powered && n.receives && n.sends && !n.hung);
        let back = |address| self.believed.get(address).is_some_and(|n| self.forwards(*n));
        { sources }.all(out) && self.eips.iter().all(back)
    }

    fn send(&mut self, from: usize, to: usize, heard: Heard, said: Said) {
        let lost = self.chance() % 1000 < self.lost;
        let passes = self.nodes[from].sends && self.nodes[from].powered;
        if passes && !lost && self.nodes[to].powered && self.nodes[to].receives {
            let at = self.now + Moment::from_millis(1);
            self.nodes[to].inbox.push((at, from, heard, said));
        }
    }

    /// The hub's plan changes, and reaches each node in its own time.
    fn plan(&mut self, n: usize, place: Option<bool>) {
        match place {
            Some(draining) => self.places.nodes.insert(n, draining),
            None => self.places.nodes.remove(&n),
        };
        self.publish();
    }

    fn pin(&mut self, to: Option<usize>) {
        self.places.pinned = to;
        self.publish();
    }

    fn publish(&mut self) {
        for n in 0..self.nodes.len() {
            let takes = Moment::from_millis(self.chance() % (self.delay + 1));
            let after = self.nodes[n].plans.last().map_or(Moment::ZERO, |(at, _)| *at);
            let at = after.max(self.now + takes);
            self.nodes[n].plans.push((at, self.places.clone()));
        }
    }

    pub(super) fn strike(&mut self, n: usize, fault: Fault) {
        let now = self.now;
        let planned = self.places.nodes.get(&n).copied();
        let gateway = self.nodes[n].gateway;
        let node = &mut self.nodes[n];
        match fault {
            Fault::PowerOff => {
                node.powered = false;
                node.kernel = Kernel::default();
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
            Fault::Unplug => (node.receives, node.sends, node.carrier) = (false, false, false),
            Fault::Mend => (node.receives, node.sends, node.carrier) = (true, true, true),
            Fault::Drain if planned == Some(false) => self.plan(n, Some(true)),
            Fault::Undrain if planned == Some(true) => self.plan(n, Some(false)),
            Fault::Expel if planned.is_some() => self.plan(n, None),
            Fault::Pin => self.pin(Some(n)),
            Fault::Unpin => self.pin(None),
            Fault::Admit if gateway && planned.is_none() => self.plan(n, Some(false)),
            Fault::Restart if node.powered && !node.hung && node.ends.is_none() && now >= node.starts => {
                node.tracker.leave(true);
                node.tracker.hurry(now);
                node.ends = Some(now + Moment::from_secs(7));
            }
            Fault::PowerOn | Fault::Drain | Fault::Undrain | Fault::Expel | Fault::Admit | Fault::Restart => {
            }
        }
    }

    pub(super) fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        for n in 0..self.nodes.len() {
            let node = &mut self.nodes[n];
            while node.plans.first().is_some_and(|(at, _)| *at <= now) {
                node.places = node.plans.remove(0).1;
            }
            if node.powered
                && let Some((_, kernel, inputs)) = node.coming.take_if(|(at, _, _)| *at <= now)
            {
                self.written(n, kernel, &inputs);
            }
            let node = &mut self.nodes[n];
            let brings = node.powered && node.receives;
            if brings && now.as_millis() % BACKGROUND.as_millis() < STEP.as_millis() {
                node.frames = Some(now);
            }
            if self.runs(n) {
                self.act(n);
            }
            self.announce(n);
        }
        self.doubt();
    }

    /// The kernel has it: now the prober is told.
    fn written(&mut self, n: usize, kernel: Kernel, inputs: &NodeInputs) {
        let now = self.now;
        let node = &mut self.nodes[n];
        if kernel.held != node.kernel.held {
            node.moves += 1;
        }
        let taken: Vec<IpAddr> = kernel.held.keys().copied().collect();
        let before = std::mem::replace(&mut node.kernel, kernel);
        let drained = node.places.nodes.get(&n) == Some(&true);
        let assignment = Assignment::of(inputs);
        node.idle = assignment.idle();
        node.tracker.assign(assignment.role);
        if node.ends.is_none() {
            node.tracker.leave(drained);
        }
        node.tracker.hurry(now);
        node.again
            .extend(taken.into_iter().filter(|a| !before.held.contains_key(a)));
    }

    /// The router takes the last announcement that it hears.
    fn announce(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        if node.coming.is_some() {
            return;
        }
        let again: Vec<IpAddr> = std::mem::take(&mut node.again).into_iter().collect();
        let repeats = again.iter().map(|address| (now + REPEAT, *address));
        node.repeats.extend(repeats);
        let due = node.repeats.extract_if(.., |(at, _)| *at <= now);
        let due: Vec<IpAddr> = due.map(|(_, address)| address).collect();
        for address in again.into_iter().chain(due) {
            if node.powered && node.sends && node.kernel.held.contains_key(&address) {
                self.believed.insert(address, n);
            }
        }
    }

    /// Where several answer for an address, the router may hear any of them last, at any time. It asks anew only when
    /// the one that it believes in has been silent for as long as Linux takes to find out.
    fn doubt(&mut self) {
        for address in self.eips.clone() {
            let answers = |n: &usize| {
                let node = &self.nodes[*n];
                node.powered && node.sends && node.receives && node.kernel.held.contains_key(&address)
            };
            let all: Vec<usize> = (0..self.nodes.len()).filter(answers).collect();
            let now = self.now;
            let believed = self.believed.get(&address);
            if believed.is_some_and(|n| all.contains(n)) {
                self.confirmed.insert(address, now);
            }
            let since = self.confirmed.get(&address).copied().unwrap_or_default();
            if (all.len() > 1 || (all.len() == 1 && now >= since + STALE))
                && let Ok(any) = usize::try_from(self.chance())
            {
                self.believed.insert(address, all[any % all.len()]);
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
            self.nodes[n].frames = Some(now);
            if self.nodes[n].idle {
                continue;
            }
            let peer = self.nodes[from].name.clone();
            self.nodes[n].tracker.heard(now, &peer, heard, said);
            if heard == Heard::Request {
                let said = self.nodes[n].tracker.say(&peer);
                self.send(n, from, Heard::Answer, said);
            } else {
                // The answer says as well which of the addresses asked for it has.
                let has: BTreeSet<IpAddr> = self.nodes[from].kernel.held.keys().copied().collect();
                let node = &mut self.nodes[n];
                let asked = node.asked.get(&peer).cloned().unwrap_or_default();
                node.confirmed
                    .insert(peer, asked.intersection(&has).copied().collect());
            }
        }
        let node = &mut self.nodes[n];
        node.tracker.uplink(Uplink {
            carrier: node.carrier,
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
            let gone = node.asked.is_empty() && node.kernel.held.is_empty() && node.coming.is_none();
            if now >= end || (gone && now + Moment::from_millis(6_400) >= end) {
                self.boot(n);
                self.nodes[n].starts = now + BOOT;
            }
        }
    }

    /// What node `n` compiles, but for what depends on time.
    pub(super) fn inputs(&self, n: usize) -> NodeInputs {
        let node = &self.nodes[n];
        let mut inputs = if node.gateway {
            fixtures::gateway()
        } else {
            fixtures::source()
        };
        inputs.node.clone_from(&node.name.node);
        let spec = |n: usize| fixtures::node_of(u8::try_from(n + 1).expect("few"));
        let others = |gateways: bool| {
            let all = self.nodes.iter().enumerate();
            all.filter(move |(_, o)| o.gateway == gateways)
        };
        inputs.nodes = others(node.gateway)
            .map(|(n, o)| (o.name.node.clone(), spec(n)))
            .collect();
        let plan = inputs.plan.as_mut().expect("a plan");
        plan.peers[0].nodes = others(!node.gateway)
            .map(|(n, o)| PeerNode {
                name: o.name.node.clone(),
                overlay: spec(n).overlay,
                underlay: spec(n).underlay,
                ..PeerNode::default()
            })
            .collect();
        let gateway = &mut plan.gateways[0];
        gateway.translation = Translation::SourceNode;
        gateway.pins = match node.places.pinned {
            None => Vec::new(),
            Some(to) => self
                .eips
                .iter()
                .map(|eip| AddressPin {
                    address: eip.to_string(),
                    node: self.nodes[to].name.clone(),
                })
                .collect(),
        };
        gateway.nodes = node
            .places
            .nodes
            .iter()
            .map(|(n, draining)| GatewayNode {
                node: self.nodes[*n].name.clone(),
                state: if *draining {
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
        inputs.liveness = node.tracker.liveness();
        inputs
    }

    fn decide(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        // One thing at a time: whoever waits for the kernel decides nothing.
        if node.coming.is_some() {
            return;
        }
        if node.wake.take_if(|at| now >= *at).is_some() {
            node.decided = None;
        }
        let seen = (node.tracker.liveness(), node.places.clone());
        if node.decided.as_ref() == Some(&seen) {
            return;
        }
        let mut inputs = self.inputs(n);
        let node = &mut self.nodes[n];
        let me = node.name.clone();
        let belongs = node.places.nodes.contains_key(&n);
        // As the agent's `Failover::prepare` has it.
        let liveness = &mut inputs.liveness;
        let judged = [&liveness.alive, &liveness.dead, &liveness.retiring];
        if belongs && !judged.iter().any(|set| set.contains(&me)) {
            liveness.retiring.insert(me.clone());
        }
        let left = node.leaving.step(now, &node.inputs, &mut inputs);
        let kept = node
            .handover
            .step(now, &node.kernel.held, &inputs, &node.confirmed);
        node.wake = left.into_iter().chain(kept.until).min();
        node.again
            .extend(announce::again(&node.inputs, &inputs, &node.kernel.held));
        if node.asked != kept.successors {
            node.tracker.hurry(now);
        }
        node.asked = kept.successors;
        node.confirmed.retain(|peer, _| node.asked.contains_key(peer));
        let gateway = &inputs.plan.as_ref().expect("a plan").gateways[0];
        let live = carriers(gateway, &inputs.liveness);
        let holds = |a: &IpAddr| belongs && holder(gateway, &live, *a) == Some(&me);
        let forwards = belongs || !inputs.leaving.is_empty();
        let wanted = Kernel {
            held: self
                .eips
                .iter()
                .filter(|a| holds(a) || kept.addresses.contains(a))
                .map(|a| (*a, gateway.gateway.clone()))
                .collect(),
            forwards,
            hops: if node.gateway {
                BTreeSet::new()
            } else {
                live.into_iter().cloned().collect()
            },
        };
        node.decided = kept.addresses.is_empty().then_some(seen);
        if node.kernel != wanted || Assignment::of(&node.inputs) != Assignment::of(&inputs) {
            node.coming = Some((now + APPLY, wanted, inputs.clone()));
        }
        node.inputs = inputs;
    }

    pub(super) fn run(&mut self, time: Moment) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Nodes that answer for `address` and work.
    pub(super) fn claims(&self, address: IpAddr) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|n| self.healthy(*n) && self.nodes[*n].kernel.held.contains_key(&address))
            .collect()
    }

    /// Somebody answers for `address` and passes on what comes: also a node whose agent is about to end, which keeps what
    /// nobody takes, as where the only other one is drained.
    pub(super) fn answered(&self, address: IpAddr) -> bool {
        (0..self.nodes.len()).any(|n| self.forwards(n) && self.nodes[n].kernel.held.contains_key(&address))
    }

    /// A fingerprint of everything that anybody can see.
    pub(super) fn trace(&self) -> String {
        let of = |n: &Node| format!("{:?} {:?} {}\n", n.kernel, n.tracker.liveness(), n.moves);
        self.nodes.iter().map(of).collect()
    }
}

//! Hub and member of one stream, without a network between them: whatever happens on the way, once it
//! has stopped happening the member holds the hub's newest plan, and never anything that is no plan.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use spillway_core::plan::{Digest, Plan, Resource};
use spillway_crds::member::{PeerNode, PlannedPeerSpec};

use super::PublishedPlan;
use super::outbox::{Due, Outbox};
use crate::frames::{Hub, Staging, Step};
use crate::member::Held;
use crate::proto::PlanFrame;

const RETRY: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
enum Event {
    Publish(Plan),
    /// The next piece arrives.
    Deliver,
    /// It arrives twice.
    Repeat,
    /// It arrives damaged.
    Damage,
    /// An answer arrives.
    Answer,
    /// An old answer arrives again.
    StaleAnswer(usize),
    /// The connection breaks; the other side doesn't learn what was under way.
    Reconnect,
    /// The member's storage fails at the next update.
    Fail,
    /// Somebody deletes one of the member's objects.
    Lose,
    Wait,
}

#[derive(Clone, Debug)]
enum Answer {
    Ack(u64, Digest),
    Nack(u64),
    Resync(u64),
}

fn plans() -> impl Strategy<Value = Plan> {
    let peer = |(member, nodes): (String, usize)| {
        Resource::Peer(PlannedPeerSpec {
            member,
            partition: "default".into(),
            encrypted: false,
            nodes: (0..nodes).map(|_| PeerNode::default()).collect(),
        })
    };
    // Few, so that the same one comes again.
    prop::collection::btree_map("[a-c]", 0usize..2, 0..3)
        .prop_map(move |m| Plan::new(m.into_iter().map(peer)))
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(
        prop_oneof![
            3 => plans().prop_map(Event::Publish),
            8 => Just(Event::Deliver),
            1 => Just(Event::Repeat),
            1 => Just(Event::Damage),
            5 => Just(Event::Answer),
            2 => (0usize..32).prop_map(Event::StaleAnswer),
            1 => Just(Event::Reconnect),
            1 => Just(Event::Fail),
            1 => Just(Event::Lose),
            2 => Just(Event::Wait),
        ],
        0..60,
    )
}

struct World {
    now: Instant,
    newest: Arc<PublishedPlan>,
    published: Vec<Digest>,
    outbox: Outbox,
    wire: VecDeque<PlanFrame>,
    answers: VecDeque<Answer>,
    old_answers: Vec<Answer>,
    staging: Staging,
    held: Held,
    tampered: bool,
    fails: bool,
    piece: usize,
}

impl World {
    fn new(piece: usize) -> Self {
        let mut world = Self {
            now: Instant::now(),
            newest: published(Plan::default()),
            published: Vec::new(),
            outbox: Outbox::new(None, RETRY, piece),
            wire: VecDeque::new(),
            answers: VecDeque::new(),
            old_answers: Vec::new(),
            staging: Staging::default(),
            held: Held::default(),
            tampered: false,
            fails: false,
            piece,
        };
        world.publish(Plan::default());
        world
    }

    fn publish(&mut self, plan: Plan) {
        self.published.push(plan.digest());
        self.newest = published(plan);
    }

    fn reconnect(&mut self) {
        let known = self.held.digest().map(|_| self.held.digests.clone());
        self.outbox = Outbox::new(known, RETRY, self.piece);
        self.staging = Staging::default();
        self.wire.clear();
        self.answers.clear();
        self.old_answers.clear();
    }

    /// The hub does what is due.
    fn hub(&mut self) {
        match self.outbox.due(Some(&self.newest), self.now) {
            Due::Nothing => {}
            Due::Send(frames) => self.wire.extend(frames),
            Due::Unsendable(refusal) => panic!("{refusal:?}"),
        }
    }

    fn deliver(&mut self, frame: PlanFrame) {
        let hub = Hub {
            id: "h".into(),
            epoch: 1,
            member: "m".into(),
        };
        match self.staging.accept(frame, &self.held, &hub) {
            Step::Wait | Step::Ignored => {}
            Step::Resync { nonce, .. } => self.answers.push_back(Answer::Resync(nonce)),
            Step::Refused { nonce, .. } => self.answers.push_back(Answer::Nack(nonce)),
            Step::Ready { nonce, .. } if std::mem::take(&mut self.fails) => {
                self.answers.push_back(Answer::Nack(nonce));
            }
            Step::Ready { nonce, update } => {
                if update.full {
                    self.held.digests.clear();
                    self.tampered = false;
                }
                self.held.digests.retain(|k, _| !update.removes.contains(k));
                let upserts = update.upserts.into_iter().map(|(k, (_, digest))| (k, digest));
                self.held.digests.extend(upserts);
                self.held.hub_id = update.hub_id;
                self.held.epoch = update.epoch;
                assert_eq!(
                    self.held.digest(),
                    Some(update.target),
                    "what was applied is what was meant"
                );
                self.answers.push_back(Answer::Ack(nonce, update.target));
            }
        }
    }

    fn answer(&mut self, answer: &Answer) {
        match *answer {
            Answer::Ack(nonce, digest) => drop(self.outbox.acknowledge(nonce, Some(digest))),
            Answer::Nack(nonce) => drop(self.outbox.refuse(nonce, self.now)),
            Answer::Resync(nonce) => drop(self.outbox.resync(nonce, self.now)),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Publish(plan) => self.publish(plan),
            Event::Deliver => {
                if let Some(frame) = self.wire.pop_front() {
                    self.deliver(frame);
                }
            }
            Event::Repeat => {
                if let Some(frame) = self.wire.pop_front() {
                    self.deliver(frame.clone());
                    self.deliver(frame);
                }
            }
            Event::Damage => {
                if let Some(mut frame) = self.wire.pop_front() {
                    match frame.upserts.first_mut() {
                        Some(upsert) => upsert.content.push(b' '),
                        None => frame.target_digest[0] ^= 1,
                    }
                    self.deliver(frame);
                }
            }
            Event::Answer => {
                if let Some(answer) = self.answers.pop_front() {
                    self.answer(&answer);
                    self.old_answers.push(answer);
                }
            }
            Event::StaleAnswer(i) => {
                if !self.old_answers.is_empty() {
                    let answer = self.old_answers[i % self.old_answers.len()].clone();
                    self.answer(&answer);
                }
            }
            Event::Reconnect => self.reconnect(),
            Event::Fail => self.fails = true,
            Event::Lose => {
                self.tampered |= self.held.digests.pop_first().is_some();
            }
            Event::Wait => self.now += RETRY,
        }
        self.hub();
    }
}

fn published(plan: Plan) -> Arc<PublishedPlan> {
    Arc::new(PublishedPlan {
        plan: Arc::new(plan),
        removal_intended: true,
    })
}

proptest! {
    #[test]
    fn after_quiescence_both_hold_the_newest_plan(events in events(), piece in 1usize..400) {
        let mut world = World::new(piece);
        world.hub();
        for event in events {
            world.happen(event);
            let held = world.held.digest();
            let is_a_plan = held.is_none_or(|d| world.published.contains(&d));
            prop_assert!(is_a_plan || world.tampered, "{:?} was never a plan", held);
            let believed = world.outbox.holds_newest();
            prop_assert!(
                believed.is_none() || believed == held || world.tampered,
                "the hub believes in {:?}, the member holds {:?}", believed, held
            );
        }
        // Nothing goes wrong any more. Where objects were lost behind the protocol's back, the agent
        // reconnects or asks; both make it tell what it holds.
        world.fails = false;
        if world.tampered {
            world.reconnect();
            world.hub();
        }
        for _ in 0..400 {
            world.happen(Event::Deliver);
            world.happen(Event::Answer);
            if world.wire.is_empty() {
                world.happen(Event::Wait);
            }
        }
        prop_assert_eq!(world.held.digest(), Some(world.newest.plan.digest()));
        prop_assert_eq!(world.outbox.holds_newest(), world.held.digest(), "and the hub knows");
    }
}

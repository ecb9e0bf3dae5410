//! All of it together.

use std::collections::{BTreeMap, BTreeSet};

use spillway_crds::member::NodeRef;

use super::message::Said;
use super::own::{Condition, Own, Seen, Uplink};
use super::peer::{Heard, Peer, State, Turn};
use super::role::Role;
use super::{Moment, Timing};
use crate::node::gateways::Liveness;

/// How long one that probed this node is expected to do so again.
const REQUESTERS: Moment = Moment::from_secs(60);

/// Most probing nodes that are remembered; more of them prove nothing more.
const MOST_REQUESTERS: usize = 64;

/// Something that changed, for logs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The node that it is about.
    pub node: NodeRef,
    /// What is less than before: it died, retires, is held down.
    pub worse: bool,
    /// In words, without the node's name.
    pub what: String,
}

/// What one node knows of the others and of itself.
#[derive(Clone, Debug)]
pub struct Tracker {
    timing: Timing,
    role: Role,
    peers: BTreeMap<NodeRef, Peer>,
    own: Own,
    uplink: Uplink,
    /// Digest of the programmed plan, abbreviated; absent until one was programmed.
    programmed: Option<[u8; 8]>,
    /// This node wants to be left.
    leaving: bool,
    yielding: bool,
    requesters: BTreeMap<NodeRef, Moment>,
    last_round: Moment,
    next_round: Moment,
    /// When anybody last said that it gets answers from this node.
    last_answered: Moment,
    /// Others were heard for a while, and none of them got answers.
    unheard: bool,
    heard_anew: u32,
    changes: Vec<Change>,
    /// What was known when this node last heard somebody.
    current: Liveness,
}

impl Tracker {
    /// One that knows nobody.
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            role: Role::default(),
            peers: BTreeMap::new(),
            own: Own::default(),
            uplink: Uplink::default(),
            programmed: None,
            leaving: false,
            yielding: false,
            requesters: BTreeMap::new(),
            last_round: Moment::ZERO,
            next_round: Moment::ZERO,
            last_answered: Moment::ZERO,
            unheard: false,
            heard_anew: 0,
            changes: Vec::new(),
            current: Liveness::default(),
        }
    }

    /// Sets whom to probe; what is known of those that stay is kept.
    pub fn assign(&mut self, role: Role) {
        self.peers.retain(|node, _| role.watched.contains(node));
        for node in &role.watched {
            self.peers.entry(node.clone()).or_insert_with(Peer::new);
        }
        self.role = role;
    }

    /// The plan in the kernel, abbreviated as in [`super::message::abbreviated`].
    pub fn programmed(&mut self, digest: Option<[u8; 8]>) {
        self.programmed = digest;
    }

    /// Whether this node asks to be left.
    pub fn leave(&mut self, leaving: bool) {
        self.leaving = leaving;
    }

    /// The next round is due now: there is something to say.
    pub fn hurry(&mut self, now: Moment) {
        self.next_round = self.next_round.min(now);
    }

    /// What the uplink is like.
    pub fn uplink(&mut self, uplink: Uplink) {
        self.uplink = uplink;
    }

    /// Something came from `node`. Requests may come from nodes that aren't probed.
    pub fn heard(&mut self, now: Moment, node: &NodeRef, heard: Heard, said: Said) {
        self.own.heard(now);
        self.answered(now, said.hears);
        if heard == Heard::Request
            && (self.requesters.len() < MOST_REQUESTERS || self.requesters.contains_key(node))
        {
            self.requesters.insert(node.clone(), now);
        }
        if let Some(peer) = self.peers.get_mut(node)
            && let Some(turn) = peer.heard(now, heard, said, &self.timing)
        {
            self.note(node.clone(), turn);
        }
    }

    /// Neighbours outside get as little from a node that nobody hears, and nothing tells it when they do again.
    fn answered(&mut self, now: Moment, hears: bool) {
        if hears {
            self.last_answered = now;
            self.heard_anew += u32::from(std::mem::take(&mut self.unheard));
        } else {
            self.unheard |= now.saturating_sub(self.last_answered) > self.timing.fresh();
        }
    }

    /// Judges, and answers whom to probe now. To be called at [`Tracker::next`] and as often as one likes besides.
    pub fn poll(&mut self, now: Moment) -> Vec<NodeRef> {
        self.judge(now);
        if now < self.next_round {
            return Vec::new();
        }
        // A late round doesn't make the next one come early: lost time is no lost probe.
        let due = self.next_round + self.timing.interval;
        self.next_round = if due > now {
            due
        } else {
            now + self.timing.interval
        };
        self.last_round = now;
        self.own.round();
        for peer in self.peers.values_mut() {
            peer.sending();
        }
        self.peers.keys().cloned().collect()
    }

    /// When [`Tracker::poll`] is due.
    pub fn next(&self, now: Moment) -> Moment {
        let judgement = self.last_round + self.timing.grace();
        if judgement > now {
            judgement.min(self.next_round)
        } else {
            self.next_round
        }
    }

    fn judge(&mut self, now: Moment) {
        self.judge_all(now);
        // Who may be deaf changes nothing until it knows: to it, everybody else would seem dead.
        if !self.doubtful() {
            self.current = self.fresh_liveness();
        }
    }

    fn doubtful(&self) -> bool {
        self.role.gateway && !self.role.colleagues.is_empty() && self.own.doubtful(&self.timing)
    }

    fn judge_all(&mut self, now: Moment) {
        let mut turns = Vec::new();
        for (node, peer) in &mut self.peers {
            if let Some(turn) = peer.judge(now, self.last_round, &self.timing) {
                turns.push((node.clone(), turn));
            }
        }
        for (node, turn) in turns {
            self.note(node, turn);
        }
        self.requesters
            .retain(|_, at| now.saturating_sub(*at) < REQUESTERS);
        if !self.role.gateway {
            self.own = Own::default();
            self.yielding = false;
            return;
        }
        let others: BTreeSet<&NodeRef> = self.requesters.keys().chain(self.peers.keys()).collect();
        let seen = Seen {
            programmed: self.programmed.is_some(),
            judged: self.judged(),
            colleagues: !self.role.colleagues.is_empty(),
            expected: others.len(),
            mute: self.mute(now),
            uplink: self.uplink,
        };
        if self.own.judge(now, self.last_round, &seen, &self.timing) {
            let condition = self.own.condition;
            self.changes.push(Change {
                node: self.role.me.clone(),
                worse: !condition.fit(),
                what: condition.describe().into(),
            });
        }
        if self.own.condition.unusable() {
            for peer in self.peers.values_mut() {
                peer.excuse(now, &self.timing);
            }
        }
        let yielding = self
            .colleagues(now)
            .any(|(peer, said)| !peer.dead() && said.ready && !said.counts);
        if yielding != self.yielding {
            self.yielding = yielding;
            let what = if yielding {
                "another of the gateway's nodes doesn't count this one yet, so it leaves its place to others"
            } else {
                "all of the gateway's nodes count this one"
            };
            self.changes.push(Change {
                node: self.role.me.clone(),
                worse: yielding,
                what: what.into(),
            });
        }
    }

    /// Colleagues heard lately, and what they said.
    fn colleagues(&self, now: Moment) -> impl Iterator<Item = (&Peer, Said)> {
        self.role
            .colleagues
            .iter()
            .filter_map(move |node| self.peers.get(node))
            .filter_map(move |peer| Some((peer, peer.fresh(now, &self.timing)?)))
    }

    /// A colleague that this node gets no answer from gets none from it either, and nobody does. One that is held down is
    /// heard.
    fn mute(&self, now: Moment) -> bool {
        let heard = self
            .peers
            .values()
            .filter_map(|p| p.fresh(now, &self.timing))
            .any(|said| said.hears);
        !heard
            && self
                .colleagues(now)
                .any(|(peer, said)| peer.dead() && said.ready && !said.hears)
    }

    fn note(&mut self, node: NodeRef, turn: Turn) {
        let (worse, what) = match turn {
            Turn::Met => (false, "answers".into()),
            Turn::Died => (
                true,
                format!("doesn't answer: {} probes in a row were lost", self.timing.losses),
            ),
            Turn::Returned { after } if after == Moment::ZERO => (false, "is no longer held down".into()),
            Turn::Returned { after } => (
                false,
                format!("answers again, {:.1} s after it was lost", after.as_secs_f32()),
            ),
            Turn::HeldDown { hold, failures } => (
                true,
                format!(
                    "answers again and is held down for {:.1} s; failures not yet forgotten: {failures}",
                    hold.as_secs_f32()
                ),
            ),
            Turn::Retired => (true, "asks to be left".into()),
            Turn::Resumed => (false, "takes part again".into()),
        };
        self.changes.push(Change { node, worse, what });
    }

    /// What to tell `node`.
    pub fn say(&self, node: &NodeRef) -> Said {
        // Who isn't a gateway's node, or doesn't know it yet, forwards nothing.
        let ready = self.role.gateway && self.own.condition.fit();
        Said {
            ready: ready && !self.leaving,
            yielding: self.yielding,
            counts: self.peers.get(node).is_none_or(Peer::counts),
            // A node that is about to find itself deaf would make others think that they are mute.
            hears: self.doubtful() || self.peers.get(node).is_none_or(|peer| !peer.dead()),
            programmed: self.programmed.unwrap_or_default(),
        }
    }

    /// Every probed node was heard or found dead.
    pub fn judged(&self) -> bool {
        !self.peers.values().any(|p| p.state == State::Unknown)
    }

    /// How this node is.
    pub fn condition(&self) -> Condition {
        self.own.condition
    }

    /// For the compiler, as of the last [`Tracker::poll`]. [`Liveness::kept`] is left empty.
    pub fn liveness(&self) -> Liveness {
        self.current.clone()
    }

    fn fresh_liveness(&self) -> Liveness {
        // Who failed lately itself saw others fail by that: it holds nobody down, and takes nothing from them.
        let failed = self.role.gateway && self.own.condition == Condition::HeldDown;
        let alive = |p: &Peer| p.alive() || (failed && p.only_held_down());
        let of = |wanted: &dyn Fn(&Peer) -> bool| -> BTreeSet<NodeRef> {
            self.peers
                .iter()
                .filter(|(_, peer)| wanted(peer))
                .map(|(node, _)| node.clone())
                .collect()
        };
        let mut liveness = Liveness {
            alive: of(&alive),
            dead: of(&Peer::dead),
            retiring: of(&|p| p.retiring() && !alive(p)),
            yielding: of(&Peer::yielding),
            kept: BTreeSet::new(),
            heard_anew: self.heard_anew,
        };
        if self.role.gateway {
            let said = self.say(&self.role.me);
            if said.ready && said.yielding {
                liveness.yielding.insert(self.role.me.clone());
            }
            let set = if self.own.condition.unusable() {
                &mut liveness.dead
            } else if said.usable() {
                &mut liveness.alive
            } else {
                &mut liveness.retiring
            };
            set.insert(self.role.me.clone());
        }
        liveness
    }

    /// What changed since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }
}

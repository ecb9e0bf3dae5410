//! The thread that asks and answers.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::BuildHasher as _;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use spillway_core::health::message::{Body, LONGEST, MOST_ASKED, Message, PORT};
use spillway_core::health::{Heard, Moment, Timing, Tracker};
use spillway_crds::member::NodeRef;
use tokio::sync::watch;

use super::socket::Socket;
use super::uplink::Uplinks;
use super::{Orders, View};
use crate::observed::Observed;

/// Probes of one node whose answers are still taken.
const MOST_UNANSWERED: usize = 8;

/// How often the device is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often nodes hear from this one that have no other way to it: seldom, since there may be many, and often enough for
/// WireGuard to notice a lost session within its 15 s.
const CALL: Duration = Duration::from_secs(5);

/// A probe that was sent.
#[derive(Debug)]
struct Sent {
    id: u64,
    asked: Vec<IpAddr>,
    /// It was counted as lost.
    lost: bool,
}

struct Prober {
    tracker: Tracker,
    orders: Orders,
    socket: Option<Socket>,
    looked: Option<Moment>,
    /// When others were last called.
    called: Option<Moment>,
    /// The last failure to open the socket, so that it is logged once.
    failure: Option<String>,
    uplinks: Uplinks,
    sent: BTreeMap<NodeRef, VecDeque<Sent>>,
    confirmed: BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    random: RandomState,
    counter: u64,
    started: Instant,
    observed: Observed,
}

/// Goes on until the apply loop is gone.
pub(super) async fn run(
    timing: Timing,
    mut orders: watch::Receiver<Orders>,
    view: watch::Sender<View>,
    observed: Observed,
) {
    let mut prober = Prober {
        tracker: Tracker::new(timing),
        orders: Orders::default(),
        socket: None,
        looked: None,
        called: None,
        failure: None,
        uplinks: Uplinks::default(),
        sent: BTreeMap::new(),
        confirmed: BTreeMap::new(),
        random: RandomState::new(),
        counter: 0,
        started: Instant::now(),
        observed,
    };
    let mut buffer = [0; LONGEST + 1];
    let first = orders.borrow_and_update().clone();
    prober.follow(first);
    loop {
        let next = prober.started + prober.tracker.next(prober.now()).min(prober.next_look());
        let idle = prober.orders.assignment.idle();
        tokio::select! {
            // What has already arrived counts before time does.
            biased;
            received = receive(prober.socket.as_ref(), &mut buffer) => match received {
                Ok((length, from, port)) => prober.received(&buffer[..length], from, port),
                Err(error) => {
                    tracing::debug!(%error, "the probes' socket failed");
                    prober.socket = None;
                }
            },
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
                let new = orders.borrow_and_update().clone();
                prober.follow(new);
            }
            () = tokio::time::sleep_until(next.into()), if !idle => {}
        }
        if !prober.orders.assignment.idle() {
            prober.round();
        }
        prober.publish(&view);
    }
}

async fn receive(socket: Option<&Socket>, buffer: &mut [u8]) -> io::Result<(usize, IpAddr, u16)> {
    match socket {
        Some(socket) => socket.receive(buffer).await,
        None => std::future::pending().await,
    }
}

impl Prober {
    fn now(&self) -> Moment {
        self.started.elapsed()
    }

    fn follow(&mut self, orders: Orders) {
        let old = std::mem::replace(&mut self.orders, orders);
        let new = &self.orders;
        if old.assignment != new.assignment {
            self.tracker.assign(new.assignment.role.clone());
            self.sent
                .retain(|node, _| new.assignment.probed.contains_key(node));
        }
        self.tracker.programmed(new.programmed);
        self.tracker.leave(new.leaving || new.drained);
        // Only what is asked for now, of whom it is asked for now, was confirmed in the present case.
        let asked = &new.asked;
        self.confirmed.retain(|node, addresses| {
            addresses.retain(|a| asked.get(node).is_some_and(|asked| asked.contains(a)));
            !addresses.is_empty()
        });
        if old.leaving != new.leaving || old.drained != new.drained || old.asked != new.asked {
            self.tracker.hurry(self.started.elapsed());
        }
        if new.assignment.idle() {
            self.socket = None;
            self.sent.clear();
        }
    }

    /// When to look at the device again. A node that asks nobody has no other reason to wake, and would never answer
    /// through a device that was replaced.
    fn next_look(&self) -> Moment {
        self.looked.map_or(Moment::ZERO, |at| at + LOOK)
    }

    /// Opens the socket, and again where the device was replaced.
    fn open(&mut self, now: Moment) {
        if now < self.next_look() && self.socket.is_some() {
            return;
        }
        self.looked = Some(now);
        let device = &self.orders.assignment.device;
        if self.socket.as_ref().is_some_and(|s| s.stands(device)) {
            return;
        }
        let opened = Socket::open(device);
        let failure = opened.as_ref().err().map(ToString::to_string);
        if failure != self.failure {
            if let Some(error) = &failure {
                tracing::info!(device, error, "no probes yet: the tunnel can't be listened on");
            }
            self.failure = failure;
        }
        self.socket = opened.ok();
    }

    fn round(&mut self) {
        let now = self.now();
        let assignment = &self.orders.assignment;
        if !assignment.role.colleagues.is_empty() {
            let uplink = self
                .uplinks
                .look(now, assignment.underlay.as_deref(), &assignment.uplinks);
            self.tracker.uplink(uplink);
        }
        let due = self.tracker.poll(now);
        self.open(now);
        for node in due {
            self.probe(node);
        }
        self.call(now);
    }

    /// Nobody waits for the answer.
    fn call(&mut self, now: Moment) {
        if self.called.is_some_and(|at| now < at + CALL) {
            return;
        }
        self.called = Some(now);
        for (node, to) in &self.orders.assignment.called {
            self.counter += 1;
            let message = Message {
                id: self.random.hash_one(self.counter),
                said: self.tracker.say(node),
                body: Body::Request { asked: Vec::new() },
            };
            if let Some(socket) = &self.socket
                && let Err(error) = socket.send(&message.encode(), *to, PORT)
            {
                tracing::debug!(%to, %error, "a node couldn't be called");
            }
        }
    }

    fn probe(&mut self, node: NodeRef) {
        let Some(to) = self.orders.assignment.probed.get(&node).copied() else {
            return;
        };
        self.counter += 1;
        let id = self.random.hash_one(self.counter);
        let asked = self.questions(&node);
        let message = Message {
            id,
            said: self.tracker.say(&node),
            body: Body::Request { asked: asked.clone() },
        };
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(&message.encode(), to, PORT)
        {
            // The probe counts as lost, which it is.
            tracing::debug!(%to, %error, "a probe couldn't be sent");
            self.looked = None;
        }
        let sent = self.sent.entry(node).or_default();
        for before in sent.iter_mut().filter(|s| !s.lost) {
            before.lost = true;
            self.observed.metrics.probes_lost.inc();
        }
        self.observed.metrics.probes.inc();
        sent.push_back(Sent {
            id,
            asked,
            lost: false,
        });
        if sent.len() > MOST_UNANSWERED {
            sent.pop_front();
        }
    }

    /// What `node` was not yet heard to have.
    fn questions(&self, node: &NodeRef) -> Vec<IpAddr> {
        let confirmed = self.confirmed.get(node);
        let open = |a: &&IpAddr| confirmed.is_none_or(|c| !c.contains(*a));
        let asked = self.orders.asked.get(node).into_iter().flatten();
        asked.filter(open).take(MOST_ASKED).copied().collect()
    }

    fn received(&mut self, bytes: &[u8], from: IpAddr, port: u16) {
        let Some(node) = self.orders.assignment.known.get(&from).cloned() else {
            tracing::debug!(%from, "a probe from a stranger");
            return;
        };
        let Some(message) = Message::decode(bytes) else {
            tracing::debug!(%from, length = bytes.len(), "a datagram that is no probe");
            return;
        };
        let now = self.now();
        match message.body {
            Body::Request { asked } => {
                self.tracker.heard(now, &node, Heard::Request, message.said);
                let has = |(n, address): (usize, &IpAddr)| u32::from(self.orders.held.contains(address)) << n;
                let answer = Message {
                    id: message.id,
                    said: self.tracker.say(&node),
                    body: Body::Answer {
                        held: asked.iter().enumerate().map(has).sum(),
                    },
                };
                if let Some(socket) = &self.socket
                    && let Err(error) = socket.send(&answer.encode(), from, port)
                {
                    tracing::debug!(%from, %error, "an answer couldn't be sent");
                }
            }
            Body::Answer { held } => {
                // From the address that was asked, to a question that was put.
                if self.orders.assignment.probed.get(&node) != Some(&from) {
                    return;
                }
                let Some(sent) = self.sent.get_mut(&node) else {
                    return;
                };
                let Some(place) = sent.iter().position(|s| s.id == message.id) else {
                    return;
                };
                let Some(question) = sent.remove(place) else {
                    return;
                };
                self.tracker.heard(now, &node, Heard::Answer, message.said);
                let wanted = self.orders.asked.get(&node);
                let has = question
                    .asked
                    .into_iter()
                    .enumerate()
                    .filter(|(n, address)| {
                        held & (1 << n) != 0 && wanted.is_some_and(|w| w.contains(address))
                    })
                    .map(|(_, address)| address);
                let has: BTreeSet<IpAddr> = has.collect();
                if !has.is_empty() {
                    self.confirmed.entry(node).or_default().extend(has);
                }
            }
        }
    }

    fn publish(&mut self, view: &watch::Sender<View>) {
        let me = &self.orders.assignment.role.me;
        for change in self.tracker.take_changes() {
            let about = change.node.to_string();
            let what = change.what;
            if change.node == *me {
                tracing::info!(node = me.node, what, "this node's fitness changed");
            } else {
                tracing::info!(node = me.node, peer = about, what, "a gateway's node changed");
            }
        }
        let fresh = View {
            liveness: self.tracker.liveness(),
            confirmed: self.confirmed.clone(),
            judged: self.tracker.judged(),
        };
        view.send_if_modified(|old| {
            let changed = *old != fresh;
            if changed {
                let probed = self.orders.assignment.probed.keys().cloned().collect();
                self.observed.judged(probed, fresh.liveness.clone());
                *old = fresh;
            }
            changed
        });
    }
}

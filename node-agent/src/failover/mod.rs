//! Whom this node counts on, found out through the tunnel itself.
//!
//! ```text
//!   apply loop ── orders: whom to probe, what is programmed, what is held ──► prober (a thread of its own)
//!   prepare ◄── view: liveness, who confirmed what ────────────────────────── socket, uplink, core::health
//!   compile, apply
//!   done ──► books: what is held, since when and why ──► status
//! ```
//!
//! The prober has its own thread and runtime: neither compiling a large plan nor a slow write to the kernel may make
//! it miss an answer, and a node that answers late is dead to the others.

mod books;
mod prober;
mod socket;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use spillway_core::health::reason::Why;
use spillway_core::health::{Assignment, Timing};
use spillway_core::node::gateways::Liveness;
use spillway_core::node::inputs::NodeInputs;
use spillway_crds::member::NodeRef;
use tokio::sync::{oneshot, watch};

use crate::observed::Observed;
use books::Books;
pub(crate) use books::Holding;

/// How long a node that ends goes on telling its gateways' users so.
const FAREWELL: Duration = Duration::from_millis(600);

/// Longest wait for successors when this agent ends: theirs to answer in, and some more to program what they said.
const LONGEST_FAREWELL: Duration = Duration::from_secs(7);

/// Longest wait for the first verdicts, before which the kernel is left as an earlier agent left it.
const FIRST_VERDICTS: Duration = Duration::from_secs(1);

/// How probing may be set.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Probing {
    /// Time from one probe of a gateway's node to the next, in milliseconds; equal on all nodes of the federation.
    #[arg(long, env = "SPILLWAY_PROBE_INTERVAL", default_value = "100", value_parser = clap::value_parser!(u64).range(20..=10_000))]
    probe_interval: u64,
    /// Probes in a row that must be lost before a node is taken for dead.
    #[arg(long, env = "SPILLWAY_PROBE_LOSSES", default_value = "3", value_parser = clap::value_parser!(u32).range(2..=100))]
    probe_losses: u32,
}

impl Probing {
    fn timing(self) -> Timing {
        Timing {
            interval: Duration::from_millis(self.probe_interval),
            losses: self.probe_losses,
            ..Timing::default()
        }
    }
}

/// From the apply loop to the prober.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Orders {
    assignment: Assignment,
    /// Digest of the plan in the kernel, abbreviated.
    programmed: Option<[u8; 8]>,
    /// Egress IPs that the kernel answers for.
    held: BTreeSet<IpAddr>,
    /// Whom to ask whether it has which of them.
    asked: BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    /// The plan has this node drained; those that don't know that plan yet hear it from this node.
    drained: bool,
    /// This agent is about to end.
    leaving: bool,
    /// Nothing that is held waits for a successor, given that this node asks to be left.
    left: bool,
}

/// From the prober to the apply loop.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct View {
    liveness: Liveness,
    /// Egress IPs that other nodes said they have, of those that they were asked for.
    confirmed: BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    /// Every probed node was heard or found dead.
    judged: bool,
}

/// The apply loop's end of it.
#[derive(Debug)]
pub(crate) struct Failover {
    orders: watch::Sender<Orders>,
    view: watch::Receiver<View>,
    books: Books,
    started: Instant,
    /// When something is due though nothing happens.
    wake: Option<Instant>,
}

/// Says when the prober's thread ended, which it never should.
pub(crate) type Ended = oneshot::Receiver<()>;

impl Failover {
    /// Starts the prober.
    pub(crate) fn start(probing: Probing, observed: Observed) -> anyhow::Result<(Self, Ended)> {
        let (failover, orders, view) = Self::apart();
        let (alive, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("build the prober's runtime")?;
        std::thread::Builder::new()
            .name("prober".into())
            .spawn(move || {
                let _alive: oneshot::Sender<()> = alive;
                runtime.block_on(prober::run(probing.timing(), orders, view, observed));
            })
            .context("start the prober's thread")?;
        Ok((failover, ended))
    }

    /// One whose prober isn't there: the plan decides everything.
    #[cfg(test)]
    pub(crate) fn without_prober() -> Self {
        Self::apart().0
    }

    fn apart() -> (Self, watch::Receiver<Orders>, watch::Sender<View>) {
        let (orders, ordered) = watch::channel(Orders {
            left: true,
            ..Orders::default()
        });
        let (viewing, view) = watch::channel(View::default());
        let failover = Self {
            orders,
            view,
            books: Books::default(),
            started: Instant::now(),
            wake: None,
        };
        (failover, ordered, viewing)
    }

    /// What makes this node leave its place before its agent ends.
    pub(crate) fn farewell(&self) -> Farewell {
        Farewell(self.orders.clone())
    }

    /// Waits for the first verdicts on the nodes of stored inputs, so that a restart doesn't begin with what the plan
    /// says of nodes that have died since. Doesn't wait where there is no tunnel yet, as after a boot.
    pub(crate) async fn first_verdicts(&mut self, inputs: &NodeInputs) {
        let assignment = Assignment::of(inputs);
        if assignment.probed.is_empty() || !socket::exists(&assignment.device) {
            return;
        }
        self.orders.send_modify(|o| o.assignment = assignment);
        let judged = self
            .view
            .wait_for(|v| v.judged && v.liveness != Liveness::default());
        if tokio::time::timeout(FIRST_VERDICTS, judged).await.is_err() {
            tracing::info!("not every gateway's node could be judged yet");
        }
    }

    /// Fills in what the compiler needs to know, given what was compiled before.
    pub(crate) fn prepare(&mut self, before: &NodeInputs, inputs: &mut NodeInputs) {
        let now = self.started.elapsed();
        let view = self.view.borrow_and_update().clone();
        inputs.liveness = view.liveness;
        // A node that just came, or was just made a gateway's, takes nothing before it has looked around.
        let role = Assignment::of(inputs).role;
        let liveness = &mut inputs.liveness;
        let judged = [&liveness.alive, &liveness.dead, &liveness.retiring];
        if role.gateway && !judged.iter().any(|set| set.contains(&role.me)) {
            liveness.retiring.insert(role.me);
        }
        let wake = self.books.prepare(now, before, inputs, &view.confirmed);
        self.wake = wake.map(|at| self.started + at);
    }

    /// The kernel holds what `inputs` ask for, and answers for `held`; or, without `held`, nobody knows what it holds.
    /// Answers why what is new was taken.
    pub(crate) fn done(&mut self, inputs: &NodeInputs, held: Option<&BTreeMap<IpAddr, String>>) -> Vec<Why> {
        let taken = self.books.done(inputs, held);
        let orders = self.books.orders(inputs, held.is_some());
        self.orders.send_if_modified(|old| {
            let new = Orders {
                leaving: old.leaving,
                ..orders
            };
            let changed = *old != new;
            *old = new;
            changed
        });
        taken
    }

    /// Everything was taken out.
    pub(crate) fn torn_down(&mut self) {
        self.books = Books::default();
        self.wake = None;
        self.orders.send_modify(|o| {
            *o = Orders {
                leaving: o.leaving,
                left: true,
                ..Orders::default()
            };
        });
    }

    /// Egress IPs that this node goes on answering for, and that neighbours are to be told of once more, since a node
    /// that they may believe in is gone. To be asked after [`Failover::done`].
    pub(crate) fn take_unannounced(&mut self) -> Vec<IpAddr> {
        self.books.take_again()
    }

    /// The egress IPs that this node answers for.
    pub(crate) fn holdings(&self) -> Vec<Holding> {
        self.books.holdings()
    }

    /// Waits until there is a reason to compile again.
    pub(crate) async fn due(&mut self) {
        let wake = self.wake;
        let timer = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            // Without a prober nothing ever changes.
            if self.view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = timer => {}
            () = changed => {}
        }
    }
}

/// What makes a node leave its place.
#[derive(Clone, Debug)]
pub(crate) struct Farewell(watch::Sender<Orders>);

impl Farewell {
    /// Asks everybody to leave this node, and waits until others have its egress IPs. The kernel goes on forwarding
    /// all the while, and afterwards. An agent that is merely restarted does so too: while it is away nobody answers
    /// for this node, so the others would take it for dead a moment later, and find out only by losing packets if it
    /// really died. Moving first costs nothing.
    pub(crate) async fn say(self) {
        self.say_within(LONGEST_FAREWELL).await;
    }

    async fn say_within(self, limit: Duration) {
        let gateway = self.0.borrow().assignment.role.gateway;
        if !gateway {
            return;
        }
        self.0.send_modify(|o| o.leaving = true);
        tokio::time::sleep(FAREWELL).await;
        let mut orders = self.0.subscribe();
        let left = tokio::time::timeout(limit, orders.wait_for(|o| o.left)).await;
        match left {
            Ok(_) => tracing::info!("no egress IP waits for another node"),
            Err(_) => {
                tracing::warn!("other nodes don't say that they have this node's egress IPs; ending anyway");
            }
        }
    }
}

#[cfg(test)]
mod tests;

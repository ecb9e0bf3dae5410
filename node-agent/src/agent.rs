//! The apply loop: one at a time, from what was seen to what the kernel holds.
//!
//! ```text
//!  watches ─┐                         ┌─► disk    before the kernel, so that it never knows less
//!  drift   ─┼─► gate ─► compile ──────┼─► kernel  apply, then cut flows that began otherwise
//!  a minute ┘                         └─► report  to the status writer, which never holds this up
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spillway_core::node::gateways::Liveness;
use spillway_core::node::inputs::{Addresses, NodeInputs, Pod, Settings};
use spillway_core::node::state::DesiredState;
use spillway_core::node::{Compiled, compile_numbered, encrypted, problems};
use spillway_core::ranges::strays;
use spillway_crds::ConditionType;
use spillway_crds::condition::Verdict;
use spillway_crds::member::LackingFeature;
use spillway_dataplane::Kernel;
use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::cluster::Cluster;
use crate::cni::Cni;
use crate::disk::Disk;
use crate::failover::Failover;
use crate::gate::{self, Next, Seen, Waiting};
use crate::health::Standing;
use crate::kernel;
use crate::observed::Observed;
use crate::paths::Paths;
use crate::ports::{self, Shares};
use crate::status::Report;

/// How often everything is compared without any event.
const FULL_CHECK: Duration = Duration::from_secs(60);

/// Reason of a node without an overlay or underlay address.
const NO_ADDRESS: &str = "NoAddress";

/// One round's reason to do more than compare with what was applied last.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Force {
    /// Have the kernel compared even if nothing else is wanted than before.
    pub(crate) apply: bool,
    /// Read the node's network again.
    pub(crate) facts: bool,
}

/// What the kernel was last told.
#[derive(Clone, Debug)]
struct Applied {
    desired: Arc<DesiredState>,
    /// It took all of it, and all flows were cut.
    done: bool,
}

/// The loop's state.
pub(crate) struct Agent<K> {
    kernel: K,
    disk: Disk,
    standing: Standing,
    observed: Observed,
    reports: watch::Sender<Option<Report>>,
    cni: Cni,
    failover: Failover,
    /// What was compiled last, or came from the disk.
    held: NodeInputs,
    applied: Option<Applied>,
    /// Addresses that were ours in earlier states whose flows weren't cut yet.
    uncut: BTreeSet<IpAddr>,
    /// There are pods to be remembered that the API server has forgotten.
    unstored: bool,
    /// The inputs have changed since they were stored.
    outdated: bool,
    /// Addresses of selected pods that ended and that nobody has since.
    departed: BTreeSet<IpAddr>,
    /// Digest of the plan that the kernel took last.
    programmed: Option<String>,
    /// Underlay addresses for which the facts in `held` were read.
    measured: Option<Vec<IpAddr>>,
    /// What the kernel can't do, and what not every kernel can.
    missing: Vec<String>,
    features: Vec<String>,
    lacking: Vec<LackingFeature>,
    egress_hook: kernel::Use,
    /// This node's ports that the kernel has.
    shares: watch::Sender<Shares>,
    /// Paths of its plan that must be encrypted.
    paths: watch::Sender<Paths>,
    waiting: Option<Waiting>,
    /// Liveness that the disk has.
    remembered: Option<Liveness>,
    /// A teardown was done and nothing has been applied since.
    torn_down: bool,
}

impl<K: Kernel> Agent<K> {
    /// An agent for `node` that goes on from what the disk has.
    #[expect(clippy::too_many_arguments, reason = "one for each part that it is made of")]
    pub(crate) fn new(
        kernel: K,
        disk: Disk,
        standing: Standing,
        observed: Observed,
        reports: watch::Sender<Option<Report>>,
        cni: Cni,
        failover: Failover,
        node: &str,
        settings: Settings,
        egress_hook: kernel::Use,
    ) -> Self {
        let mut held = disk.load(node).unwrap_or_else(|| NodeInputs {
            node: node.to_owned(),
            ..NodeInputs::default()
        });
        held.settings = settings;
        held.liveness = disk.recall();
        cni.restore(&held.sandboxes);
        // What an earlier agent had programmed; which facts it had doesn't matter for that.
        let before = compile_numbered(&held).state.flows;
        Self {
            kernel,
            disk,
            standing,
            observed,
            reports,
            cni,
            failover,
            held,
            applied: None,
            uncut: before.ours,
            unstored: false,
            outdated: true,
            departed: before.pods.into_keys().collect(),
            programmed: None,
            measured: None,
            missing: Vec::new(),
            features: Vec::new(),
            lacking: Vec::new(),
            egress_hook,
            shares: watch::Sender::default(),
            paths: watch::Sender::default(),
            waiting: None,
            remembered: None,
            torn_down: false,
        }
    }

    /// This node's ports, as the kernel has them.
    pub(crate) fn shares(&self) -> watch::Receiver<Shares> {
        self.shares.subscribe()
    }

    /// Paths that must be encrypted.
    pub(crate) fn paths(&self) -> watch::Receiver<Paths> {
        self.paths.subscribe()
    }

    fn has(&self, shares: Shares, paths: Paths) {
        fn put<T: PartialEq>(sender: &watch::Sender<T>, new: T) {
            sender.send_if_modified(|old| {
                let changed = *old != new;
                *old = new;
                changed
            });
        }
        put(&self.shares, shares);
        put(&self.paths, paths);
    }

    /// Goes round for ever.
    pub(crate) async fn run(mut self, cluster: Cluster) {
        let mut changes = cluster.changes();
        let mut asked = self.cni.asked();
        let mut chain = self.cni.chain();
        let mut drift = self.kernel.drift();
        let mut known = drift.borrow_and_update().clone();
        let mut backoff = Backoff::up_to_seconds(30);
        let mut force = Force {
            apply: true,
            facts: true,
        };
        let mut full = tokio::time::Instant::now() + FULL_CHECK;
        self.failover.first_verdicts(&self.held).await;
        loop {
            // Before reading, so that what changes meanwhile makes another round.
            changes.borrow_and_update();
            asked.borrow_and_update();
            chain.borrow_and_update();
            let seen = cluster.synced().then(|| cluster.seen());
            if seen.is_none() {
                tracing::debug!(node = self.held.node, unread = ?cluster.unread(), "not everything was read yet");
            }
            let retry = if self.round(seen.as_ref(), force).await {
                backoff.reset();
                None
            } else {
                backoff.next()
            };
            force = Force::default();
            let again = async {
                match retry {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            let lifted = async {
                match self.cni.lifts() {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = changes.changed() => if event.is_err() { return },
                event = chain.changed() => if event.is_err() { return },
                () = lifted => {}
                event = asked.changed() => if event.is_err() { return },
                () = self.failover.due() => {}
                event = drift.changed() => {
                    if event.is_err() {
                        return;
                    }
                    let now = drift.borrow_and_update().clone();
                    if now.repairs != known.repairs {
                        self.observed.repaired(&now.found);
                    }
                    force = Force { apply: now.repairs != known.repairs, facts: now.facts != known.facts };
                    known = now;
                }
                () = again => force = Force { apply: true, facts: true },
                () = tokio::time::sleep_until(full) => {
                    force = Force { apply: true, facts: true };
                    full = tokio::time::Instant::now() + FULL_CHECK;
                }
            }
        }
    }

    /// One round. `seen` is absent while not everything was read: then what the disk had is kept up. Answers
    /// false where it should be tried again soon.
    pub(crate) async fn round(&mut self, seen: Option<&Seen>, force: Force) -> bool {
        let watchdog = self.standing.watchdog.clone();
        let _working = watchdog.work();
        if let Some(seen) = seen {
            let may_run = |p: &&Pod| !p.finished && !p.host_network && !p.addresses.is_empty();
            let may_run = seen.forgotten.iter().filter(may_run).cloned();
            let before = self.held.pods.len();
            self.held
                .pods
                .extend(may_run.map(|pod| Pod { removed: true, ..pod }));
            self.unstored |= self.held.pods.len() != before;
        }
        let next = match seen {
            Some(seen) => gate::next(seen, &self.held),
            None if self.held.plan.is_some() => Next::Apply(Box::new(self.held.clone()), None),
            None => return true,
        };
        let done = match next {
            Next::Nothing(waiting) => {
                let message = waiting.to_string();
                self.note(Some(waiting));
                self.cni.unplanned();
                self.report(
                    None,
                    false,
                    Verdict::no(ConditionType::Programmed, "NoPlan", message),
                );
                true
            }
            Next::TearDown => self.tear_down(force).await,
            Next::Apply(mut inputs, waiting) => {
                self.note(waiting);
                let asked = self.cni.begin(&mut inputs);
                let done = self.realise(*inputs, force).await;
                self.cni.finish(asked, self.selected(done));
                done
            }
        };
        let kernel = self.applied.as_ref().filter(|a| a.done);
        let shown = seen.and_then(|s| s.head.as_ref()).map(|h| &h.digest);
        let current = shown.is_some() && self.programmed.as_ref() == shown;
        self.observed.holds(kernel.map(|a| a.desired.clone()), current);
        self.standing.set(self.unready(done));
        done
    }

    /// What the kernel lacks of what it should hold.
    fn unready(&self, done: bool) -> Option<String> {
        let report = self.reports.borrow();
        let verdict = report.as_ref().map(|r| &r.verdict);
        let incomplete = !done || verdict.is_some_and(|v| v.reason == NO_ADDRESS);
        incomplete.then(|| verdict.map_or_else(String::new, |v| format!("{}: {}", v.reason, v.message)))
    }

    /// Logs what is being waited for when it changes.
    fn note(&mut self, waiting: Option<Waiting>) {
        if self.waiting != waiting {
            if let Some(waiting) = &waiting {
                tracing::info!(node = self.held.node, %waiting, "what is programmed stays");
            } else {
                tracing::debug!(node = self.held.node, "the plan is complete");
            }
            self.waiting = waiting;
        }
    }

    async fn realise(&mut self, mut inputs: NodeInputs, force: Force) -> bool {
        if let Err(error) = self.measure(&mut inputs, force.facts).await {
            return self.failed("FactsFailed", &error.to_string());
        }
        self.failover.prepare(&self.held, &mut inputs);
        let Compiled {
            state: desired,
            gateway_indexes,
            bystanders,
        } = compile_numbered(&inputs);
        inputs.gateway_indexes = gateway_indexes;
        let digest = inputs.plan.as_ref().map(|p| p.digest.clone());
        let same = self.applied.as_ref().is_some_and(|a| *a.desired == desired);
        self.outdated |= self.differs(&inputs);
        // A gateway's node that dies changes nothing that is stored, and what it changes is urgent.
        if self.unstored || (self.outdated && (!same || inputs.plan != self.held.plan)) {
            self.unstored = false;
            self.outdated = false;
            // The kernel must never hold what the disk doesn't know.
            if let Err(error) = self.disk.store(&inputs) {
                tracing::warn!(node = inputs.node, %error, "inputs can't be stored; a restart without the API \
                    server will leave the kernel as it is");
                self.outdated = true;
                // To go on from older ones would take newer pods out.
                if let Err(error) = self.disk.clear() {
                    tracing::error!(node = inputs.node, %error, "nor can older inputs be removed; a restart without \
                        the API server would go on from them");
                }
            }
        }
        self.held = inputs;
        self.torn_down = false;
        if let Err(error) = self.settle(desired, &bystanders, force).await {
            // Whatever it has now, it isn't what was last said of it.
            self.programmed = None;
            _ = self.failover.done(&self.held, None);
            return self.failed("ApplyFailed", &error);
        }
        if self.remembered.as_ref() != Some(&self.held.liveness) {
            if let Err(error) = self.disk.remember(&self.held.liveness) {
                tracing::debug!(node = self.held.node, %error, "`show` will not know which nodes are alive");
            }
            self.remembered = Some(self.held.liveness.clone());
        }
        self.has(ports::shares(&self.held), encrypted(&self.held));
        let held = self.applied.as_ref().map(|a| &a.desired.held);
        for why in self.failover.done(&self.held, held) {
            self.observed.metrics.takeovers.inc([why.kind()]);
        }
        let again = self.failover.take_unannounced();
        if !again.is_empty()
            && let Err(error) = self.kernel.announce(&again).await
        {
            tracing::warn!(node = self.held.node, %error, "egress IPs can't be announced once more");
        }
        let found: Vec<String> = problems(&self.held)
            .into_iter()
            .chain(self.missing.clone())
            .chain(self.cni.problem())
            .collect();
        let ready = self.applied.as_ref().is_some_and(|a| a.desired.tunnel.is_some());
        let verdict = if ready {
            self.programmed = digest;
            Verdict::yes(ConditionType::Programmed, "Programmed", found.join("; "))
        } else {
            Verdict::no(ConditionType::Programmed, NO_ADDRESS, found.join("; "))
        };
        self.report(self.programmed.clone(), false, verdict);
        true
    }

    /// Whether `inputs` are others than those last compiled, but for what isn't stored of them.
    fn differs(&mut self, inputs: &NodeInputs) -> bool {
        let liveness = std::mem::replace(&mut self.held.liveness, inputs.liveness.clone());
        let differs = self.held != *inputs;
        self.held.liveness = liveness;
        differs
    }

    /// The addresses that the kernel judges by a policy, or what is said of why it can't.
    fn selected(&self, done: bool) -> Result<BTreeSet<IpAddr>, String> {
        if done {
            let pods = self.applied.iter().flat_map(|a| a.desired.flows.pods.keys());
            return Ok(pods.copied().collect());
        }
        let report = self.reports.borrow();
        Err(report
            .as_ref()
            .map_or_else(String::new, |r| r.verdict.message.clone()))
    }

    async fn tear_down(&mut self, force: Force) -> bool {
        self.departed.clear();
        if let Err(error) = self
            .settle(DesiredState::default(), &BTreeSet::new(), force)
            .await
        {
            return self.failed("TeardownFailed", &error);
        }
        if !self.torn_down {
            if let Err(error) = self.cni.torn_down() {
                return self.failed("TeardownFailed", &error);
            }
            if let Err(error) = self.disk.clear() {
                return self.failed("TeardownFailed", &format!("remove the stored inputs: {error}"));
            }
            tracing::info!(node = self.held.node, "torn down as asked");
        }
        self.held = NodeInputs {
            node: self.held.node.clone(),
            settings: self.held.settings.clone(),
            ..NodeInputs::default()
        };
        self.has(Shares::new(), Paths::new());
        self.measured = None;
        self.programmed = None;
        self.failover.torn_down();
        self.remembered = None;
        self.torn_down = true;
        let verdict = Verdict::no(
            ConditionType::Programmed,
            "TornDown",
            "removed as EgressPlan.spec.teardown asks",
        );
        self.report(None, true, verdict);
        true
    }

    /// Reads the node's network where that is due.
    async fn measure(&mut self, inputs: &mut NodeInputs, due: bool) -> spillway_dataplane::Result<()> {
        let own = inputs.nodes.get(&inputs.node);
        let underlay: Vec<IpAddr> = own
            .map(|n| Addresses::of(&n.underlay).iter().collect())
            .unwrap_or_default();
        if due || self.measured.as_ref() != Some(&underlay) {
            let facts = self.kernel.facts(&underlay).await?;
            inputs.facts = facts.for_compiler(&inputs.settings.device);
            (self.features, self.lacking) = kernel::features(&facts, self.egress_hook);
            let missing = kernel::missing(&facts);
            if missing != self.missing {
                tracing::warn!(node = inputs.node, ?missing, "what the kernel lacks");
                self.missing = missing;
            }
            self.measured = Some(underlay);
        }
        Ok(())
    }

    /// Has the kernel hold `desired`, if it doesn't already or a comparison is due.
    async fn settle(
        &mut self,
        desired: DesiredState,
        bystanders: &BTreeSet<IpAddr>,
        force: Force,
    ) -> Result<(), String> {
        let previous = self.applied.take();
        let same = previous.as_ref().is_some_and(|a| *a.desired == desired);
        let done = previous.as_ref().is_some_and(|a| a.done);
        if let Some(previous) = &previous {
            self.uncut.extend(&previous.desired.flows.ours);
        }
        let reused = self.depart(previous.as_ref(), &desired, bystanders);
        if same && done && !reused && !force.apply {
            self.applied = previous;
            return Ok(());
        }
        let cut_due = !done || reused || previous.as_ref().is_none_or(|a| a.desired.flows != desired.flows);
        // What all flows agreed with: only those that are judged otherwise now need a look.
        let agreed = previous
            .filter(|_| done && !reused && !force.apply)
            .map(|p| p.desired);
        let agreed = agreed.as_deref().map(|d| &d.flows);
        let started = Instant::now();
        let applied = self.kernel.apply(&desired).await;
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut kept = Applied {
            desired: Arc::new(desired),
            done: false,
        };
        let result = match applied {
            Ok(changes) => {
                let cut = if cut_due {
                    let agreed = agreed.filter(|_| !changes.repaired());
                    self.cut(&kept.desired.flows, agreed).await
                } else if changes.repaired() || (same && !changes.is_empty()) {
                    // Flows may have begun while something was missing.
                    self.cut(&kept.desired.flows, None).await
                } else {
                    Ok(0)
                };
                log::applied(&self.held, &kept.desired, &changes, cut.as_ref().ok(), micros);
                match &cut {
                    Ok(cut) => self
                        .observed
                        .applied(started.elapsed(), !changes.is_empty(), *cut),
                    Err(_) => self.observed.refused(started.elapsed()),
                }
                cut.map(|_| ()).map_err(|error| error.to_string())
            }
            Err(error) => {
                self.observed.refused(started.elapsed());
                // The table stands, so flows that began before it would be dropped until they end.
                if matches!(error, spillway_dataplane::Error::Incomplete { .. })
                    && let Err(error) = self.cut(&kept.desired.flows, None).await
                {
                    tracing::warn!(node = self.held.node, %error, "flows can't be cut");
                }
                Err(error.to_string())
            }
        };
        kept.done = result.is_ok();
        self.applied = Some(kept);
        result
    }

    fn failed(&mut self, reason: &str, message: &str) -> bool {
        tracing::error!(
            node = self.held.node,
            reason,
            message,
            "the kernel isn't as it should be; trying again"
        );
        let verdict = Verdict::no(ConditionType::Programmed, reason, message);
        self.report(self.programmed.clone(), false, verdict);
        false
    }

    fn report(&self, programmed: Option<String>, torn_down: bool, verdict: Verdict) {
        let report = Some(Report {
            programmed,
            torn_down,
            features: self.features.clone(),
            lacking: self.lacking.clone(),
            held: self.failover.holdings(),
            strays: strays(&self.held),
            first_packets: self.cni.first_packets(),
            verdict,
        });
        self.reports.send_if_modified(|old| {
            let changed = *old != report;
            *old = report;
            changed
        });
    }
}

mod flows;
mod log;
#[cfg(test)]
mod tests;

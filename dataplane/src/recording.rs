//! A kernel that only remembers, for tests of what stands above.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use spillway_core::node::flows::Flows;
use spillway_core::node::state::DesiredState;
use spillway_crds::hub::PortRange;
use tokio::sync::watch;

use crate::wireguard;
use crate::{Changes, Drift, Encryption, Error, Facts, Kernel, Operation, PortCount, Result, RuleCount};

#[derive(Default)]
struct Inner {
    facts: Facts,
    held: DesiredState,
    applied: Vec<DesiredState>,
    cut: Vec<Flows>,
    announced: Vec<IpAddr>,
    port_use: Vec<PortCount>,
    counts: Vec<RuleCount>,
    encryption: Encryption,
    refuse: Option<String>,
    fail_one: Option<String>,
}

/// Remembers what it was told and answers what it was given.
pub struct RecordingKernel {
    inner: Mutex<Inner>,
    drift: watch::Sender<Drift>,
}

impl Default for RecordingKernel {
    fn default() -> Self {
        Self::new(Facts::default())
    }
}

impl RecordingKernel {
    /// A kernel that answers these facts.
    pub fn new(facts: Facts) -> Self {
        Self {
            inner: Mutex::new(Inner {
                facts,
                ..Inner::default()
            }),
            drift: watch::Sender::new(Drift::default()),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers other facts from now on and says so.
    pub fn set_facts(&self, facts: Facts) {
        self.inner().facts = facts;
        self.drift.send_modify(|d| d.facts += 1);
    }

    /// Answers these counts from now on, to whatever is asked.
    pub fn set_port_use(&self, counts: Vec<PortCount>) {
        self.inner().port_use = counts;
    }

    /// Answers these counts of rules from now on.
    pub fn set_counts(&self, counts: Vec<RuleCount>) {
        self.inner().counts = counts;
    }

    /// Answers this of encrypted paths from now on.
    pub fn set_encryption(&self, encryption: Encryption) {
        self.inner().encryption = encryption;
    }

    /// Refuses every apply with this message, or no longer.
    pub fn refuse(&self, message: Option<String>) {
        self.inner().refuse = message;
    }

    /// Takes every apply but for one step that fails with this message, or no longer.
    pub fn fail_one_step(&self, message: Option<String>) {
        self.inner().fail_one = message;
    }

    /// Loses everything, as if somebody had flushed it, and says so.
    pub fn lose_everything(&self) {
        self.inner().held = DesiredState::default();
        self.drift.send_modify(|d| d.repairs += 1);
    }

    /// What the kernel holds.
    pub fn held(&self) -> DesiredState {
        self.inner().held.clone()
    }

    /// Every state applied, in order.
    pub fn applied(&self) -> Vec<DesiredState> {
        self.inner().applied.clone()
    }

    /// Every cut asked for, in order.
    pub fn cuts(&self) -> Vec<Flows> {
        self.inner().cut.clone()
    }

    /// Every address announced, in order.
    pub fn announced(&self) -> Vec<IpAddr> {
        self.inner().announced.clone()
    }
}

fn difference(held: &DesiredState, desired: &DesiredState) -> Changes {
    fn sets<T: Ord + std::fmt::Debug>(
        changes: &mut Changes,
        held: &std::collections::BTreeSet<T>,
        desired: &std::collections::BTreeSet<T>,
    ) {
        for new in desired.difference(held) {
            changes.push(Operation::Add, format!("{new:?}"));
        }
        for old in held.difference(desired) {
            changes.push(Operation::Remove, format!("{old:?}"));
        }
    }
    let mut changes = Changes::default();
    if held.ruleset != desired.ruleset {
        changes.push(Operation::Change, "nftables table");
    }
    if held.seal != desired.seal {
        changes.push(Operation::Change, "sealing table");
    }
    if held.steering != desired.steering {
        changes.push(Operation::Change, "steering table");
    }
    if held.tunnel != desired.tunnel {
        changes.push(Operation::Change, "tunnel device");
    }
    changes.extend(wireguard::changes(
        held.wireguard.as_ref(),
        desired.wireguard.as_ref(),
    ));
    sets(&mut changes, &held.forwarding, &desired.forwarding);
    sets(&mut changes, &held.neighbours, &desired.neighbours);
    sets(&mut changes, &held.routes, &desired.routes);
    sets(&mut changes, &held.rules, &desired.rules);
    sets(&mut changes, &held.proxies, &desired.proxies);
    for (path, value) in &desired.sysctls {
        if held.sysctls.get(path) != Some(value) {
            changes.push(Operation::Change, format!("{path} = {value}"));
        }
    }
    changes
}

#[async_trait]
impl Kernel for RecordingKernel {
    async fn facts(&self, _underlay: &[IpAddr]) -> Result<Facts> {
        Ok(self.inner().facts.clone())
    }

    async fn apply(&self, desired: &DesiredState) -> Result<Changes> {
        let mut inner = self.inner();
        if let Some(message) = &inner.refuse {
            return Err(Error::Impossible(message.clone()));
        }
        let changes = difference(&inner.held, desired);
        let new: Vec<_> = desired
            .proxies
            .difference(&inner.held.proxies)
            .map(|p| p.address)
            .collect();
        inner.announced.extend(new);
        inner.held = desired.clone();
        inner.applied.push(desired.clone());
        match &inner.fail_one {
            Some(message) => Err(Error::Incomplete {
                done: changes,
                failures: vec![Error::Impossible(message.clone())],
            }),
            None => Ok(changes),
        }
    }

    async fn plan(&self, desired: &DesiredState) -> Result<Changes> {
        Ok(difference(&self.inner().held, desired))
    }

    async fn cut(&self, flows: &Flows) -> Result<usize> {
        self.inner().cut.push(flows.clone());
        Ok(0)
    }

    async fn announce(&self, addresses: &[IpAddr]) -> Result<()> {
        self.inner().announced.extend_from_slice(addresses);
        Ok(())
    }

    async fn encryption(&self) -> Result<Encryption> {
        Ok(self.inner().encryption.clone())
    }

    async fn port_use(&self, _of: &[(IpAddr, Vec<PortRange>)]) -> Result<Vec<PortCount>> {
        Ok(self.inner().port_use.clone())
    }

    async fn counts(&self) -> Result<Vec<RuleCount>> {
        Ok(self.inner().counts.clone())
    }

    fn drift(&self) -> watch::Receiver<Drift> {
        self.drift.subscribe()
    }
}

//! The one loop: something changed, so everything is resolved anew, and only differences go anywhere.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::{Api, Client};
use spillway_core::alloc::OverlayRange;
use spillway_core::resolve::{Resolution, resolve};
use spillway_crds::condition::{ConditionType, Verdict};
use spillway_crds::hub::{EgressGateway, Encryption, Member};
use spillway_crds::member::Tunnel;
use spillway_telemetry::Watchdog;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::allocate::Recorder;
use crate::api::{CALL_LIMIT, Failure, within};
use crate::lease::Leadership;
use crate::memory::{Memory, restore};
use crate::observed::Observed;
use crate::plans::Plans;
use crate::snapshot::{Mirrors, Snapshot};
use crate::status::Outcome;

/// Longest rest after a run. The first change of a burst is acted on at once, the rest together.
const PACE: Duration = Duration::from_millis(200);
/// Wait before looking again whether everything that the leader before recorded has arrived.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Wait before allocations that couldn't be recorded are resolved anew.
const RETRY: Duration = Duration::from_millis(300);

/// How a run ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// Nothing is left to do until something changes.
    Settled,
    /// Allocations were recorded, and the mirrors know them: the plans that waited for them can be made.
    Recorded,
    /// Something has to be tried again.
    Stuck,
    /// As settled, but no plan changes as long as some object can't be read.
    Held,
}

impl End {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Recorded => "recorded",
            Self::Stuck => "stuck",
            Self::Held => "held",
        }
    }
}

/// Runs in a row that may record something before the loop slows down.
const MOST_AGAIN: u32 = 4;

/// Makes a resolution say that nothing is done, and why.
fn hold(resolution: &mut Resolution, unknown: &[String]) {
    let names = unknown.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    let why = format!(
        "no plan changes while this hub can't read {names}; run the version of the hub that wrote it, correct it, or delete it"
    );
    resolution.gateways.clear();
    resolution.policies.clear();
    for verdicts in resolution.members.values_mut() {
        verdicts.retain(|v| v.kind != ConditionType::Programmed);
        verdicts.push(Verdict::no(ConditionType::Programmed, "PlanHeld", why.clone()));
    }
}

/// Waits for ever where there is nothing to wait for.
async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Resolves and distributes.
pub(crate) struct Reconciler {
    pub(crate) client: Client,
    pub(crate) mirrors: Mirrors,
    pub(crate) overlay: OverlayRange,
    pub(crate) tunnel: Tunnel,
    pub(crate) encryption: Encryption,
    pub(crate) plans: Arc<Plans>,
    pub(crate) leadership: Leadership,
    pub(crate) outcomes: watch::Sender<Outcome>,
    pub(crate) observed: Observed,
    pub(crate) watchdog: Watchdog,
}

impl Reconciler {
    /// Runs for ever. The mirrors must be in sync.
    pub(crate) async fn run(self) {
        let recorder = Recorder::new(&self.client, self.leadership.clone());
        let mut gained = self.leadership.clone();
        let mut memory = Memory::default();
        let mut leads = false;
        let mut again = 0;
        loop {
            let began = Instant::now();
            leads &= self.leadership.remaining().is_some();
            let end = self.round(leads, &recorder, &mut memory).await;
            self.observed.0.reconcile.observe(began.elapsed().as_secs_f64());
            self.observed.0.reconciles.inc([end.as_str()]);
            again = if end == End::Recorded { again + 1 } else { 0 };
            if (1..=MOST_AGAIN).contains(&again) {
                continue;
            }
            // At least half of the time is for others, however large the federation is.
            tokio::time::sleep(began.elapsed().min(PACE)).await;
            tokio::select! {
                () = self.mirrors.changed.notified() => {}
                () = gained.gained(), if !leads => {
                    leads = self.caught_up().await;
                    if !leads {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                }
                () = tokio::time::sleep(RETRY), if matches!(end, End::Recorded | End::Stuck) => {}
                () = until(memory.next_gone()) => {}
            }
        }
    }

    /// One run.
    async fn round(&self, leads: bool, recorder: &Recorder, memory: &mut Memory) -> End {
        let mut snapshot = self.mirrors.snapshot();
        let wiped = memory.mend(&mut snapshot);
        if leads && !wiped.is_empty() {
            restore(&self.client, &self.mirrors.members, &self.leadership, &wiped).await;
            return End::Stuck;
        }
        let Some(mut resolution) = self.resolve(&snapshot).await else {
            return End::Stuck;
        };
        if !snapshot.unknown.is_empty() {
            // Whatever would be planned or given away without these objects might take something from them.
            hold(&mut resolution, &snapshot.unknown);
            if memory.missed != snapshot.unknown {
                memory.missed.clone_from(&snapshot.unknown);
                tracing::error!(objects = ?snapshot.unknown, "plans are held: these objects counted before and can't be read by this hub");
            }
            self.outcomes.send_replace(Some(Arc::new((snapshot, resolution))));
            return End::Held;
        }
        let waiting = u32::try_from(resolution.waiting.len()).unwrap_or(u32::MAX);
        self.observed.0.plans_waiting.set(f64::from(waiting));
        for member in self.plans.publish(&resolution, snapshot.sure) {
            self.observed.0.plans_published.inc();
            let plan = &resolution.plans[&member];
            tracing::info!(cluster = member, plan = %plan.digest().short(), resources = plan.len(), "plan published");
        }
        if !leads || self.leadership.remaining().is_none() {
            return End::Settled;
        }
        if !resolution.allocations.is_empty() {
            let all = recorder
                .record(&self.mirrors, &snapshot, &resolution.allocations)
                .await;
            return if all { End::Recorded } else { End::Stuck };
        }
        self.outcomes.send_replace(Some(Arc::new((snapshot, resolution))));
        End::Settled
    }

    /// Resolution of a large federation takes a while and must not hold up the streams.
    async fn resolve(&self, snapshot: &Snapshot) -> Option<Resolution> {
        let mut state = snapshot.state(self.overlay, &self.tunnel, self.encryption);
        for member in &mut state.members {
            let programmed = member.progress.programmed.as_ref();
            let digest = programmed.and_then(|d| d.parse().ok());
            member.in_force = digest.and_then(|d| self.plans.past(&member.name, &d));
            let named: BTreeSet<_> = member.nodes.iter().filter_map(|n| n.programmed.clone()).collect();
            member.plans = named
                .into_iter()
                .filter_map(|d| {
                    let plan = self.plans.past(&member.name, &d.parse().ok()?)?;
                    Some((d, plan))
                })
                .collect();
        }
        let watchdog = self.watchdog.clone();
        let resolving = move || {
            let _working = watchdog.work();
            resolve(&state)
        };
        match tokio::task::spawn_blocking(resolving).await {
            Ok(resolution) => Some(resolution),
            Err(error) => {
                tracing::error!(%error, "resolution broke; plans stay as they are");
                None
            }
        }
    }

    /// True where this replica has seen everything that the leader before it recorded. Else it could give a
    /// number away that its copy doesn't know to be taken.
    async fn caught_up(&self) -> bool {
        self.has_newest().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "can't check yet what the leader before recorded");
            false
        })
    }

    /// By metadata, so that an object that can't be read stops nobody from leading.
    async fn has_newest(&self) -> Result<bool, Failure> {
        let params = ListParams::default();
        let members: Api<Member> = Api::all(self.client.clone());
        let gateways: Api<EgressGateway> = Api::all(self.client.clone());
        let members = within(CALL_LIMIT, members.list_metadata(&params)).await?;
        let gateways = within(CALL_LIMIT, gateways.list_metadata(&params)).await?;
        Ok(members.iter().all(|m| self.mirrors.members.seen(&m.metadata))
            && gateways.iter().all(|g| self.mirrors.gateways.seen(&g.metadata)))
    }
}

#[cfg(test)]
mod tests {
    use spillway_core::resolve::FederationState;
    use spillway_crds::hub::MemberSpec;

    use super::*;

    #[test]
    fn a_hub_that_misses_objects_says_so_and_nothing_else() {
        let mut state = FederationState::default();
        state
            .members
            .push((&Member::new("a", MemberSpec::default())).into());
        let mut resolution = resolve(&state);
        hold(&mut resolution, &["FederatedEgressPolicy payments/bank".into()]);
        assert!(resolution.policies.is_empty() && resolution.gateways.is_empty());
        let said: Vec<_> = resolution.members["a"]
            .iter()
            .filter(|v| v.kind == ConditionType::Programmed)
            .collect();
        assert_eq!((said.len(), said[0].reason.as_str()), (1, "PlanHeld"));
        assert!(said[0].message.contains("payments/bank"));
    }
}

//! The one loop: something changed, so everything is resolved anew, and only differences go anywhere.

use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::{Api, Client};
use spillway_core::alloc::OverlayRange;
use spillway_core::resolve::{Resolution, resolve};
use spillway_crds::hub::{EgressGateway, Member};
use spillway_crds::member::Tunnel;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::allocate::Recorder;
use crate::api::{CALL_LIMIT, Failure, within};
use crate::lease::Leadership;
use crate::plans::Plans;
use crate::snapshot::{Mirrors, Snapshot};
use crate::status::Outcome;

/// Least time between two runs: the first change of a burst is acted on at once, the rest together.
const PACE: Duration = Duration::from_millis(10);
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
}

/// Runs in a row that may record something before the loop slows down.
const MOST_AGAIN: u32 = 4;

/// Resolves and distributes.
pub(crate) struct Reconciler {
    pub(crate) client: Client,
    pub(crate) mirrors: Mirrors,
    pub(crate) overlay: OverlayRange,
    pub(crate) tunnel: Tunnel,
    pub(crate) plans: Arc<Plans>,
    pub(crate) leadership: Leadership,
    pub(crate) outcomes: watch::Sender<Outcome>,
}

impl Reconciler {
    /// Runs for ever. The mirrors must be in sync.
    pub(crate) async fn run(self) {
        let recorder = Recorder::new(&self.client, self.leadership.clone());
        let mut gained = self.leadership.clone();
        let mut leads = false;
        let mut again = 0;
        loop {
            let began = Instant::now();
            let end = self.round(leads, &recorder).await;
            again = if end == End::Recorded { again + 1 } else { 0 };
            if (1..=MOST_AGAIN).contains(&again) {
                continue;
            }
            tokio::time::sleep_until(began + PACE).await;
            tokio::select! {
                () = self.mirrors.changed.notified() => {}
                () = gained.gained(), if !leads => {
                    self.caught_up().await;
                    leads = true;
                }
                () = tokio::time::sleep(RETRY), if end != End::Settled => {}
            }
        }
    }

    /// One run.
    async fn round(&self, leads: bool, recorder: &Recorder) -> End {
        let snapshot = self.mirrors.snapshot();
        let Some(resolution) = self.resolve(&snapshot).await else {
            return End::Stuck;
        };
        for member in self.plans.publish(&resolution, snapshot.sure) {
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
        let mut state = snapshot.state(self.overlay, &self.tunnel);
        for member in &mut state.members {
            let programmed = member.progress.programmed.as_ref();
            let digest = programmed.and_then(|d| d.parse().ok());
            member.in_force = digest.and_then(|d| self.plans.past(&member.name, &d));
        }
        match tokio::task::spawn_blocking(move || resolve(&state)).await {
            Ok(resolution) => Some(resolution),
            Err(error) => {
                tracing::error!(%error, "resolution broke; plans stay as they are");
                None
            }
        }
    }

    /// Waits until this replica has seen everything that the leader before it recorded. Else it could give
    /// a number away that its copy doesn't know to be taken.
    async fn caught_up(&self) {
        loop {
            match self.has_newest().await {
                Ok(true) => return,
                Ok(false) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => {
                    tracing::warn!(%error, "can't check yet what the leader before recorded");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn has_newest(&self) -> Result<bool, Failure> {
        let params = ListParams::default();
        let members: Api<Member> = Api::all(self.client.clone());
        let gateways: Api<EgressGateway> = Api::all(self.client.clone());
        let members = within(CALL_LIMIT, members.list(&params)).await?;
        let gateways = within(CALL_LIMIT, gateways.list(&params)).await?;
        Ok(members.iter().all(|m| self.mirrors.members.has(m))
            && gateways.iter().all(|g| self.mirrors.gateways.has(g)))
    }
}

//! What this agent measures. What is a state is read when somebody scrapes it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::Node;
use spillway_core::plan::{Digest, digest_of};
use spillway_crds::member::EgressNode;
use spillway_telemetry::Book;
use spillway_telemetry::member::MemberMetrics;

use crate::mirror::Mirror;
use crate::plan::Contents;
use crate::progress::Progress;
use crate::report;
use crate::uplink::DisconnectReason;

/// The metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Observed(pub(crate) MemberMetrics);

impl Observed {
    /// Declares the metrics in `book`.
    pub(crate) fn new(book: &mut Book) -> Self {
        Self(MemberMetrics::new(book))
    }

    /// There is no connection any more, or still none.
    pub(crate) fn disconnected(&self, reason: &DisconnectReason) {
        let reason = match reason {
            DisconnectReason::Unreachable { .. } => "unreachable",
            DisconnectReason::NotOurHub { .. } => "not_our_hub",
            DisconnectReason::NotAccepted(_) => "not_accepted",
            DisconnectReason::Revoked(_) => "revoked",
            DisconnectReason::StaleHub { .. } => "stale_hub",
            DisconnectReason::Expired(_) => "expired",
            DisconnectReason::BadIdentity(_) => "bad_identity",
            DisconnectReason::Closed(_) => "closed",
            DisconnectReason::Silent => "silent",
            DisconnectReason::Renewed => "renewed",
        };
        self.0.disconnects.inc([reason]);
    }

    /// A plan of the hub was stored, or not.
    pub(crate) fn applied(&self, took: Duration, stored: bool) {
        self.0.apply.observe(took.as_secs_f64());
        if stored {
            self.0.plans_applied.inc();
            self.found();
        } else {
            self.0.plans_refused.inc();
        }
    }

    /// There is a plan as of now.
    pub(crate) fn found(&self) {
        self.0.plan_stored.set(unix(SystemTime::now()));
    }

    /// Brings the states up to date.
    pub(crate) fn refresh(
        &self,
        progress: &Progress,
        contents: &Contents,
        nodes: &Mirror<Node>,
        egress: &Mirror<EgressNode>,
    ) {
        let metrics = &self.0;
        let connected = progress.connected.status == Some(true);
        metrics.connected.set(f64::from(u8::from(connected)));
        metrics.certificate_expiry.set(progress.expires.map_or(0.0, unix));
        metrics.plan_resources.set(count(contents.entries.len()));
        let plan = contents.digest();
        let matches = plan.is_some() && plan == Some(digest_of(&contents.digests()));
        metrics.plan_matches.set(f64::from(u8::from(matches)));
        let programmed = report::progress(&nodes.objects(), &egress.objects());
        let is_current = |digest: &&Option<Digest>| plan.is_some() && **digest == plan;
        let current = programmed.values().filter(is_current).count();
        let states = [("current", current), ("behind", programmed.len() - current)];
        metrics
            .nodes
            .replace(states.map(|(state, n)| ([state.to_owned()], count(n))));
    }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

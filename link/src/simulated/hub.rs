//! The hub's backend: knows what was published, and has an opinion on all it is told.

use std::sync::Arc;

use async_trait::async_trait;
use spillway_core::plan::{Digest, Plan};
use tokio::sync::watch;

use super::net::Process;
use super::world::Truth;
use crate::MemberReport;
use crate::hub::{
    EnrollRefusal, EnrollRequest, Enrolled, HubBackend, PublishedPlan, Refusal, SessionInfo, Unavailable,
};

pub(super) struct Mind {
    pub(super) process: Process,
    pub(super) truth: Arc<Truth>,
}

#[async_trait]
impl HubBackend for Mind {
    async fn enroll(&self, _: EnrollRequest) -> Result<Enrolled, EnrollRefusal> {
        Err(EnrollRefusal::TokenUnknown)
    }

    fn revoked(&self, _: &SessionInfo) -> bool {
        false
    }

    fn plan(&self, member: &str) -> watch::Receiver<Option<Arc<PublishedPlan>>> {
        let mut facts = self.truth.facts();
        if !facts.synced {
            // What would come of caches that are empty so far.
            facts.violate(format!("{member} was served before the caches were read"));
            let nothing = PublishedPlan {
                plan: Arc::new(Plan::default()),
                removal_intended: true,
            };
            return watch::channel(Some(Arc::new(nothing))).1;
        }
        facts.plans(member)
    }

    async fn connected(&self, _: &SessionInfo) {
        self.process.alive().await;
    }

    async fn disconnected(&self, _: &SessionInfo, _: &str) {
        self.process.alive().await;
    }

    async fn acknowledged(&self, session: &SessionInfo, digest: Digest) {
        self.process.alive().await;
        let mut facts = self.truth.facts();
        let member = facts.member(&session.member);
        member.acknowledged = Some(digest);
        // One update at a time: what was acknowledged is held until the next one is sent.
        if member.held.digest() != Some(digest) && !member.damaged {
            let held = member
                .held
                .digest()
                .map_or_else(|| "nothing".into(), |d| d.short());
            facts.violate(format!(
                "the hub believes that {} holds {}; it holds {held}",
                session.member,
                digest.short()
            ));
        }
    }

    async fn refused(&self, session: &SessionInfo, refusal: Refusal) {
        self.process.alive().await;
        let mut facts = self.truth.facts();
        let known = |d| {
            facts.members[&session.member]
                .published
                .iter()
                .any(|(digest, _)| *digest == d)
        };
        if !known(refusal.digest) {
            facts.violate(format!(
                "{} refused {refusal:?}, of which nobody knows",
                session.member
            ));
        }
        facts.member(&session.member).refusals.push(refusal);
    }

    async fn reported(&self, session: &SessionInfo, report: MemberReport) {
        self.process.alive().await;
        let mut facts = self.truth.facts();
        if let Some(node) = report.nodes.iter().find(|n| n.name != session.member) {
            facts.violate(format!("{} reports for {}", session.member, node.name));
        }
        facts.member(&session.member).programmed = report.programmed;
    }

    async fn leave(&self, session: &SessionInfo) -> Result<(), Unavailable> {
        self.truth.facts().violate(format!("{} leaves", session.member));
        Err(Unavailable("nobody leaves".into()))
    }
}

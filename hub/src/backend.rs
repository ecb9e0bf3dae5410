//! What sessions ask of the hub, and where what members tell goes.
//!
//! A member's status has one writer task a replica, fed with the newest state only: a slow API server
//! delays nobody else, and a burst of reports becomes one write.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};
use spillway_core::plan::Digest;
use spillway_crds::hub::Member;
use spillway_link::MemberReport;
use spillway_link::hub::{
    EnrollRefusal, EnrollRequest, Enrolled, HubBackend, LinkEvent, PublishedPlan, Refusal, Renewal,
    SessionInfo, Unavailable,
};
use spillway_link::pki::TrustState;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{CALL_LIMIT, Failure, Guard, LINK, apply_status, within};
use crate::enroll::{Registrar, is_good};
use crate::mirror::{Key, Mirror};
use crate::observed::Observed;
use crate::plans::Plans;
use crate::report::{Fields, LinkStatus, version};
use crate::rotation::outdated;

/// Wait before a status that couldn't be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Rest after a write, so that a member that tells something new all the time makes no more work than this.
const PACE: Duration = Duration::from_millis(25);
/// Least time between two corrections of what somebody else wrote.
const CORRECTION: Duration = Duration::from_secs(30);
/// Longest time to let a new member show up in this replica's copy before it is told that it is in.
const SHOW_LIMIT: Duration = Duration::from_secs(3);

/// One member as this replica's sessions know it.
struct Entry {
    status: watch::Sender<LinkStatus>,
    /// The live session, if there is one.
    session: Option<u64>,
    /// When it began.
    since: Instant,
}

/// State that sessions share.
pub(crate) struct Backend {
    replica: String,
    api: Api<Member>,
    members: Mirror<Member>,
    plans: Arc<Plans>,
    registrar: Registrar,
    entries: Mutex<BTreeMap<String, Entry>>,
    writers: Mutex<JoinSet<()>>,
    observed: Observed,
}

impl Backend {
    pub(crate) fn new(
        client: &Client,
        namespace: &str,
        replica: &str,
        members: Mirror<Member>,
        plans: Arc<Plans>,
        restored_to: Option<Timestamp>,
        observed: Observed,
    ) -> Self {
        Self {
            replica: replica.into(),
            api: Api::all(client.clone()),
            members,
            plans,
            registrar: Registrar::new(client, namespace, restored_to),
            entries: Mutex::default(),
            writers: Mutex::default(),
            observed,
        }
    }

    /// Streams that this replica serves.
    pub(crate) fn streams(&self) -> usize {
        self.locked().values().filter(|e| e.session.is_some()).count()
    }

    /// Members that are on record as connected to an earlier life of this replica aren't.
    pub(crate) fn adopt(&self) {
        for (key, member) in self.members.objects() {
            let recorded = LinkStatus::recorded(member.status.as_ref());
            if recorded.connected && recorded.replica.as_ref() == Some(&self.replica) {
                self.update(&key.name, |status, _| {
                    status.connected = false;
                    status.why = "the hub's replica restarted".into();
                });
            }
        }
    }

    /// Waits until everything that members told is written, for at most `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        self.locked().clear();
        let mut writers = std::mem::take(&mut *self.writers.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async { while writers.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("the last statuses of some members couldn't be written");
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is to be written of a member. The first change starts from what is on record.
    fn update(&self, member: &str, change: impl FnOnce(&mut LinkStatus, &mut Option<u64>)) {
        let mut entries = self.locked();
        let entry = entries.entry(member.into()).or_insert_with(|| {
            let known = self.members.get(&Key::cluster(member));
            let status = watch::Sender::new(recorded(known.as_deref()));
            let writer = Writer {
                replica: self.replica.clone(),
                member: member.into(),
                api: self.api.clone(),
                members: self.members.clone(),
            };
            let follow = status.subscribe();
            let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
            // Members that are gone have ended their writers; their results hold memory until taken.
            while writers.try_join_next().is_some() {}
            writers.spawn(writer.run(follow));
            Entry {
                status,
                session: None,
                since: Instant::now(),
            }
        });
        let before = entry.session;
        let Entry { status, session, .. } = entry;
        status.send_modify(|s| change(s, session));
        if entry.session != before {
            entry.since = Instant::now();
        }
    }

    /// The same for what a live session says; what a session says that another has replaced is void.
    fn told(&self, session: &SessionInfo, change: impl FnOnce(&mut LinkStatus)) {
        self.update(&session.member, |status, live| {
            if *live == Some(session.id) {
                change(status);
            }
        });
    }

    fn forget(&self, member: &str) {
        self.locked().remove(member);
    }
}

#[async_trait]
impl HubBackend for Backend {
    async fn enroll(&self, request: EnrollRequest) -> Result<Enrolled, EnrollRefusal> {
        let member = self
            .registrar
            .enroll(&request)
            .await
            .inspect_err(|why| self.observed.enrolled(Err(why)))
            .inspect_err(|why| tracing::info!(cluster = request.member, token = request.token.id(), %why, "enrolment refused"))?;
        self.members.written(member.clone());
        // The member calls at once; this replica should know it by then. The others may lag and are tried again.
        let shown = async {
            while !self.members.has(&member) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(SHOW_LIMIT, shown).await;
        self.observed.enrolled(Ok(()));
        tracing::info!(cluster = request.member, serial = %request.serial, "member enrolled");
        Ok(Enrolled)
    }

    async fn renewed(&self, renewal: &Renewal) -> Result<(), Unavailable> {
        let written = self
            .registrar
            .renewed(renewal)
            .await
            .map_err(|e| Unavailable(e.to_string()))?
            .ok_or_else(|| {
                Unavailable(format!(
                    "the certificate of {} was revoked meanwhile",
                    renewal.old.member
                ))
            })?;
        self.members.written(written);
        self.observed.0.renewals.inc();
        tracing::info!(cluster = renewal.old.member, serial = %renewal.new_serial, "certificate renewed");
        Ok(())
    }

    fn revoked(&self, session: &SessionInfo) -> bool {
        let known = self.members.get(&Key::cluster(&session.member));
        !known.is_some_and(|m| is_good(&m, &session.serial) || self.registrar.is_newer(&m, session))
    }

    fn outdated(&self, member: &str, serial: &str, now: &TrustState) -> bool {
        let known = self.members.get(&Key::cluster(member));
        known.is_some_and(|m| outdated(&m, serial, now))
    }

    fn plan(&self, member: &str) -> watch::Receiver<Option<Arc<PublishedPlan>>> {
        self.plans.subscribe(member)
    }

    async fn connected(&self, session: &SessionInfo) {
        tracing::info!(cluster = session.member, session = session.id, peer = ?session.peer, version = session.agent_version, held = ?session.held, "member connected");
        let mut known = self.members.get(&Key::cluster(&session.member));
        if known.as_ref().is_some_and(|m| !is_good(m, &session.serial)) {
            match self.registrar.adopt(session).await {
                Ok(Some(written)) => {
                    tracing::warn!(
                        cluster = session.member,
                        serial = session.serial,
                        "the member's certificate is newer than the backup that this hub was restored from; it is on record now"
                    );
                    known = Some(Arc::new(written.clone()));
                    self.members.written(written);
                }
                Ok(None) => {}
                // It is good all the same, and the next stream or renewal brings it on record.
                Err(error) => {
                    tracing::warn!(cluster = session.member, %error, "the member's certificate can't be put on record");
                }
            }
        }
        self.update(&session.member, |status, live| {
            if live.is_none() {
                // Another replica may have held the stream since this one did.
                *status = recorded(known.as_deref());
            }
            *live = Some(session.id);
            status.connected = true;
            status.replica = Some(self.replica.clone());
            status.serial_in_use = Some(session.serial.clone());
            status.agent_version = version(&session.agent_version);
            status.plan.acknowledged = session.held.map(|d| d.to_string());
        });
    }

    async fn disconnected(&self, session: &SessionInfo, why: &str) {
        tracing::info!(
            cluster = session.member,
            session = session.id,
            why,
            "member disconnected"
        );
        let replica = &self.replica;
        self.update(&session.member, |status, live| {
            if *live == Some(session.id) {
                *live = None;
                status.connected = false;
                status.why = format!("the stream to {replica} ended: {why}");
            }
        });
        if self.members.get(&Key::cluster(&session.member)).is_none() {
            self.forget(&session.member);
        }
    }

    async fn acknowledged(&self, session: &SessionInfo, digest: Digest) {
        tracing::debug!(cluster = session.member, plan = %digest.short(), "plan acknowledged");
        self.observed.0.plans_acknowledged.inc();
        let since = self.locked().get(&session.member).map(|e| e.since);
        if let Some(published) = self.plans.acknowledged(&session.member, &digest)
            && since.is_some_and(|since| since <= published)
        {
            self.observed
                .0
                .acknowledge
                .observe(published.elapsed().as_secs_f64());
        }
        self.told(session, |status| {
            status.plan.acknowledged = Some(digest.to_string());
            status.plan.refusal = None;
        });
    }

    async fn refused(&self, session: &SessionInfo, refusal: Refusal) {
        tracing::warn!(cluster = session.member, plan = %refusal.digest.short(), resource = refusal.resource, reason = refusal.reason, "plan refused");
        self.observed.0.plans_refused.inc();
        self.told(session, |status| status.refuse(&refusal));
    }

    async fn reported(&self, session: &SessionInfo, report: MemberReport) {
        self.told(session, |status| status.report(report));
    }

    fn happened(&self, event: LinkEvent) {
        self.observed.link(event);
    }

    async fn leave(&self, session: &SessionInfo) -> Result<(), Unavailable> {
        let name = &session.member;
        let Some(member) = self.members.get(&Key::cluster(name)) else {
            return Ok(());
        };
        // Not another cluster that took the name meanwhile.
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: member.metadata.uid.clone(),
            resource_version: None,
        });
        match within(CALL_LIMIT, self.api.delete(name, &params)).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(Unavailable(error.to_string())),
        }
        self.forget(name);
        tracing::info!(cluster = name, "member left");
        Ok(())
    }
}

/// What is on record of this very object: one of the same name that is made later has a record of its own.
fn recorded(member: Option<&Member>) -> LinkStatus {
    LinkStatus {
        uid: member.and_then(|m| m.metadata.uid.clone()),
        ..LinkStatus::recorded(member.and_then(|m| m.status.as_ref()))
    }
}

/// True where somebody else has changed what the live stream to `replica` decides.
fn overwritten(wanted: &LinkStatus, known: &Member, replica: &str) -> bool {
    let holder = known.status.as_ref().and_then(|s| s.connected_to.as_deref());
    wanted.connected
        && wanted.uid == known.metadata.uid
        && holder.is_none_or(|h| h == replica)
        && wanted.wanted(known, Timestamp::now()) != Fields::standing(known)
}

/// Writes one member's status.
struct Writer {
    replica: String,
    member: String,
    api: Api<Member>,
    members: Mirror<Member>,
}

impl Writer {
    /// Until nobody feeds it any more and all is written.
    async fn run(self, mut status: watch::Receiver<LinkStatus>) {
        // What is on record needn't be written: only changes are.
        let mut objects = self.members.changes();
        let mut looked: Option<Arc<Member>> = None;
        let mut corrected: Option<Instant> = None;
        loop {
            tokio::select! {
                told = status.changed() => if told.is_err() {
                    return;
                },
                _ = objects.changed() => {
                    let known = self.members.get(&Key::cluster(&self.member));
                    let Some(known) = known.filter(|k| !looked.as_ref().is_some_and(|l| Arc::ptr_eq(l, k))) else {
                        continue;
                    };
                    let wrong = overwritten(&status.borrow(), &known, &self.replica);
                    looked = Some(known);
                    if !wrong || corrected.is_some_and(|at| at.elapsed() < CORRECTION) {
                        continue;
                    }
                    corrected = Some(Instant::now());
                    tracing::warn!(cluster = self.member, "somebody changed what the member reported; putting it back");
                }
            }
            loop {
                let wanted = status.borrow_and_update().clone();
                match self.write(&wanted).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(cluster = self.member, %error, "the member's status can't be written; trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
                if status.has_changed().is_err() {
                    // The process is ending; the leader will notice what was left unsaid.
                    return;
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn write(&self, wanted: &LinkStatus) -> Result<(), Failure> {
        let Some(known) = self.members.get(&Key::cluster(&self.member)) else {
            return Ok(());
        };
        if known.metadata.uid != wanted.uid {
            return Ok(());
        }
        let now = Timestamp::now();
        let written = if wanted.connected {
            let fields = wanted.wanted(&known, now);
            if fields == Fields::standing(&known) {
                return Ok(());
            }
            apply_status(
                &self.api,
                LINK,
                &known.metadata,
                Guard::Object,
                &fields,
                CALL_LIMIT,
            )
            .await
        } else {
            // Another replica may hold the stream by now; only the newest version can tell.
            let newest = match within(CALL_LIMIT, self.api.get(&self.member)).await {
                Err(error) if error.is_not_found() => return Ok(()),
                newest => newest?,
            };
            let holder = newest.status.as_ref().and_then(|s| s.connected_to.as_ref());
            let fields = wanted.wanted(&newest, now);
            let another = newest.metadata.uid != wanted.uid || holder.is_some_and(|h| *h != self.replica);
            if another || fields == Fields::standing(&newest) {
                return Ok(());
            }
            apply_status(
                &self.api,
                LINK,
                &newest.metadata,
                Guard::Version,
                &fields,
                CALL_LIMIT,
            )
            .await
        };
        match written {
            Ok(member) => {
                self.members.written(member);
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_crds::hub::{MemberNode, MemberSpec, MemberStatus};

    use super::*;

    #[test]
    fn only_the_stream_that_is_on_record_puts_back_what_others_wrote() {
        let mut member = Member::new("a", MemberSpec::default());
        member.metadata.uid = Some("1".into());
        let status = LinkStatus {
            connected: true,
            replica: Some("hub-0".into()),
            nodes: vec![MemberNode {
                name: "n".into(),
                ..MemberNode::default()
            }],
            ..recorded(Some(&member))
        };
        let fields = serde_json::to_value(status.wanted(&member, Timestamp::now())).expect("plain");
        member.status = Some(serde_json::from_value(fields).expect("fields of a status"));
        assert!(!overwritten(&status, &member, "hub-0"), "as it should be");
        member.status = Some(MemberStatus::default());
        assert!(overwritten(&status, &member, "hub-0"), "wiped");
        let taken_over = MemberStatus {
            connected_to: Some("hub-1".into()),
            ..MemberStatus::default()
        };
        member.status = Some(taken_over);
        assert!(
            !overwritten(&status, &member, "hub-0"),
            "another replica's by now"
        );
        member.status = Some(MemberStatus::default());
        member.metadata.uid = Some("2".into());
        assert!(!overwritten(&status, &member, "hub-0"), "another object");
    }
}

//! One member's stream, from its hello to its end. What the network does to one session, slow reader
//! included, stays in that session: it holds at most one update and asks the plan's watch for the newest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use spillway_core::plan::{Digest, ResourceKey, digest_of};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::outbox::{Due, Outbox};
use super::registry::{Place, Registry};
use super::{HubBackend, HubConfig, LinkEvent, PublishedPlan, Refusal, SessionInfo, StreamEnd};
use crate::PROTOCOL;
use crate::frames::{PIECE, digest, key};
use crate::pki::AuthoritiesWatch;
use crate::proto::{self, HubMessage, MemberMessage, hub_message, member_message};
use crate::reports::Assembly;

/// What a stream needs that doesn't change.
pub(super) struct Context {
    pub(super) config: Arc<HubConfig>,
    pub(super) backend: Arc<dyn HubBackend>,
    pub(super) registry: Arc<Registry>,
    pub(super) authorities: AuthoritiesWatch,
    pub(super) shutdown: CancellationToken,
}

/// The two directions of a stream.
pub(super) struct Wires {
    pub(super) inbound: Streaming<MemberMessage>,
    pub(super) outbound: mpsc::Sender<Result<HubMessage, Status>>,
}

/// Serves the stream. The certificate was checked before.
pub(super) async fn run(context: Context, mut info: SessionInfo, mut wires: Wires) {
    let hello = match hello(&context.config, &mut wires.inbound).await {
        Ok(hello) => hello,
        Err(status) => {
            debug!(member = info.member, error = %status, "a member said no hello");
            context.backend.happened(LinkEvent::Ended(StreamEnd::of(&status)));
            let _ = wires.outbound.try_send(Err(status));
            return;
        }
    };
    info.agent_version = hello.agent_version.chars().take(64).collect();
    info.protocol = hello.protocol;
    info.held = digest(&hello.digest);

    let place = context.registry.claim(&info.member);
    let entered = tokio::select! {
        entered = place.enter() => Some(entered),
        () = place.superseded.cancelled() => None,
        () = wires.outbound.closed() => None,
        () = context.shutdown.cancelled() => None,
    };
    if entered.is_some() {
        info!(
            member = info.member,
            serial = info.serial,
            session = info.id,
            peer = ?info.peer,
            "a member has connected"
        );
        context.backend.connected(&info).await;
        let mut session = Session::new(&context, &info, &hello, wires.outbound.clone());
        let end = session.serve(&mut wires.inbound, &place).await;
        let why = if session.left {
            StreamEnd::Left
        } else {
            StreamEnd::of(&end)
        };
        context.backend.happened(LinkEvent::Ended(why));
        info!(
            member = info.member,
            session = info.id,
            reason = end.message(),
            "a member's stream has ended"
        );
        context.backend.disconnected(&info, end.message()).await;
        if end.code() != tonic::Code::Ok {
            // Where the queue is full the member isn't reading anyway and will see the stream break.
            let _ = wires.outbound.try_send(Err(end));
        }
    }
    context.registry.release(&info.member, place, entered);
}

async fn hello(config: &HubConfig, inbound: &mut Streaming<MemberMessage>) -> Result<proto::Hello, Status> {
    let first = tokio::time::timeout(config.silence_limit, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello"))??;
    match first.and_then(|m| m.message) {
        Some(member_message::Message::Hello(hello)) if hello.protocol >= 1 => Ok(hello),
        _ => Err(Status::invalid_argument("a stream begins with a hello")),
    }
}

/// What the member says it holds, where a delta can be built upon it.
pub(crate) fn inventory(config: &HubConfig, hello: &proto::Hello) -> Option<BTreeMap<ResourceKey, Digest>> {
    if hello.hub_id != config.hub_id || hello.epoch != config.epoch {
        return None;
    }
    let held: Option<BTreeMap<_, _>> = hello
        .inventory
        .iter()
        .map(|h| Some((key(&h.kind, &h.name).ok()?, digest(&h.digest)?)))
        .collect();
    held.filter(|h| Some(digest_of(h)) == digest(&hello.digest))
}

struct Session<'a> {
    config: &'a HubConfig,
    backend: &'a dyn HubBackend,
    authorities: &'a AuthoritiesWatch,
    shutdown: &'a CancellationToken,
    info: &'a SessionInfo,
    plan: watch::Receiver<Option<Arc<PublishedPlan>>>,
    outbox: Outbox,
    reports: Assembly,
    outbound: mpsc::Sender<Result<HubMessage, Status>>,
    pending: VecDeque<hub_message::Message>,
    ping_pending: bool,
    heard: Instant,
    stale: Option<u64>,
    /// What the backend was last told that the member holds.
    told: Option<Digest>,
    /// When the member was last asked to renew.
    asked_to_renew: Option<Instant>,
    /// The member was let go; only that is still to be said.
    left: bool,
}

impl<'a> Session<'a> {
    fn new(
        context: &'a Context,
        info: &'a SessionInfo,
        hello: &proto::Hello,
        outbound: mpsc::Sender<Result<HubMessage, Status>>,
    ) -> Self {
        let config = &*context.config;
        let welcome = hub_message::Message::Welcome(proto::Welcome {
            hub_id: config.hub_id.clone(),
            epoch: config.epoch,
            protocol: PROTOCOL,
        });
        let stale = (hello.hub_id == config.hub_id && hello.epoch > config.epoch).then_some(hello.epoch);
        Self {
            config,
            backend: &*context.backend,
            authorities: &context.authorities,
            shutdown: &context.shutdown,
            info,
            plan: context.backend.plan(&info.member),
            outbox: Outbox::new(inventory(config, hello), config.retry_refused, PIECE),
            reports: Assembly::default(),
            outbound,
            pending: VecDeque::from([welcome]),
            ping_pending: false,
            heard: Instant::now(),
            stale,
            told: None,
            asked_to_renew: None,
            left: false,
        }
    }

    /// Runs until something ends the stream; says what.
    async fn serve(&mut self, inbound: &mut Streaming<MemberMessage>, place: &Place) -> Status {
        if let Some(held) = self.stale {
            return self.refuse_to_go_back(held).await;
        }
        let outbound = self.outbound.clone();
        let mut ping = tokio::time::interval(self.config.ping_interval);
        let mut check = tokio::time::interval(self.config.revocation_interval);
        // After a slow backend call, one tick is enough.
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut plan_is_watched = true;
        loop {
            if self.left && self.pending.is_empty() {
                return Status::ok("the member has left");
            }
            if let Err(end) = self.offer().await {
                return end;
            }
            let retry = self.outbox.retry_at().map(Instant::from_std);
            let silent = self.heard + self.config.silence_limit;
            tokio::select! {
                // What ends a stream comes before what goes on in it, and what was received before the
                // verdict that nothing was.
                biased;
                () = place.superseded.cancelled() => {
                    return Status::aborted("a newer stream of the same member has begun");
                }
                () = self.shutdown.cancelled() => return Status::unavailable("this hub replica shuts down"),
                _ = check.tick() => {
                    if let Err(end) = self.check() {
                        return end;
                    }
                    self.ask_to_renew();
                }
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        self.heard = Instant::now();
                        if let Err(end) = self.receive(message).await {
                            return end;
                        }
                    }
                    Ok(None) => return Status::ok("the member ended the stream"),
                    Err(e) => return e,
                },
                () = outbound.closed() => return Status::cancelled("the connection broke"),
                permit = outbound.reserve(), if !self.pending.is_empty() => {
                    let (Ok(permit), Some(message)) = (permit, self.pending.pop_front()) else {
                        return Status::cancelled("the connection broke");
                    };
                    self.ping_pending &= !matches!(message, hub_message::Message::Ping(_));
                    permit.send(Ok(HubMessage { message: Some(message) }));
                }
                changed = self.plan.changed(), if plan_is_watched => plan_is_watched = changed.is_ok(),
                _ = ping.tick() => if !self.ping_pending {
                    self.ping_pending = true;
                    self.pending.push_back(hub_message::Message::Ping(proto::Ping {}));
                },
                () = sleep_until(retry) => {}
                () = tokio::time::sleep_until(silent) => {
                    return Status::deadline_exceeded("the member went silent");
                }
            }
        }
    }

    /// Tells the member who we are and the backend that nothing will go there.
    async fn refuse_to_go_back(&mut self, held: u64) -> Status {
        let reason = format!(
            "the member holds a plan of epoch {held}, this hub is at {}: it was restored from an old \
             backup; raise its epoch",
            self.config.epoch
        );
        warn!(member = self.info.member, reason, "a member is ahead of this hub");
        let newest = self.plan.borrow_and_update().clone();
        let digest = newest.map(|p| p.plan.digest()).unwrap_or_default();
        self.backend
            .refused(self.info, Refusal::of(digest, None, reason.clone()))
            .await;
        while let Some(message) = self.pending.pop_front() {
            let _ = self.outbound.try_send(Ok(HubMessage {
                message: Some(message),
            }));
        }
        Status::failed_precondition(reason)
    }

    /// Is the certificate still good?
    fn check(&self) -> Result<(), Status> {
        if self.left {
            // Letting it go has revoked it; the word of that must still reach it.
            return Ok(());
        }
        good(self.backend, self.info)
    }

    /// A CA is on its way in or out, and what the member holds doesn't fit any more.
    fn ask_to_renew(&mut self) {
        let wait = self.config.retry_renewal;
        if self.left || self.asked_to_renew.is_some_and(|at| at.elapsed() < wait) {
            return;
        }
        let now = self.authorities.borrow().clone();
        let SessionInfo { member, serial, .. } = self.info;
        if self.backend.outdated(member, serial, now.state()) {
            info!(
                member,
                serial, "the hub's CAs change: the member is asked to renew"
            );
            self.asked_to_renew = Some(Instant::now());
            let within_seconds = u32::try_from(self.config.renewal_spread.as_secs()).unwrap_or(u32::MAX);
            self.pending
                .push_back(hub_message::Message::Renew(proto::Renew { within_seconds }));
        }
    }

    async fn offer(&mut self) -> Result<(), Status> {
        if self.left {
            return Ok(());
        }
        let newest = self.plan.borrow_and_update().clone();
        match self.outbox.due(newest.as_ref(), Instant::now().into_std()) {
            Due::Nothing => {
                // Held since before it connected, or since before an update that it refused.
                if let Some(digest) = self.outbox.holds_newest() {
                    self.tell(digest).await;
                }
            }
            Due::Send(frames) => {
                self.check()?;
                debug!(
                    member = self.info.member,
                    pieces = frames.len(),
                    "a plan update is on its way"
                );
                self.backend.happened(LinkEvent::UpdateSent);
                self.pending
                    .extend(frames.into_iter().map(hub_message::Message::Plan));
            }
            Due::Unsendable(refusal) => {
                warn!(member = self.info.member, ?refusal, "a plan can't be sent");
                self.backend.refused(self.info, refusal).await;
            }
        }
        Ok(())
    }

    async fn tell(&mut self, digest: Digest) {
        if self.told != Some(digest) {
            self.told = Some(digest);
            self.backend.acknowledged(self.info, digest).await;
        }
    }

    async fn receive(&mut self, message: MemberMessage) -> Result<(), Status> {
        use member_message::Message;
        let member = self.info.member.as_str();
        match message.message {
            Some(Message::Ack(ack)) => {
                if let Some(digest) = self.outbox.acknowledge(ack.nonce, digest(&ack.digest)) {
                    debug!(member, digest = digest.short(), "a plan was acknowledged");
                    self.tell(digest).await;
                }
            }
            Some(Message::Nack(nack)) => {
                if let Some(digest) = self.outbox.refuse(nack.nonce, Instant::now().into_std()) {
                    let refusal = Refusal {
                        digest,
                        resource: nack.resource.chars().take(512).collect(),
                        reason: nack.reason.chars().take(1024).collect(),
                    };
                    warn!(member, ?refusal, "a member keeps its old plan");
                    self.told = None;
                    self.backend.refused(self.info, refusal).await;
                }
            }
            Some(Message::Resync(resync)) => {
                if self.outbox.resync(resync.nonce, Instant::now().into_std()) {
                    let reason: String = resync.reason.chars().take(1024).collect();
                    info!(member, reason, "a member wants the whole plan");
                }
            }
            Some(Message::Report(part)) => {
                let report = self.reports.accept(&part);
                if let Some(report) = report.map_err(|e| Status::invalid_argument(e.to_string()))? {
                    self.backend.reported(self.info, report).await;
                }
            }
            Some(Message::Leave(_)) => match self.backend.leave(self.info).await {
                Ok(()) => {
                    info!(member, "a member leaves");
                    self.left = true;
                    self.pending.clear();
                    self.pending
                        .push_back(hub_message::Message::LeaveAccepted(proto::LeaveAccepted {}));
                }
                // The member asks again after its own time limit.
                Err(e) => warn!(member, error = %e, "a member can't be let go yet"),
            },
            // A second hello means nothing; unknown messages are those of a newer member.
            Some(Message::Pong(_) | Message::Hello(_)) | None => {}
        }
        Ok(())
    }
}

/// Refuses a certificate that has ended or was revoked.
pub(super) fn good(backend: &dyn HubBackend, info: &SessionInfo) -> Result<(), Status> {
    if SystemTime::now() >= info.not_after {
        return Err(Status::unauthenticated(
            "the member's certificate has ended; renew it",
        ));
    }
    if backend.revoked(info) {
        return Err(Status::permission_denied("the member's certificate was revoked"));
    }
    Ok(())
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

//! One stream, from hello to end.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use spillway_core::plan::Digest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use super::channel::{chain, refused_certificate};
use super::link::Link;
use super::renew::{self, RenewError, renew};
use super::{ConnectionState, DisconnectReason, Held, RefusedUpdate, VerifiedUpdate};
use crate::PROTOCOL;
use crate::frames::{Hub, MESSAGE_LIMIT, Staging, Step};
use crate::pki::{CertificateInfo, MemberIdentity};
use crate::proto::link_client::LinkClient;
use crate::proto::{self, HubMessage, MemberMessage, hub_message, member_message};
use crate::reports;

/// Messages between a session and its connection.
const QUEUE: usize = 4;
/// A larger inventory isn't sent with the hello: the hub then sends the whole plan.
const INVENTORY_LIMIT: usize = MESSAGE_LIMIT / 2;

/// A hub that asks for a renewal can't put it off for longer than this.
const RENEW_LIMIT: Duration = Duration::from_secs(600);

/// How a session ended.
pub(super) enum End {
    /// The hub has let the member go.
    Left,
    /// It is to be used from now on.
    Renewed(MemberIdentity),
    Because(DisconnectReason),
}

impl From<DisconnectReason> for End {
    fn from(reason: DisconnectReason) -> Self {
        Self::Because(reason)
    }
}

type Applied = (u64, Digest, Result<(), RefusedUpdate>);
type Renewal = JoinHandle<Result<MemberIdentity, RenewError>>;

pub(super) struct Session<'a> {
    link: &'a mut Link,
    endpoint: &'a str,
    certificate: CertificateInfo,
    channel: Channel,
    pending: VecDeque<member_message::Message>,
    staging: Staging,
    hub: Hub,
    /// At most one: the hub waits for the answer before it sends the next.
    applying: Option<JoinHandle<Applied>>,
    acknowledged: Option<Digest>,
    refused: Option<String>,
    /// The hub has asked for a renewal within this time.
    renew_within: Option<Duration>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        link: &'a mut Link,
        endpoint: &'a str,
        certificate: CertificateInfo,
        channel: Channel,
    ) -> Self {
        let hub = Hub {
            id: String::new(),
            epoch: 0,
            member: certificate.member.clone(),
        };
        Self {
            link,
            endpoint,
            certificate,
            channel,
            pending: VecDeque::new(),
            staging: Staging::default(),
            hub,
            applying: None,
            acknowledged: None,
            refused: None,
            renew_within: None,
        }
    }

    /// Stays as long as the stream does. The certificate is to be renewed after `renewal_due`.
    pub(super) async fn serve(mut self, renewal_due: Duration) -> End {
        let (outbound, stream) = mpsc::channel(QUEUE);
        let end = match self.open(&outbound, stream).await {
            Ok(mut inbound) => self.talk(&outbound, &mut inbound, renewal_due).await,
            Err(end) => end,
        };
        if let Some(applying) = self.applying.take() {
            // What is being stored is stored to the end before anything else is received.
            let _ = applying.await;
        }
        end
    }

    async fn open(
        &mut self,
        outbound: &mpsc::Sender<MemberMessage>,
        stream: mpsc::Receiver<MemberMessage>,
    ) -> Result<Streaming<HubMessage>, End> {
        let held = self.link.backend.held();
        let hello = member_message::Message::Hello(hello(&held, &self.link.config.agent_version));
        let _ = outbound.try_send(MemberMessage { message: Some(hello) });
        let limit = self.link.config.dial_limit;
        let mut client = LinkClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let mut inbound = timeout(limit, client.connect(ReceiverStream::new(stream)))
            .await
            .map_err(|_| DisconnectReason::Silent)?
            .map_err(|e| explain(&e))?
            .into_inner();
        let welcome = timeout(self.link.config.silence_limit, inbound.message())
            .await
            .map_err(|_| DisconnectReason::Silent)?
            .map_err(|e| explain(&e))?;
        let Some(hub_message::Message::Welcome(welcome)) = welcome.and_then(|w| w.message) else {
            return Err(DisconnectReason::Closed("it said no welcome".into()).into());
        };
        if welcome.hub_id.is_empty() {
            return Err(DisconnectReason::Closed("it has no identity".into()).into());
        }
        if held.hub_id == welcome.hub_id && welcome.epoch < held.epoch {
            return Err(DisconnectReason::StaleHub {
                offered: welcome.epoch,
                held: held.epoch,
            }
            .into());
        }
        info!(
            endpoint = self.endpoint,
            hub = welcome.hub_id,
            epoch = welcome.epoch,
            protocol = welcome.protocol,
            "connected"
        );
        self.hub.id = welcome.hub_id;
        self.hub.epoch = welcome.epoch;
        Ok(inbound)
    }

    async fn talk(
        &mut self,
        outbound: &mpsc::Sender<MemberMessage>,
        inbound: &mut Streaming<HubMessage>,
        renewal_due: Duration,
    ) -> End {
        let mut reports = self.link.backend.reports();
        reports.mark_changed();
        let mut reports_are_watched = true;
        let resync = self.link.resync.clone();
        let mut renewal_at = Instant::now() + renewal_due;
        let mut renewal: Option<Renewal> = None;
        let mut heard = Instant::now();
        self.show();
        self.link.leaving.retain(|answer| !answer.is_closed());
        if !self.link.leaving.is_empty() {
            self.pending
                .push_back(member_message::Message::Leave(proto::Leave {}));
        }
        loop {
            if let Some(within) = self.renew_within.take() {
                renewal_at = renewal_at.min(Instant::now() + within.mul_f64(self.link.way.jitter()));
            }
            tokio::select! {
                biased;
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        heard = Instant::now();
                        if let Some(end) = self.receive(message) {
                            return end;
                        }
                    }
                    Ok(None) => return DisconnectReason::Closed("without a reason".into()).into(),
                    Err(e) => return explain(&e).into(),
                },
                applied = finished(&mut self.applying) => self.answer(applied),
                permit = outbound.reserve(), if !self.pending.is_empty() => {
                    let (Ok(permit), Some(message)) = (permit, self.pending.pop_front()) else {
                        return DisconnectReason::Closed("the connection broke".into()).into();
                    };
                    permit.send(MemberMessage { message: Some(message) });
                }
                // The newest report only, and not before the last one is on its way.
                changed = reports.changed(), if reports_are_watched && self.pending.is_empty() => {
                    reports_are_watched = changed.is_ok();
                    let parts = reports::split(&reports.borrow_and_update());
                    self.pending.extend(parts.into_iter().map(member_message::Message::Report));
                }
                Some(answer) = self.link.leave_asked.recv() => {
                    self.link.leaving.push(answer);
                    self.pending.push_back(member_message::Message::Leave(proto::Leave {}));
                }
                () = resync.notified() => {
                    self.want_all(0, "the member agent asks for it".into());
                }
                () = sleep_until(renewal_at), if renewal.is_none() => {
                    let channel = self.channel.clone();
                    let certificate = self.certificate.clone();
                    let backend = self.link.backend.clone();
                    renewal = Some(tokio::spawn(async move { renew(channel, &certificate, &*backend).await }));
                }
                renewed = finished(&mut renewal) => match renewed {
                    Ok(Ok(identity)) => return End::Renewed(identity),
                    Ok(Err(e)) => {
                        renewal_at = Instant::now() + renew::retry_in(&self.certificate, SystemTime::now());
                        warn!(error = %e, "the certificate wasn't renewed; trying again");
                    }
                    Err(e) => {
                        renewal_at = Instant::now() + renew::retry_in(&self.certificate, SystemTime::now());
                        warn!(error = %e, "renewing the certificate broke off; trying again");
                    }
                },
                () = sleep_until(heard + self.link.config.silence_limit) => {
                    return DisconnectReason::Silent.into();
                }
            }
        }
    }

    fn receive(&mut self, message: HubMessage) -> Option<End> {
        match message.message {
            Some(hub_message::Message::Plan(frame)) => self.stage(frame),
            Some(hub_message::Message::Ping(_)) => {
                self.pending
                    .push_back(member_message::Message::Pong(proto::Pong {}));
            }
            Some(hub_message::Message::Renew(asked)) => {
                let within = Duration::from_secs(asked.within_seconds.into()).min(RENEW_LIMIT);
                self.renew_within = Some(within);
            }
            Some(hub_message::Message::LeaveAccepted(_)) if !self.link.leaving.is_empty() => {
                for answer in self.link.leaving.drain(..) {
                    let _ = answer.send(());
                }
                return Some(End::Left);
            }
            // Unknown messages are those of a newer hub.
            Some(hub_message::Message::Welcome(_) | hub_message::Message::LeaveAccepted(_)) | None => {}
        }
        None
    }

    fn stage(&mut self, frame: proto::PlanFrame) {
        if self.staging.is_over(frame.nonce) {
            return;
        }
        if self.applying.is_some() {
            // The hub broke the rule of one at a time; it will be told what we hold.
            self.want_all(frame.nonce, "the update before is still being stored".into());
            return;
        }
        match self.staging.accept(frame, &self.link.backend.held(), &self.hub) {
            Step::Wait | Step::Ignored => {}
            Step::Resync { nonce, reason } => self.want_all(nonce, reason),
            Step::Refused { nonce, target, why } => self.refuse(nonce, target, why),
            Step::Ready { nonce, update } => self.apply(nonce, update),
        }
    }

    fn apply(&mut self, nonce: u64, update: VerifiedUpdate) {
        let backend = self.link.backend.clone();
        let limit = self.link.config.apply_limit;
        let target = update.target;
        debug!(
            digest = target.short(),
            upserts = update.upserts.len(),
            removes = update.removes.len(),
            full = update.full,
            "a plan update is complete"
        );
        self.applying = Some(tokio::spawn(async move {
            // A task of its own, so that the hub gets an answer even if it panics.
            let mut inner = tokio::spawn(async move { backend.apply(update).await });
            let outcome = match timeout(limit, &mut inner).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(e)) => Err(whole(format!("the member agent failed: {e}"))),
                Err(_) => {
                    inner.abort();
                    Err(whole(format!("storing it took longer than {limit:?}")))
                }
            };
            (nonce, target, outcome)
        }));
    }

    fn answer(&mut self, applied: Result<Applied, tokio::task::JoinError>) {
        match applied {
            Ok((nonce, target, Ok(()))) => {
                info!(digest = target.short(), "a plan was stored");
                self.acknowledged = Some(target);
                self.refused = None;
                self.pending.push_back(member_message::Message::Ack(proto::Ack {
                    nonce,
                    digest: target.as_bytes().to_vec(),
                }));
                self.show();
            }
            Ok((nonce, target, Err(why))) => self.refuse(nonce, target, why),
            // Only the end of the runtime does that.
            Err(e) => warn!(error = %e, "storing a plan broke off"),
        }
    }

    fn refuse(&mut self, nonce: u64, target: Digest, why: RefusedUpdate) {
        warn!(digest = target.short(), reason = %why, "a plan is refused; the old one stays");
        self.refused = Some(why.to_string());
        self.pending.push_back(member_message::Message::Nack(proto::Nack {
            nonce,
            digest: target.as_bytes().to_vec(),
            resource: why.resource.map(|r| r.to_string()).unwrap_or_default(),
            reason: why.reason,
        }));
        self.show();
    }

    fn want_all(&mut self, nonce: u64, reason: String) {
        info!(reason, "asking for the whole plan");
        self.pending
            .push_back(member_message::Message::Resync(proto::Resync { nonce, reason }));
    }

    fn show(&self) {
        let new = ConnectionState::Connected {
            endpoint: self.endpoint.into(),
            hub_id: self.hub.id.clone(),
            serial: self.certificate.serial.clone(),
            acknowledged: self.acknowledged,
            refused: self.refused.clone(),
        };
        self.link.state.send_if_modified(|state| {
            let changed = *state != new;
            *state = new;
            changed
        });
    }
}

fn hello(held: &Held, agent_version: &str) -> proto::Hello {
    let size: usize = held.digests.keys().map(|k| k.name.len() + 64).sum();
    let inventory = if size > INVENTORY_LIMIT {
        Vec::new()
    } else {
        held.digests
            .iter()
            .map(|(key, digest)| proto::Held {
                kind: key.kind.as_str().into(),
                name: key.name.clone(),
                digest: digest.as_bytes().to_vec(),
            })
            .collect()
    };
    proto::Hello {
        protocol: PROTOCOL,
        agent_version: agent_version.into(),
        hub_id: held.hub_id.clone(),
        epoch: held.epoch,
        digest: held.digest().map(|d| d.as_bytes().to_vec()).unwrap_or_default(),
        inventory,
    }
}

fn whole(reason: String) -> RefusedUpdate {
    RefusedUpdate {
        resource: None,
        reason,
    }
}

/// Waits for the task and takes it away; for ever where there is none.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match task {
        Some(running) => {
            let outcome = running.await;
            *task = None;
            outcome
        }
        None => std::future::pending().await,
    }
}

fn explain(status: &Status) -> DisconnectReason {
    if let Some(reason) = refused_certificate(status) {
        return reason;
    }
    match status.code() {
        Code::PermissionDenied => DisconnectReason::Revoked(status.message().into()),
        Code::Unauthenticated => DisconnectReason::Expired(status.message().into()),
        _ => DisconnectReason::Closed(chain(status)),
    }
}

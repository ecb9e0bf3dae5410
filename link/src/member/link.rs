//! The loop that keeps a stream: dial, serve, wait, again.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use tracing::{debug, error, info, warn};

use super::channel::{chain, over, refused_certificate};
use super::renew::{self, renew};
use super::session::{End, Session};
use super::{ConnectionState, DisconnectReason, LeaveError, MemberBackend, MemberConfig};
use crate::pki::{CertificateInfo, MemberIdentity};
use crate::tls::{DialError, Trust, dial};
use crate::wire::{Dial, Tcp};

/// A stream that lasted this long was a good one: the next failure starts with short waits again.
const STABLE: Duration = Duration::from_secs(10);

/// The link to the hub; [`Self::run`] keeps it.
pub struct Link {
    pub(super) config: MemberConfig,
    pub(super) backend: Arc<dyn MemberBackend>,
    identity: MemberIdentity,
    pub(super) way: Arc<dyn Dial>,
    pub(super) state: watch::Sender<ConnectionState>,
    pub(super) leave_asked: mpsc::Receiver<oneshot::Sender<()>>,
    /// Those who wait for the hub's answer.
    pub(super) leaving: Vec<oneshot::Sender<()>>,
    pub(super) resync: Arc<Notify>,
    renewed_at: Option<Instant>,
}

/// Watches and steers a running [`Link`].
#[derive(Clone, Debug)]
pub struct LinkHandle {
    state: watch::Receiver<ConnectionState>,
    leaving: mpsc::Sender<oneshot::Sender<()>>,
    resync: Arc<Notify>,
}

impl LinkHandle {
    /// How it goes.
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// Asks the hub to let the member go; waits for its answer at most `limit`, over reconnections. May
    /// be asked again. After success `run` returns.
    pub async fn leave(&self, limit: Duration) -> Result<(), LeaveError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.leaving.send(answer).await.map_err(|_| LeaveError::Stopped)?;
            answered.await.map_err(|_| LeaveError::NoAnswer)
        };
        tokio::time::timeout(limit, asked)
            .await
            .unwrap_or(Err(LeaveError::NoAnswer))
    }

    /// Asks the hub for the whole plan, e.g. after plan objects were damaged. Without a stream, that is
    /// done once there is one.
    pub fn resync(&self) {
        self.resync.notify_one();
    }
}

impl Link {
    /// A link that isn't running yet.
    pub fn new(
        config: MemberConfig,
        identity: MemberIdentity,
        backend: Arc<dyn MemberBackend>,
    ) -> (Self, LinkHandle) {
        let (state, watched) = watch::channel(ConnectionState::Connecting { reason: None });
        let (leave, leave_asked) = mpsc::channel(4);
        let resync = Arc::new(Notify::new());
        let link = Self {
            config,
            backend,
            identity,
            way: Arc::new(Tcp),
            state,
            leave_asked,
            leaving: Vec::new(),
            resync: resync.clone(),
            renewed_at: None,
        };
        let handle = LinkHandle {
            state: watched,
            leaving: leave,
            resync,
        };
        (link, handle)
    }

    /// Dials another way than by TCP.
    #[cfg(test)]
    pub(crate) fn by(mut self, way: Arc<dyn Dial>) -> Self {
        self.way = way;
        self
    }

    /// Dials, reconnects, verifies, applies, reports and renews until `shutdown` completes or the hub
    /// has let the member go.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let left = tokio::select! {
            () = shutdown => false,
            () = self.keep() => true,
        };
        self.state.send_replace(if left {
            ConnectionState::Left
        } else {
            ConnectionState::Stopped
        });
    }

    /// Returns once the hub has let the member go.
    async fn keep(&mut self) {
        let mut backoff = Backoff::new(&self.config);
        loop {
            let mut reason = DisconnectReason::Unreachable {
                endpoint: "(none)".into(),
                cause: "no endpoint is given".into(),
            };
            for endpoint in self.config.endpoints.clone() {
                let begun = Instant::now();
                match self.attempt(&endpoint).await {
                    End::Left => return,
                    End::Because(why) => reason = why,
                    End::Renewed(identity) => {
                        self.identity = identity;
                        self.renewed_at = Some(Instant::now());
                        reason = DisconnectReason::Renewed;
                    }
                }
                self.show(&reason);
                if begun.elapsed() >= STABLE || reason == DisconnectReason::Renewed {
                    backoff.reset();
                    break;
                }
            }
            if reason != DisconnectReason::Renewed {
                tokio::time::sleep(backoff.next(self.way.jitter())).await;
            }
        }
    }

    fn show(&self, reason: &DisconnectReason) {
        let new = ConnectionState::Connecting {
            reason: Some(reason.clone()),
        };
        // The same failure again is no news.
        let changed = self.state.send_if_modified(|state| {
            let changed = *state != new;
            *state = new;
            changed
        });
        match reason {
            DisconnectReason::Renewed => debug!(%reason, "no stream to the hub"),
            DisconnectReason::Revoked(_) | DisconnectReason::StaleHub { .. } if changed => {
                error!(%reason, "no stream to the hub");
            }
            _ if changed => warn!(%reason, "no stream to the hub"),
            _ => debug!(%reason, "no stream to the hub"),
        }
    }

    /// One endpoint: dial it and, if that works, stay as long as the stream does.
    async fn attempt(&mut self, endpoint: &str) -> End {
        let certificate = match self.identity.certificate() {
            Ok(certificate) => certificate,
            Err(e) => return End::Because(DisconnectReason::BadIdentity(e.to_string())),
        };
        let channel = match self.connect(endpoint).await {
            Ok(channel) => channel,
            Err(reason) => return End::Because(reason),
        };
        // Where the hub has just given a certificate that looks old already, our clock is wrong: the hub
        // is the judge then, and asking it again and again helps nobody.
        let pause = renew::life(&certificate) / 10;
        let rest = self
            .renewed_at
            .map_or(Duration::ZERO, |at| pause.saturating_sub(at.elapsed()));
        if rest.is_zero() && SystemTime::now() >= certificate.not_after {
            return self.renew_late(channel, &certificate).await;
        }
        info!(endpoint, serial = certificate.serial, "the hub was reached");
        let due = renew::due_in(&certificate, SystemTime::now(), rand::random()).max(rest);
        let session = Session::new(self, endpoint, certificate.clone(), channel.clone());
        match session.serve(due).await {
            // By the hub's clock it has ended, whatever ours says.
            End::Because(DisconnectReason::Expired(_)) if rest.is_zero() => {
                self.renew_late(channel, &certificate).await
            }
            end => end,
        }
    }

    /// The hub lets an ended certificate renew itself for a while, and do nothing else.
    async fn renew_late(&self, channel: Channel, certificate: &CertificateInfo) -> End {
        match renew(channel, certificate, &*self.backend).await {
            Ok(identity) => End::Renewed(identity),
            Err(e) => End::Because(DisconnectReason::Expired(format!(
                "{e}; where that lasts, join again with a new token"
            ))),
        }
    }

    async fn connect(&self, endpoint: &str) -> Result<Channel, DisconnectReason> {
        let unreachable = |cause| DisconnectReason::Unreachable {
            endpoint: endpoint.into(),
            cause,
        };
        let stream = dial(
            &*self.way,
            endpoint,
            Trust::Identity(&self.identity),
            self.config.dial_limit,
        )
        .await
        .map_err(|e| match e {
            DialError::Unreachable(cause) => unreachable(cause),
            DialError::Tls { cause, .. } => DisconnectReason::NotOurHub {
                endpoint: endpoint.into(),
                cause,
            },
            DialError::Identity(e) => DisconnectReason::BadIdentity(e.to_string()),
        })?;
        over(stream)
            .await
            .map_err(|e| refused_certificate(&e).unwrap_or_else(|| unreachable(chain(&e))))
    }
}

/// Waits between attempts.
struct Backoff {
    next: Duration,
    start: Duration,
    limit: Duration,
}

impl Backoff {
    fn new(config: &MemberConfig) -> Self {
        Self {
            next: config.backoff_start,
            start: config.backoff_start,
            limit: config.backoff_limit,
        }
    }

    fn reset(&mut self) {
        self.next = self.start;
    }

    /// The next wait: doubling, spread over its upper half so that members don't come in step.
    fn next(&mut self, jitter: f64) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.limit);
        wait.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_start_small_again() {
        let mut backoff = Backoff::new(&MemberConfig::new(Vec::new(), ""));
        let waits: Vec<_> = (0..9).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000]);
        assert!(backoff.next(0.0) == Duration::from_secs(15));
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(200));
    }
}

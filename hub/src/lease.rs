//! Who of the replicas writes: the holder of a Lease.
//!
//! Clocks of different machines are never compared. A holder counts its own time from before each renewal;
//! a contender counts from when it saw the Lease change last, and for longer than a holder may. So a holder
//! that was stopped and goes on finds its own time over before anybody else's began.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{CALL_LIMIT, Failure, within};

/// Name of the Lease.
const NAME: &str = "spillway-hub";
/// A Lease that hasn't changed for this long is free.
const DURATION: Duration = Duration::from_secs(10);
/// A holder stops writing this long after it *began* its last renewal. The rest of `DURATION` is for
/// requests that are on their way.
const VALID: Duration = Duration::from_secs(6);
/// Time between renewals, and between a contender's looks.
const INTERVAL: Duration = Duration::from_millis(1500);
/// Longest time for one call: several fit into `VALID`.
const CALL: Duration = Duration::from_secs(2);

/// What a Lease says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Record {
    holder: String,
    version: String,
}

/// A record and when it was first seen, by this process's clock.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Seen {
    record: Record,
    at: Instant,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// There is none: create it.
    Create,
    /// It is ours, or free: replace it.
    Take,
    /// Somebody else's: look again later.
    Wait,
}

/// Decides. `seen` is the newest record with the time at which it was first seen.
fn evaluate(seen: Option<&Seen>, me: &str, now: Instant) -> Step {
    match seen {
        None => Step::Create,
        Some(s) if s.record.holder == me || s.record.holder.is_empty() => Step::Take,
        Some(s) if now.duration_since(s.at) > DURATION => Step::Take,
        Some(_) => Step::Wait,
    }
}

/// Tells whether this replica leads.
#[derive(Clone, Debug)]
pub(crate) struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// How long this replica may still write; `None` where it may not.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        let until = (*self.0.borrow())?;
        until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    /// The limit for one write: it ends before the lease does.
    pub(crate) fn limit(&self) -> Result<Duration, Failure> {
        self.remaining()
            .map(|left| left.min(CALL_LIMIT))
            .ok_or(Failure::NotLeader)
    }

    /// Waits until this replica leads.
    pub(crate) async fn gained(&mut self) {
        while self.remaining().is_none() {
            if self.0.changed().await.is_err() {
                // The lease task is gone, and with it soon the process.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Contends for the Lease.
pub(crate) struct Elector {
    api: Api<Lease>,
    me: String,
    until: watch::Sender<Option<Instant>>,
    seen: Option<Seen>,
}

impl Elector {
    /// For the replica named `me`.
    pub(crate) fn new(client: Client, namespace: &str, me: &str) -> (Self, Leadership) {
        let (until, follow) = watch::channel(None);
        let elector = Self {
            api: Api::namespaced(client, namespace),
            me: me.into(),
            until,
            seen: None,
        };
        (elector, Leadership(follow))
    }

    /// Contends until `stop`, then gives the Lease back. A replica that loses it goes on as a follower: its
    /// members' streams have nothing to do with who writes.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let began = Instant::now();
            match self.round(began).await {
                Ok(true) => {
                    if self.until.send_replace(Some(began + VALID)).is_none() {
                        tracing::info!(replica = self.me, "this replica leads");
                    }
                }
                Ok(false) => self.lost("another replica took it"),
                Err(error) => {
                    tracing::warn!(replica = self.me, %error, "the lease can't be reached");
                    let over = (*self.until.borrow()).is_some_and(|until| Instant::now() >= until);
                    if over {
                        self.lost("it couldn't be renewed in time");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.cancelled() => break,
            }
        }
        self.release().await;
    }

    /// Stops leading. Writes have stopped already: their limits ended with the lease.
    fn lost(&self, why: &str) {
        if self.until.send_replace(None).is_some() {
            tracing::warn!(replica = self.me, why, "this replica leads no more");
        }
    }

    /// One look and, where it is due, one write. True where the Lease is ours.
    async fn round(&mut self, now: Instant) -> Result<bool, Failure> {
        let lease = within(CALL, self.api.get_opt(NAME)).await?;
        let record = lease.as_ref().map(record);
        self.seen = record.map(|record| match self.seen.take() {
            Some(seen) if seen.record == record => seen,
            _ => Seen { record, at: now },
        });
        match (evaluate(self.seen.as_ref(), &self.me, now), lease) {
            (Step::Wait, _) => Ok(false),
            (Step::Take, Some(lease)) => self.replace(lease).await,
            (Step::Create | Step::Take, _) => self.create().await,
        }
    }

    async fn create(&self) -> Result<bool, Failure> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                ..ObjectMeta::default()
            },
            spec: Some(self.spec(None)),
        };
        won(within(CALL, self.api.create(&PostParams::default(), &lease)).await)
    }

    /// Replaces exactly the version that was read: of two contenders one fails.
    async fn replace(&self, mut lease: Lease) -> Result<bool, Failure> {
        lease.spec = Some(self.spec(lease.spec.as_ref()));
        won(within(CALL, self.api.replace(NAME, &PostParams::default(), &lease)).await)
    }

    fn spec(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let kept = old.filter(|o| o.holder_identity.as_deref() == Some(&self.me));
        let transitions = old.and_then(|o| o.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: kept.and_then(|k| k.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if kept.is_some() {
                transitions
            } else {
                transitions + 1
            }),
            ..LeaseSpec::default()
        }
    }

    /// Lets the next leader begin at once. First this replica stops writing.
    async fn release(&mut self) {
        if self.until.send_replace(None).is_none() {
            return;
        }
        let given_back = async {
            let mut lease = within(CALL, self.api.get(NAME)).await?;
            if record(&lease).holder != self.me {
                return Ok(());
            }
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = None;
            }
            within(CALL, self.api.replace(NAME, &PostParams::default(), &lease)).await?;
            Ok::<_, Failure>(())
        };
        if let Err(error) = given_back.await {
            tracing::warn!(replica = self.me, %error, "the lease can't be given back; it will run out");
        }
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.as_ref();
    Record {
        holder: spec.and_then(|s| s.holder_identity.clone()).unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

fn won(answer: Result<Lease, Failure>) -> Result<bool, Failure> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: &str, at: Instant) -> Seen {
        Seen {
            record: Record {
                holder: holder.into(),
                version: "1".into(),
            },
            at,
        }
    }

    #[test]
    fn only_a_free_or_silent_lease_is_taken() {
        let start = Instant::now();
        let after = |s| start + Duration::from_secs(s);
        assert_eq!(evaluate(None, "a", start), Step::Create);
        assert_eq!(evaluate(Some(&seen("", start)), "a", start), Step::Take);
        assert_eq!(evaluate(Some(&seen("a", start)), "a", after(60)), Step::Take);
        assert_eq!(evaluate(Some(&seen("b", start)), "a", after(10)), Step::Wait);
        assert_eq!(evaluate(Some(&seen("b", start)), "a", after(11)), Step::Take);
    }

    #[test]
    fn a_holder_stops_before_anybody_may_begin() {
        // A renewal that began at t may reach the API server as late as t + CALL; a contender counts from
        // when it saw that. Worst for the holder is the other end: the write landed at once, at t.
        assert!(VALID + CALL < DURATION);
        assert!(
            INTERVAL + CALL < VALID,
            "one failed renewal doesn't lose the lease"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn leadership_ends_by_itself() {
        let (until, follow) = watch::channel(Some(Instant::now() + VALID));
        let leadership = Leadership(follow);
        assert_eq!(leadership.limit().expect("leads"), CALL_LIMIT.min(VALID));
        tokio::time::advance(VALID).await;
        assert!(matches!(leadership.limit(), Err(Failure::NotLeader)));
        let mut again = leadership.clone();
        let waits = tokio::time::timeout(VALID, again.gained()).await;
        assert!(waits.is_err(), "an ended lease isn't one that was gained");
        until.send_replace(Some(Instant::now() + VALID));
        again.gained().await;
        assert!(again.remaining().is_some());
    }
}

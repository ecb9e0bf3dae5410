//! Which plan update is due on a stream. Pure: one update at a time, always to the newest plan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spillway_core::plan::{Digest, ResourceKey, digest_of};

use super::{PublishedPlan, Refusal};
use crate::frames::split;
use crate::proto::PlanFrame;

/// Refused plans are offered again after at most this many times the first wait.
const LONGEST_RETRY: u32 = 20;

/// What a stream has sent and what the member has said about it.
#[derive(Debug)]
pub(super) struct Outbox {
    nonce: u64,
    /// What the member holds, with the digest of that; `None` where it isn't known.
    known: Option<(BTreeMap<ResourceKey, Digest>, Digest)>,
    /// The newest plan with its digest, which takes a while to compute.
    newest: Option<(Arc<PublishedPlan>, Digest)>,
    /// The member wants all, even if it holds the right plan.
    whole: bool,
    in_flight: Option<Arc<PublishedPlan>>,
    refused: Option<Refused>,
    first_retry: Duration,
    piece: usize,
}

#[derive(Debug)]
struct Refused {
    digest: Digest,
    removal_intended: bool,
    until: Instant,
    wait: Duration,
}

/// What is to be done now.
#[derive(Debug)]
pub(super) enum Due {
    Nothing,
    Send(Vec<PlanFrame>),
    /// No member would take the plan.
    Unsendable(Refusal),
}

impl Outbox {
    /// `known`: what the member says it holds, if that can be built upon. Updates are split into pieces
    /// of about `piece` bytes.
    pub(super) fn new(
        known: Option<BTreeMap<ResourceKey, Digest>>,
        first_retry: Duration,
        piece: usize,
    ) -> Self {
        Self {
            nonce: 0,
            known: known.map(|k| {
                let digest = digest_of(&k);
                (k, digest)
            }),
            newest: None,
            whole: false,
            in_flight: None,
            refused: None,
            first_retry,
            piece,
        }
    }

    /// Asked after everything that happens.
    pub(super) fn due(&mut self, newest: Option<&Arc<PublishedPlan>>, now: Instant) -> Due {
        let Some(newest) = newest else {
            self.newest = None;
            return Due::Nothing;
        };
        let target = self.digest_of_newest(newest);
        if self.in_flight.is_some() {
            return Due::Nothing;
        }
        let holds_it = self.holds_newest().is_some();
        let waits = self.refused.as_ref().is_some_and(|r| {
            r.digest == target && r.removal_intended == newest.removal_intended && now < r.until
        });
        if waits || (holds_it && !self.whole) {
            return Due::Nothing;
        }
        self.nonce += 1;
        let base = if self.whole {
            None
        } else {
            self.known.as_ref().map(|(k, _)| k)
        };
        match split(
            self.nonce,
            base,
            &newest.plan,
            newest.removal_intended,
            self.piece,
        ) {
            Ok(frames) => {
                self.whole = false;
                self.in_flight = Some(newest.clone());
                Due::Send(frames)
            }
            Err(e) => {
                self.defer(newest, now);
                Due::Unsendable(Refusal::of(target, e.resource.as_ref(), e.reason))
            }
        }
    }

    /// Digest of the plan last asked about, where the member holds exactly that. While an update is under way nobody knows:
    /// it may be stored, and the word of that on its way.
    pub(super) fn holds_newest(&self) -> Option<Digest> {
        if self.in_flight.is_some() {
            return None;
        }
        let (_, newest) = self.newest.as_ref()?;
        let (_, known) = self.known.as_ref()?;
        (known == newest).then_some(*newest)
    }

    fn digest_of_newest(&mut self, plan: &Arc<PublishedPlan>) -> Digest {
        match &self.newest {
            Some((seen, digest)) if Arc::ptr_eq(seen, plan) => *digest,
            _ => {
                let digest = plan.plan.digest();
                self.newest = Some((plan.clone(), digest));
                digest
            }
        }
    }

    /// When [`Self::due`] is to be asked though nothing happened. Never for a refused plan that isn't the newest any more,
    /// or that the member has after all: that time passes, and whoever waited for it would ask for ever.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let refused = self.refused.as_ref()?;
        let (newest, digest) = self.newest.as_ref()?;
        let is_newest = refused.digest == *digest && refused.removal_intended == newest.removal_intended;
        let due = self.in_flight.is_none() && (self.whole || self.holds_newest().is_none());
        (is_newest && due).then_some(refused.until)
    }

    /// The member has persisted an update. `None` where that isn't about the update under way.
    pub(super) fn acknowledge(&mut self, nonce: u64, digest: Option<Digest>) -> Option<Digest> {
        let current = self.in_flight.as_ref().filter(|_| nonce == self.nonce)?;
        let target = current.plan.digest();
        if digest != Some(target) {
            return None;
        }
        self.known = Some((current.plan.digests(), target));
        self.in_flight = None;
        self.refused = None;
        Some(target)
    }

    /// The member refuses an update. `None` where that isn't about the update under way.
    pub(super) fn refuse(&mut self, nonce: u64, now: Instant) -> Option<Digest> {
        if nonce != self.nonce {
            return None;
        }
        let current = self.in_flight.take()?;
        self.defer(&current, now);
        Some(current.plan.digest())
    }

    /// The member wants the whole plan: about an update, or (nonce 0) at any time. True where that was
    /// taken up.
    pub(super) fn resync(&mut self, nonce: u64, now: Instant) -> bool {
        if nonce == 0 {
            self.whole = true;
            return true;
        }
        if nonce != self.nonce {
            return false;
        }
        let Some(current) = self.in_flight.take() else {
            return false;
        };
        if self.known.take().is_none() {
            // The whole plan was what it couldn't use; sending it again at once would go on for ever.
            self.defer(&current, now);
        }
        true
    }

    fn defer(&mut self, plan: &Arc<PublishedPlan>, now: Instant) {
        let digest = plan.plan.digest();
        let removal_intended = plan.removal_intended;
        let wait = match &self.refused {
            Some(r) if r.digest == digest && r.removal_intended == removal_intended => {
                (r.wait * 2).min(self.first_retry * LONGEST_RETRY)
            }
            _ => self.first_retry,
        };
        self.refused = Some(Refused {
            digest,
            removal_intended,
            until: now + wait,
            wait,
        });
    }
}

#[cfg(test)]
mod tests {
    use spillway_core::plan::{Plan, Resource};
    use spillway_crds::member::PlannedPeerSpec;

    use super::*;

    const RETRY: Duration = Duration::from_secs(3);

    fn plan(names: &[&str]) -> Arc<PublishedPlan> {
        let peer = |n: &&str| {
            Resource::Peer(PlannedPeerSpec {
                member: (*n).into(),
                ..PlannedPeerSpec::default()
            })
        };
        Arc::new(PublishedPlan {
            plan: Arc::new(Plan::new(names.iter().map(peer))),
            removal_intended: false,
        })
    }

    fn sent(due: Due) -> PlanFrame {
        match due {
            Due::Send(mut frames) if frames.len() == 1 => frames.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn quiet(due: &Due) -> bool {
        matches!(due, Due::Nothing)
    }

    #[test]
    fn who_holds_the_plan_gets_nothing_and_who_does_not_gets_the_difference() {
        let (a, ab, now) = (plan(&["a"]), plan(&["a", "b"]), Instant::now());
        let mut outbox = Outbox::new(Some(a.plan.digests()), RETRY, usize::MAX);
        assert!(quiet(&outbox.due(None, now)));
        assert!(quiet(&outbox.due(Some(&a), now)));
        let frame = sent(outbox.due(Some(&ab), now));
        assert_eq!((frame.upserts.len(), frame.base_digest.len()), (1, 32));
        assert!(quiet(&outbox.due(Some(&plan(&["c"])), now)), "one at a time");
        assert_eq!(
            outbox.acknowledge(1, Some(ab.plan.digest())),
            Some(ab.plan.digest())
        );
        assert!(quiet(&outbox.due(Some(&ab), now)));
    }

    #[test]
    fn answers_about_anything_but_the_update_under_way_change_nothing() {
        let (a, now) = (plan(&["a"]), Instant::now());
        let mut outbox = Outbox::new(None, RETRY, usize::MAX);
        let nonce = sent(outbox.due(Some(&a), now)).nonce;
        assert_eq!(outbox.acknowledge(nonce + 1, Some(a.plan.digest())), None);
        assert_eq!(outbox.acknowledge(nonce, Some(Digest::of(b"x"))), None);
        assert_eq!(outbox.refuse(nonce - 1, now), None);
        assert!(!outbox.resync(nonce + 1, now));
        assert!(outbox.acknowledge(nonce, Some(a.plan.digest())).is_some());
        assert_eq!(outbox.acknowledge(nonce, Some(a.plan.digest())), None, "twice");
        assert_eq!(outbox.refuse(nonce, now), None, "after it was acknowledged");
    }

    #[test]
    fn a_refused_plan_waits_ever_longer_and_a_new_one_does_not() {
        let (a, b, mut now) = (plan(&["a"]), plan(&["b"]), Instant::now());
        let mut outbox = Outbox::new(None, RETRY, usize::MAX);
        let mut wait = RETRY;
        for nonce in 1..10 {
            assert_eq!(sent(outbox.due(Some(&a), now)).nonce, nonce);
            assert!(outbox.refuse(nonce, now).is_some());
            assert!(quiet(&outbox.due(Some(&a), now + wait.mul_f64(0.99))));
            now += wait;
            assert_eq!(outbox.retry_at(), Some(now));
            wait = (wait * 2).min(RETRY * LONGEST_RETRY);
        }
        let frame = sent(outbox.due(Some(&a), now));
        assert!(outbox.refuse(frame.nonce, now).is_some());
        sent(outbox.due(Some(&b), now));
    }

    #[test]
    fn nobody_waits_for_a_refused_plan_that_is_not_wanted_any_more() {
        let (a, b, now) = (plan(&["a"]), plan(&["b"]), Instant::now());
        let mut outbox = Outbox::new(Some(a.plan.digests()), RETRY, usize::MAX);
        let nonce = sent(outbox.due(Some(&b), now)).nonce;
        assert!(outbox.refuse(nonce, now).is_some());
        assert!(quiet(&outbox.due(Some(&b), now)));
        assert_eq!(outbox.retry_at(), Some(now + RETRY));
        assert!(quiet(&outbox.due(Some(&a), now)), "it has that");
        assert_eq!(outbox.retry_at(), None);
        assert!(quiet(&outbox.due(Some(&b), now)), "not forgotten");
        assert_eq!(outbox.retry_at(), Some(now + RETRY));
        assert!(quiet(&outbox.due(None, now)));
        assert_eq!(outbox.retry_at(), None);
    }

    #[test]
    fn a_resync_gets_the_whole_plan_once() {
        let (a, now) = (plan(&["a"]), Instant::now());
        let mut outbox = Outbox::new(Some(a.plan.digests()), RETRY, usize::MAX);
        assert!(outbox.resync(0, now));
        let frame = sent(outbox.due(Some(&a), now));
        assert!(frame.base_digest.is_empty());
        assert!(outbox.resync(frame.nonce, now));
        let again = sent(outbox.due(Some(&a), now));
        assert!(again.base_digest.is_empty());
        assert!(outbox.resync(again.nonce, now));
        assert!(quiet(&outbox.due(Some(&a), now)), "no endless loop");
    }
}

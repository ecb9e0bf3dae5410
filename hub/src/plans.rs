//! Where sessions find their member's plan.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use spillway_core::plan::{Digest, Plan};
use spillway_core::resolve::Resolution;
use spillway_link::hub::PublishedPlan;
use tokio::sync::watch;

/// Plans of a member that are remembered: one in force is rarely further behind.
const REMEMBERED: usize = 16;

/// One member's plans.
#[derive(Default)]
struct Slot {
    newest: watch::Sender<Option<Arc<PublishedPlan>>>,
    /// Published ones, newest last. They share most of their resources.
    past: VecDeque<(Digest, Arc<Plan>)>,
    /// When the newest was published, until its member acknowledges it.
    unacknowledged: Option<(Digest, Instant)>,
}

/// The newest plan of each member.
#[derive(Default)]
pub(crate) struct Plans(Mutex<BTreeMap<String, Slot>>);

impl Plans {
    /// Follows one member's plan.
    pub(crate) fn subscribe(&self, member: &str) -> watch::Receiver<Option<Arc<PublishedPlan>>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(member.into()).or_default().newest.subscribe()
    }

    /// A plan of the member that was published not long ago.
    pub(crate) fn past(&self, member: &str, digest: &Digest) -> Option<Arc<Plan>> {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let past = &slots.get(member)?.past;
        past.iter().find(|(d, _)| d == digest).map(|(_, p)| p.clone())
    }

    /// When the plan was published that the member acknowledges now, the first time that it does.
    pub(crate) fn acknowledged(&self, member: &str, digest: &Digest) -> Option<Instant> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let published = &mut slots.get_mut(member)?.unacknowledged;
        published.take_if(|(d, _)| d == digest).map(|(_, at)| at)
    }

    /// Publishes what changed. Members whose plans await an allocation keep the plan they have. `sure` says
    /// that everything was read, so that what is gone is meant to be gone. Returns the members whose plan
    /// changed.
    pub(crate) fn publish(&self, resolution: &Resolution, sure: bool) -> Vec<String> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A slot that nobody follows and that has no plan any more would otherwise stay for ever.
        slots.retain(|name, slot| resolution.plans.contains_key(name) || slot.newest.receiver_count() > 0);
        let mut changed = Vec::new();
        for (name, slot) in slots.iter_mut() {
            if !resolution.plans.contains_key(name) {
                slot.newest.send_if_modified(|plan| plan.take().is_some());
            }
        }
        for (name, plan) in &resolution.plans {
            if resolution.waiting.contains(name) {
                continue;
            }
            if slots.entry(name.clone()).or_default().put(plan, sure) {
                changed.push(name.clone());
            }
        }
        changed
    }
}

impl Slot {
    fn put(&mut self, plan: &Plan, sure: bool) -> bool {
        let held = self.newest.borrow().clone();
        if held.is_some_and(|h| *h.plan == *plan && h.removal_intended == sure) {
            return false;
        }
        let plan = Arc::new(plan.clone());
        let digest = plan.digest();
        self.unacknowledged = Some((digest, Instant::now()));
        self.past.push_back((digest, plan.clone()));
        if self.past.len() > REMEMBERED {
            self.past.pop_front();
        }
        self.newest.send_replace(Some(Arc::new(PublishedPlan {
            plan,
            removal_intended: sure,
        })));
        true
    }
}

#[cfg(test)]
mod tests {
    use spillway_core::plan::Resource;
    use spillway_crds::member::PlannedPeerSpec;

    use super::*;

    fn resolution(peer: &str) -> Resolution {
        let plan = Plan::new([Resource::Peer(PlannedPeerSpec {
            member: peer.into(),
            ..PlannedPeerSpec::default()
        })]);
        Resolution {
            plans: BTreeMap::from([("a".to_owned(), plan)]),
            ..Resolution::default()
        }
    }

    #[test]
    fn a_plan_is_published_once_and_kept_while_waiting() {
        let plans = Plans::default();
        let mut follower = plans.subscribe("a");
        assert!(follower.borrow_and_update().is_none());
        assert_eq!(plans.publish(&resolution("b"), true), ["a"]);
        assert!(follower.has_changed().expect("open"));
        let first = follower.borrow_and_update().clone();
        assert!(plans.publish(&resolution("b"), true).is_empty());
        assert!(!follower.has_changed().expect("open"));

        let mut waiting = resolution("c");
        waiting.waiting.insert("a".into());
        assert!(plans.publish(&waiting, true).is_empty());
        assert_eq!(*follower.borrow(), first);
        assert_eq!(plans.publish(&resolution("c"), true), ["a"]);
        let newest = follower.borrow().clone().expect("published").plan.digest();
        assert!(plans.acknowledged("a", &Digest::of(b"x")).is_none());
        assert!(plans.acknowledged("a", &newest).is_some());
        assert!(plans.acknowledged("a", &newest).is_none(), "told again");
        let older = first.expect("published").plan.clone();
        assert_eq!(plans.past("a", &older.digest()), Some(older));

        plans.publish(&Resolution::default(), true);
        assert!(follower.borrow().is_none(), "a member that is gone has no plan");
        drop(follower);
        plans.publish(&Resolution::default(), true);
        assert!(plans.0.lock().expect("unpoisoned").is_empty());
    }
}

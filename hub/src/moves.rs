//! Egress IPs that moved, as events on their gateway: `kubectl describe egressgateway` shows who took what, and why.
//!
//! One event for all addresses that one node took in one write of the status, and a budget for all: a gateway whose nodes
//! flap is damped, yet must not fill the API server. What goes over the budget is said by the next event. Events are lost
//! where the leader dies between the write and the event; the status holds the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, Resource as _};
use spillway_crds::hub::{AddressHolder, EgressGateway};
use spillway_crds::member::NodeRef;

use crate::api::{CALL_LIMIT, within};

/// `reason` of the events.
const REASON: &str = "EgressIPMoved";
/// Events of objects without a namespace live here.
const NAMESPACE: &str = "default";
/// Events that may come at once, and how long one of them takes to come back.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(6);
/// Addresses that a message names.
const NAMED: usize = 5;
/// Longest message; API servers take 1,024 bytes.
const MESSAGE_LIMIT: usize = 1_000;

/// What one node took at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Move {
    to: NodeRef,
    /// Who had them, where somebody had.
    from: Option<NodeRef>,
    reason: String,
    addresses: Vec<String>,
}

impl Move {
    fn message(&self) -> String {
        let Self {
            to,
            from,
            reason,
            addresses,
        } = self;
        let more = addresses.len().saturating_sub(NAMED);
        let mut list = addresses[..addresses.len().min(NAMED)].join(", ");
        if more > 0 {
            list = format!("{list} and {more} more");
        }
        let from = from.as_ref().map(|f| format!(" from {f}")).unwrap_or_default();
        format!("{list} moved{from} to {to}: {reason}")
    }
}

/// Claims that were told of, by gateway. A status is written anew before the copy shows what was written, and what is
/// judged then is older than what was said.
#[derive(Debug, Default)]
struct Told(BTreeMap<String, BTreeSet<(String, NodeRef, String)>>);

impl Told {
    /// Of `after`, what wasn't told yet; from now on it was.
    fn news<'a>(&mut self, gateway: &str, after: &'a [AddressHolder]) -> Vec<&'a AddressHolder> {
        let claim = |h: &AddressHolder| {
            (
                h.address.clone(),
                NodeRef::new(&h.member, &h.node),
                h.since.clone(),
            )
        };
        let known = self.0.entry(gateway.to_owned()).or_default();
        let news = after.iter().filter(|h| !known.contains(&claim(h))).collect();
        *known = after.iter().map(claim).collect();
        news
    }
}

/// What moved from one status to the next. Addresses that nobody answers for any more aren't told of: the node that has
/// them next reports a moment later.
fn moves<'a>(before: &[AddressHolder], after: impl IntoIterator<Item = &'a AddressHolder>) -> Vec<Move> {
    let node = |h: &AddressHolder| NodeRef::new(&h.member, &h.node);
    let had: BTreeMap<&str, &AddressHolder> = before.iter().map(|h| (h.address.as_str(), h)).collect();
    let mut out: Vec<Move> = Vec::new();
    for holder in after {
        let from = had.get(holder.address.as_str()).map(|h| node(h));
        let to = node(holder);
        if from.as_ref() == Some(&to) {
            continue;
        }
        let same = |m: &&mut Move| m.to == to && m.from == from && m.reason == holder.reason;
        if let Some(known) = out.iter_mut().find(same) {
            known.addresses.push(holder.address.clone());
        } else {
            out.push(Move {
                to,
                from,
                reason: holder.reason.clone(),
                addresses: vec![holder.address.clone()],
            });
        }
    }
    out
}

/// How many events may still be written.
#[derive(Debug)]
struct Budget {
    left: u32,
    refilled: Instant,
    unsaid: u32,
}

impl Budget {
    /// Takes one; answers how many before it weren't said, or nothing where none is left.
    fn take(&mut self, now: Instant) -> Option<u32> {
        let periods = now.duration_since(self.refilled).as_secs() / REFILL.as_secs();
        let more = u32::try_from(periods).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.refilled += REFILL * more.min(BURST);
            if self.left == BURST {
                self.refilled = now;
            }
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.unsaid += 1;
            return None;
        };
        self.left = left;
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Says what moved.
pub(crate) struct Teller {
    client: Client,
    replica: String,
    budget: Mutex<Budget>,
    told: Mutex<Told>,
}

impl Teller {
    /// In the name of this replica.
    pub(crate) fn new(client: Client, replica: &str) -> Self {
        Self {
            client,
            replica: replica.into(),
            budget: Mutex::new(Budget {
                left: BURST,
                refilled: Instant::now(),
                unsaid: 0,
            }),
            told: Mutex::default(),
        }
    }

    /// `gateway` has other holders now. Logs what moved, and writes events in the background as far as the budget goes.
    pub(crate) fn tell(&self, gateway: &EgressGateway, after: &[AddressHolder]) {
        let name = gateway.metadata.name.as_deref().unwrap_or_default();
        let before = gateway.status.as_ref().map_or(&[][..], |s| &s.holders);
        let news = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.news(gateway.metadata.uid.as_deref().unwrap_or(name), after)
        };
        for moved in &moves(before, news) {
            let Move {
                to,
                from,
                reason,
                addresses,
            } = moved;
            let from = from.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::info!(gateway = name, node = %to, from, reason, ?addresses, "egress IPs moved");
            let unsaid = {
                let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
                budget.take(Instant::now())
            };
            if let Some(unsaid) = unsaid {
                self.write(event(gateway, &self.replica, moved, unsaid, Timestamp::now()));
            }
        }
    }

    fn write(&self, event: Event) {
        let api: Api<Event> = Api::namespaced(self.client.clone(), NAMESPACE);
        tokio::spawn(async move {
            let params = PostParams::default();
            if let Err(error) = within(CALL_LIMIT, api.create(&params, &event)).await {
                tracing::debug!(%error, "an event can't be written");
            }
        });
    }
}

fn event(gateway: &EgressGateway, replica: &str, moved: &Move, unsaid: u32, now: Timestamp) -> Event {
    let mut message = moved.message();
    if unsaid > 0 {
        message = format!("{message} ({unsaid} moves before this one weren't told of: too many)");
    }
    let name = gateway.metadata.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // As kubectl and kubelet name theirs: unique by the time.
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(EgressGateway::api_version(&()).into()),
            kind: Some(EgressGateway::kind(&()).into()),
            name: Some(name),
            uid: gateway.metadata.uid.clone(),
            ..ObjectReference::default()
        },
        reason: Some(REASON.into()),
        message: Some(message.chars().take(MESSAGE_LIMIT).collect()),
        type_: Some("Normal".into()),
        source: Some(EventSource {
            component: Some("spillway-hub".into()),
            host: Some(replica.into()),
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(address: &str, node: &str, reason: &str) -> AddressHolder {
        AddressHolder {
            address: address.into(),
            member: "b".into(),
            node: node.into(),
            since: "2026-01-01T00:00:00Z".into(),
            reason: reason.into(),
        }
    }

    #[test]
    fn what_one_node_took_at_once_is_one_event_and_what_stayed_none() {
        let dead = "node b/n1 doesn't answer";
        let before: Vec<_> = (0..8)
            .map(|n| holder(&format!("203.0.113.{n}"), if n < 7 { "n1" } else { "n2" }, "x"))
            .collect();
        let after: Vec<_> = before
            .iter()
            .map(|h| holder(&h.address, "n2", if h.node == "n1" { dead } else { "x" }))
            .collect();
        let moved = moves(&before, &after);
        let [one] = &moved[..] else { panic!("{moved:?}") };
        assert_eq!(
            one.message(),
            "203.0.113.0, 203.0.113.1, 203.0.113.2, 203.0.113.3, 203.0.113.4 and 2 more moved from b/n1 to b/n2: \
             node b/n1 doesn't answer"
        );
        assert!(moves(&after, &after).is_empty());
        assert!(moves(&after, []).is_empty(), "nobody yet");
        let first = moves(&[], &after[7..]);
        assert_eq!(first[0].message(), "203.0.113.7 moved to b/n2: x");
    }

    #[test]
    fn what_was_told_is_not_told_again_before_the_copy_shows_it() {
        let mut told = Told::default();
        let first = [holder("203.0.113.1", "n1", "x")];
        assert_eq!(told.news("g", &first).len(), 1);
        assert!(told.news("g", &first).is_empty());
        let mut back = first.clone();
        back[0].since = "2026-01-01T00:00:09Z".into();
        assert_eq!(told.news("g", &back).len(), 1, "it went and came back");
        assert_eq!(told.news("h", &back).len(), 1);
    }

    #[test]
    fn events_are_bounded_and_the_next_one_says_how_many_were_left_out() {
        let start = Instant::now();
        let mut budget = Budget {
            left: BURST,
            refilled: start,
            unsaid: 0,
        };
        let taken = (0..100).filter(|_| budget.take(start).is_some()).count();
        assert_eq!(taken, 20);
        assert_eq!(budget.take(start + REFILL), Some(80));
        assert_eq!(budget.take(start + REFILL), None);
        assert_eq!(budget.take(start + REFILL * 3), Some(1));
        let hour = (0..600).filter(|s| {
            budget
                .take(start + REFILL * 3 + Duration::from_secs(s * 6))
                .is_some()
        });
        assert_eq!(hour.count(), 600, "one each six seconds for ever");
        let later = start + Duration::from_secs(36_000);
        assert_eq!(
            (0..100).filter(|_| budget.take(later).is_some()).count(),
            20,
            "never more at once"
        );
    }
}

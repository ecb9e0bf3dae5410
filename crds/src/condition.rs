//! Conditions, with the habits of the Gateway API: positive polarity, `observedGeneration`, a reason in
//! CamelCase, a message for the person who must act.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// The condition types that Spillway sets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConditionType {
    /// The object is valid and part of the plan.
    Accepted,
    /// Every node concerned has the object in its kernel.
    Programmed,
    /// The member's agent has a live stream to the hub.
    Connected,
    /// Every node that uses the gateway has ports of its egress IPs, and those that need more can get them.
    PortsAvailable,
    /// Every egress IP that is pinned to a node is held by that one.
    PinsHeld,
    /// The member agent holds a certificate that the hub issued.
    Enrolled,
    /// Other policies leave something to this one.
    Effective,
    /// Every range of the cluster is known, as far as can be seen.
    RangesComplete,
    /// The cluster's owner grants all that the hub's plan asks for.
    Granted,
}

impl ConditionType {
    /// The name as it stands in `status.conditions[].type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Programmed => "Programmed",
            Self::Connected => "Connected",
            Self::PortsAvailable => "PortsAvailable",
            Self::PinsHeld => "PinsHeld",
            Self::Enrolled => "Enrolled",
            Self::Effective => "Effective",
            Self::RangesComplete => "RangesComplete",
            Self::Granted => "Granted",
        }
    }
}

/// A condition's value without its clock: what a pure function can decide.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Which condition.
    pub kind: ConditionType,
    /// `Some(true)` is `True`, `Some(false)` `False`, `None` `Unknown`.
    pub status: Option<bool>,
    /// CamelCase reason.
    pub reason: String,
    /// What to know or do, naming the field where one is at fault.
    pub message: String,
}

impl Verdict {
    /// A condition that holds.
    pub fn yes(kind: ConditionType, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: Some(true),
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// A condition that doesn't hold.
    pub fn no(kind: ConditionType, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: Some(false),
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Sets `verdict` in `conditions`. The transition time moves only with the status. Returns whether
/// anything changed, so that a reconciler can skip the write.
pub fn set(
    conditions: &mut Vec<Condition>,
    generation: Option<i64>,
    verdict: &Verdict,
    now: Timestamp,
) -> bool {
    let status = match verdict.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let fresh = |since: Time| Condition {
        type_: verdict.kind.as_str().into(),
        status: status.into(),
        reason: verdict.reason.clone(),
        message: verdict.message.clone(),
        observed_generation: generation,
        last_transition_time: since,
    };
    if let Some(old) = conditions.iter_mut().find(|c| c.type_ == verdict.kind.as_str()) {
        let since = if old.status == status {
            old.last_transition_time.clone()
        } else {
            Time(now)
        };
        let new = fresh(since);
        let changed = *old != new;
        *old = new;
        return changed;
    }
    conditions.push(fresh(Time(now)));
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    true
}

/// True where the condition is present and `True`.
pub fn holds(conditions: &[Condition], kind: ConditionType) -> bool {
    conditions
        .iter()
        .any(|c| c.type_ == kind.as_str() && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        let at = |s| Timestamp::from_second(s).expect("in range");
        let ok = Verdict::yes(ConditionType::Accepted, "Valid", "");
        assert!(set(&mut conditions, Some(1), &ok, at(1)));
        assert!(
            !set(&mut conditions, Some(1), &ok, at(2)),
            "a second identical write is none"
        );
        assert!(set(&mut conditions, Some(2), &ok, at(3)), "the generation moved");
        assert_eq!(conditions[0].last_transition_time.0, at(1));
        let bad = Verdict::no(
            ConditionType::Accepted,
            "UnknownGateway",
            "spec.through[0].gateway",
        );
        assert!(set(&mut conditions, Some(2), &bad, at(4)));
        assert_eq!(conditions[0].last_transition_time.0, at(4));
        assert!(!holds(&conditions, ConditionType::Accepted));
    }
}

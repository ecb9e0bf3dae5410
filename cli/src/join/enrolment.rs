//! What the member agent says about enrolment, and whether it means this join.

use std::time::Duration;

use kube::api::Api;
use spillway_crds::SINGLETON;
use spillway_crds::condition::{Condition, ConditionType};
use spillway_crds::member::HubConnection;
use tokio::time::Instant;

use crate::args::Join;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::join::advice::{self, Advice, Context};

/// How long a refusal that was there before this join is taken for the earlier join's.
const STALE: Duration = Duration::from_secs(10);

/// Tells what the agent says about this join from what it said about an earlier one.
#[derive(Clone, Debug)]
pub struct Since {
    generation: Option<i64>,
    before: Option<Condition>,
    until: Instant,
}

impl Since {
    /// `before` is the connection as it was before this join applied its own. A new token doesn't move the
    /// connection's generation, so the old refusal is also known by being exactly the same condition.
    pub async fn applied(cluster: &Cluster, before: Option<&HubConnection>) -> Result<Self, Failure> {
        Ok(Self {
            generation: connection(cluster).await?.and_then(|c| c.metadata.generation),
            before: before
                .and_then(|c| current(c, ConditionType::Enrolled, None))
                .cloned(),
            until: Instant::now() + STALE,
        })
    }

    fn enrolled<'a>(&self, connection: &'a HubConnection) -> Option<&'a Condition> {
        current(connection, ConditionType::Enrolled, self.generation)
            .filter(|c| self.before.as_ref() != Some(*c) || Instant::now() > self.until)
    }
}

/// The connection as it stands.
pub(crate) async fn connection(cluster: &Cluster) -> Result<Option<HubConnection>, Failure> {
    cluster
        .get(Api::all(cluster.client.clone()), SINGLETON, "HubConnection")
        .await
}

/// A condition that speaks of the connection as it is now, and not of an earlier try.
pub(crate) fn current(
    connection: &HubConnection,
    kind: ConditionType,
    generation: Option<i64>,
) -> Option<&Condition> {
    connection
        .status
        .as_ref()?
        .conditions
        .iter()
        .find(|c| c.type_ == kind.as_str())
        .filter(|c| c.observed_generation.is_none() || c.observed_generation >= generation)
}

/// What the agent says about enrolment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Enrolment {
    /// It has said nothing yet, or is trying.
    Trying,
    /// It is enrolled.
    Done,
    /// It isn't, for a reason.
    Not(Advice),
}

/// Reads what the agent says.
pub(crate) fn enrolment(connection: &HubConnection, join: &Join, since: &Since) -> Enrolment {
    let Some(condition) = since.enrolled(connection) else {
        return Enrolment::Trying;
    };
    match condition.status.as_str() {
        "True" => Enrolment::Done,
        "False" => {
            let endpoints: Vec<String> = join.endpoints.iter().map(ToString::to_string).collect();
            let context = Context {
                member: &join.name,
                endpoints: &endpoints,
                pin: &join.pin.to_string(),
                message: &condition.message,
            };
            Enrolment::Not(advice::for_reason(&condition.reason, &context))
        }
        _ => Enrolment::Trying,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::join::tests::join;

    fn connection(status: &str, reason: &str, generation: i64) -> HubConnection {
        serde_json::from_value(json!({
            "apiVersion": "member.spillway.io/v1alpha1", "kind": "HubConnection", "metadata": {"name": "current"},
            "spec": {"member": "fra-1", "endpoints": ["hub:1"], "caPin": "sha256:"},
            "status": {"conditions": [{"type": "Enrolled", "status": status, "reason": reason, "message": "",
                "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }))
        .expect("a connection")
    }

    fn since(generation: i64, before: Option<&HubConnection>) -> Since {
        Since {
            generation: Some(generation),
            before: before
                .and_then(|c| current(c, ConditionType::Enrolled, None))
                .cloned(),
            until: Instant::now() + STALE,
        }
    }

    #[test]
    fn a_refusal_of_an_earlier_try_is_not_taken_for_this_one() {
        let old = connection("False", "TokenExpired", 1);
        assert_eq!(enrolment(&old, &join(), &since(2, None)), Enrolment::Trying);
        assert_eq!(enrolment(&old, &join(), &since(1, Some(&old))), Enrolment::Trying);
        assert!(matches!(
            enrolment(&old, &join(), &since(1, None)),
            Enrolment::Not(Advice::Stop(_))
        ));
        let late = Since {
            until: Instant::now(),
            ..since(1, Some(&old))
        };
        assert!(matches!(
            enrolment(&old, &join(), &late),
            Enrolment::Not(Advice::Stop(_))
        ));
        assert_eq!(
            enrolment(&connection("True", "Enrolled", 2), &join(), &since(2, None)),
            Enrolment::Done
        );
        let trying = connection("Unknown", "Enrolling", 2);
        assert_eq!(enrolment(&trying, &join(), &since(2, None)), Enrolment::Trying);
        assert!(matches!(
            enrolment(
                &connection("False", "HubUnreachable", 2),
                &join(),
                &since(2, None)
            ),
            Enrolment::Not(Advice::Wait(_))
        ));
    }
}

//! How many nodes of the member have the plan in their kernels.

use k8s_openapi::api::apps::v1::DaemonSet;
use spillway_crds::condition::{self, ConditionType};
use spillway_crds::member::{EgressNode, EgressPlan};

/// How many nodes have the plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    /// The plan's digest; none without a plan.
    pub(crate) digest: Option<String>,
    /// Nodes that have it.
    pub(crate) ready: usize,
    /// Nodes that should.
    pub(crate) wanted: usize,
    /// What the others say.
    pub(crate) waiting: Vec<String>,
}

/// Counts.
pub(crate) fn progress(
    plan: Option<&EgressPlan>,
    agents: Option<&DaemonSet>,
    nodes: &[EgressNode],
) -> Progress {
    let wanted = agents
        .and_then(|d| d.status.as_ref())
        .map_or(0, |s| s.desired_number_scheduled);
    let digest = plan.map(|p| p.spec.digest.clone()).filter(|d| !d.is_empty());
    let has = |node: &EgressNode| {
        node.status.as_ref().is_some_and(|s| {
            s.programmed.is_some()
                && s.programmed == digest
                && condition::holds(&s.conditions, ConditionType::Programmed)
        })
    };
    let waiting = nodes
        .iter()
        .filter(|node| !has(node))
        .map(|node| {
            let name = node.metadata.name.clone().unwrap_or_default();
            let conditions = node
                .status
                .as_ref()
                .map(|s| s.conditions.as_slice())
                .unwrap_or_default();
            match conditions
                .iter()
                .find(|c| c.type_ == "Programmed" && !c.message.is_empty())
            {
                Some(c) => format!("{name}: {}", c.message),
                None => format!("{name} says nothing yet"),
            }
        })
        .collect();
    Progress {
        ready: nodes.iter().filter(|node| has(node)).count(),
        wanted: usize::try_from(wanted).unwrap_or(0),
        digest,
        waiting,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_counts_with_this_plan_in_its_kernel() {
        let plan: EgressPlan = serde_json::from_value(json!({
            "apiVersion": "member.spillway.io/v1alpha1", "kind": "EgressPlan", "metadata": {"name": "current"},
            "spec": {"digest": "d2", "hubId": "h", "epoch": 1},
        }))
        .expect("a plan");
        let agents: DaemonSet = serde_json::from_value(json!({"metadata": {}, "status": {
            "currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3,
        }}))
        .expect("a daemon set");
        let node = |name: &str, programmed: &str, status: &str| -> EgressNode {
            serde_json::from_value(json!({
                "apiVersion": "member.spillway.io/v1alpha1", "kind": "EgressNode", "metadata": {"name": name}, "spec": {},
                "status": {"programmed": programmed, "conditions": [{"type": "Programmed", "status": status,
                    "reason": "X", "message": "nft: no", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .expect("a node")
        };
        let nodes = [
            node("n1", "d2", "True"),
            node("n2", "d1", "True"),
            node("n3", "d2", "False"),
        ];
        let found = progress(Some(&plan), Some(&agents), &nodes);
        assert_eq!((found.ready, found.wanted), (1, 3));
        assert_eq!(found.waiting, ["n2: nft: no", "n3: nft: no"]);
        assert_eq!(progress(None, Some(&agents), &nodes).ready, 0);
    }
}

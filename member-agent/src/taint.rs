//! The startup taint: whoever makes nodes registers them with it, so that no pod is scheduled there before the node's agent
//! holds pods. This agent takes it away; nobody puts it back.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use spillway_crds::member::{EgressNode, EgressPlanSpec, FirstPackets};
use spillway_crds::{ConditionType, STARTUP_TAINT};

use crate::api::{self, Failure, MANAGER};
use crate::control::{self, Wake};
use crate::mirror::Mirror;
use crate::overlay::incarnation;
use crate::plan::Store;

fn taints(node: &Node) -> &[Taint] {
    let spec = node.spec.as_ref();
    spec.and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Whether pods may come: the agent of this very life of the node has programmed the plan and holds pods, or there is
/// nothing that it should hold them for.
fn may_come(node: &Node, egress: Option<&EgressNode>, head: Option<&EgressPlanSpec>) -> bool {
    if head.is_none_or(|h| h.teardown) {
        return true;
    }
    let Some(egress) = egress else {
        return false;
    };
    let Some(status) = &egress.status else {
        return false;
    };
    let current = egress.metadata.generation;
    let programmed = status.conditions.iter().any(|c| {
        c.type_ == ConditionType::Programmed.as_str()
            && c.status == "True"
            && c.observed_generation == current
    });
    // Off is what the operator wants; Open isn't.
    let holds = status.first_packets.is_some_and(|f| f != FirstPackets::Open);
    let same_life = incarnation(node).is_some_and(|i| egress.spec.incarnation == Some(i));
    programmed && holds && same_life && current.is_some()
}

/// What [`run`] looks at.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) nodes: Mirror<Node>,
    pub(crate) egress: Mirror<EgressNode>,
    pub(crate) store: Arc<Store>,
}

/// Takes the taint away, for ever.
pub(crate) async fn run(client: Client, sources: Sources) {
    let wake = Wake::on([
        sources.nodes.changes(),
        sources.egress.changes(),
        sources.store.changes(),
    ]);
    control::run("startup taints", wake, || reconcile(&client, &sources)).await;
}

async fn reconcile(client: &Client, sources: &Sources) -> Result<(), Failure> {
    if !sources.nodes.synced() || !sources.egress.synced() {
        return Ok(());
    }
    let contents = sources.store.contents();
    let mut outcome = Ok(());
    for (name, node) in sources.nodes.objects() {
        let ours = |t: &Taint| t.key == STARTUP_TAINT;
        if !taints(&node).iter().any(ours)
            || !may_come(
                &node,
                sources.egress.get(&name).as_deref(),
                contents.head.as_ref(),
            )
        {
            continue;
        }
        let others: Vec<&Taint> = taints(&node).iter().filter(|t| !ours(t)).collect();
        // The version makes sure that nobody's taint is lost.
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": others},
        });
        let nodes = Api::<Node>::all(client.clone());
        let params = PatchParams {
            field_manager: Some(MANAGER.into()),
            ..PatchParams::default()
        };
        let what = format!("taking taint {STARTUP_TAINT} off node {name}");
        match api::call(&what, nodes.patch(&name, &params, &Patch::Merge(&patch))).await {
            Ok(_) => tracing::info!(node = name, "pods may come: its agent holds them"),
            // One node's failure keeps no other tainted.
            Err(failure) => outcome = Err(failure),
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeStatus, NodeSystemInfo};
    use k8s_openapi::jiff::Timestamp;
    use spillway_crds::condition::{self, Verdict};
    use spillway_crds::member::{EgressNodeSpec, EgressNodeStatus};

    use super::*;

    fn node(boot: &str) -> Node {
        let mut node = Node::default();
        node.metadata.uid = Some("u".into());
        node.status = Some(NodeStatus {
            node_info: Some(NodeSystemInfo {
                boot_id: boot.into(),
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        });
        node
    }

    fn egress(observed: i64, ready: bool, first_packets: FirstPackets) -> EgressNode {
        let spec = EgressNodeSpec {
            incarnation: Some("u/1".into()),
            ..EgressNodeSpec::default()
        };
        let mut egress = EgressNode::new("n", spec);
        egress.metadata.generation = Some(3);
        let mut status = EgressNodeStatus {
            first_packets: Some(first_packets),
            ..EgressNodeStatus::default()
        };
        let verdict = if ready {
            Verdict::yes(ConditionType::Programmed, "Programmed", "")
        } else {
            Verdict::no(ConditionType::Programmed, "ApplyFailed", "")
        };
        condition::set(
            &mut status.conditions,
            Some(observed),
            &verdict,
            Timestamp::UNIX_EPOCH,
        );
        egress.status = Some(status);
        egress
    }

    #[test]
    fn pods_come_when_the_agent_of_this_life_holds_them() {
        let head = EgressPlanSpec::default();
        let judge = |node: &Node, egress: &EgressNode| may_come(node, Some(egress), Some(&head));
        let ready = egress(3, true, FirstPackets::Chain);
        assert!(judge(&node("1"), &ready));
        assert!(judge(&node("1"), &egress(3, true, FirstPackets::Guard)));
        assert!(
            judge(&node("1"), &egress(3, true, FirstPackets::Off)),
            "as the operator chose"
        );
        assert!(
            !judge(&node("1"), &egress(3, true, FirstPackets::Open)),
            "nothing holds them"
        );
        assert!(
            !judge(&node("1"), &egress(3, false, FirstPackets::Chain)),
            "not programmed"
        );
        assert!(
            !judge(&node("1"), &egress(2, true, FirstPackets::Chain)),
            "said of an earlier life"
        );
        assert!(
            !judge(&node("2"), &ready),
            "rebooted, and the object doesn't know yet"
        );
        assert!(!judge(&Node::default(), &ready), "nothing is known of the node");
        let mut older = ready.clone();
        older.status.as_mut().expect("a status").first_packets = None;
        assert!(!judge(&node("1"), &older), "an agent that doesn't say");
        assert!(!may_come(&node("1"), None, Some(&head)), "no agent ever");
    }

    #[test]
    fn without_a_plan_and_after_its_end_nobody_is_kept_away() {
        assert!(may_come(&node("1"), None, None));
        let teardown = EgressPlanSpec {
            teardown: true,
            ..EgressPlanSpec::default()
        };
        assert!(may_come(&node("1"), None, Some(&teardown)));
    }
}

//! Nodes with ports that are missing from their member's report, and for how long.
//!
//! A node's object may be deleted and made again while the node runs on, and its connections with it. So its ports stay its
//! own for a while; what is gone for longer is gone for good.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spillway_crds::condition::{self, ConditionType};
use spillway_crds::hub::{Member, PortSlice};
use spillway_crds::member::NodeRef;
use tokio::time::Instant;

use crate::snapshot::Snapshot;

/// How long a connected member must have reported without a node. A hub that restarts begins anew.
const GONE_AFTER: Duration = Duration::from_secs(300);

/// Since when nodes are missing.
#[derive(Default)]
pub(crate) struct Absent(BTreeMap<NodeRef, Instant>);

impl Absent {
    /// Looks who is missing now. Returns those that are gone for good.
    pub(crate) fn look(&mut self, snapshot: &Snapshot, now: Instant) -> BTreeSet<NodeRef> {
        let missing: BTreeSet<_> = snapshot
            .gateways
            .values()
            .filter_map(|g| g.status.as_ref())
            .flat_map(|s| &s.slices)
            .flat_map(|a| &a.slices)
            .filter(|s| snapshot.members.get(&s.member).is_some_and(|m| lacks(m, &s.node)))
            .map(PortSlice::owner)
            .collect();
        self.0.retain(|node, _| missing.contains(node));
        for node in missing {
            self.0.entry(node).or_insert(now);
        }
        let gone = self.0.iter().filter(|(_, since)| now - **since >= GONE_AFTER);
        gone.map(|(node, _)| node.clone()).collect()
    }

    /// When the next one counts as gone.
    pub(crate) fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let ends = self.0.values().map(|since| *since + GONE_AFTER);
        ends.filter(|end| *end > now).min()
    }
}

/// True where a member that is heard of doesn't report the node.
fn lacks(member: &Member, node: &str) -> bool {
    let Some(status) = &member.status else {
        return false;
    };
    condition::holds(&status.conditions, ConditionType::Connected)
        && status.node_count.is_some()
        && !status.nodes.iter().any(|n| n.name == node)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::jiff::Timestamp;
    use spillway_crds::condition::Verdict;
    use spillway_crds::hub::{
        AddressSlices, EgressGateway, EgressGatewaySpec, MemberNode, MemberSpec, MemberStatus, PortSlice,
    };

    use super::*;

    fn snapshot(nodes: &[&str], connected: bool) -> Snapshot {
        let mut member = Member::new("a", MemberSpec::default());
        let mut conditions = Vec::new();
        let kind = ConditionType::Connected;
        let verdict = if connected {
            Verdict::yes(kind, "Streaming", "")
        } else {
            Verdict::no(kind, "Gone", "")
        };
        condition::set(&mut conditions, None, &verdict, Timestamp::UNIX_EPOCH);
        member.status = Some(MemberStatus {
            node_count: u32::try_from(nodes.len()).ok(),
            nodes: nodes
                .iter()
                .map(|n| MemberNode {
                    name: (*n).into(),
                    ..MemberNode::default()
                })
                .collect(),
            conditions,
            ..MemberStatus::default()
        });
        let mut gateway = EgressGateway::new("g", EgressGatewaySpec::default());
        gateway.status.get_or_insert_default().slices = vec![AddressSlices {
            address: "203.0.113.1".into(),
            slices: vec![PortSlice {
                member: "a".into(),
                node: "n1".into(),
                ..PortSlice::default()
            }],
        }];
        let mut snapshot = Snapshot::default();
        snapshot.members.insert("a".into(), Arc::new(member));
        snapshot.gateways.insert("g".into(), Arc::new(gateway));
        snapshot
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_gone_once_its_member_has_long_reported_without_it() {
        let mut absent = Absent::default();
        let mut look = |snapshot: Snapshot| absent.look(&snapshot, Instant::now()).len();
        assert_eq!(look(snapshot(&["n1"], true)), 0);
        assert_eq!(look(snapshot(&["n2"], true)), 0);
        tokio::time::advance(GONE_AFTER / 2).await;
        assert_eq!(
            look(snapshot(&["n2"], false)),
            0,
            "who isn't heard of says nothing"
        );
        assert_eq!(look(snapshot(&["n2"], true)), 0);
        tokio::time::advance(GONE_AFTER / 2).await;
        assert_eq!(look(snapshot(&["n2"], true)), 0, "counted from anew");
        assert_eq!(absent.next(), Some(Instant::now() + GONE_AFTER / 2));
        tokio::time::advance(GONE_AFTER / 2).await;
        assert_eq!(absent.look(&snapshot(&["n2"], true), Instant::now()).len(), 1);
        assert_eq!(absent.next(), None);
        assert_eq!(absent.look(&snapshot(&["n1"], true), Instant::now()).len(), 0);
    }
}

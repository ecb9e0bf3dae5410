//! What the hub is told: this cluster's nodes and how far they have come with the plan.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use spillway_core::plan::Digest;
use spillway_crds::ConditionType;
use spillway_crds::address::AddressPair;
use spillway_crds::hub::{MemberNode, MemberRangeSource, MemberRanges};
use spillway_crds::member::EgressNode;
use tokio::sync::watch;

use crate::control::Wake;
use crate::mirror::{Mirror, Objects};
use crate::network::ClusterRanges;
use crate::published::Published;
use crate::uplink::MemberReport;

/// A node with this label (and any value but `false`) carries no gateway.
pub(crate) const CORDON_LABEL: &str = "spillway.io/cordon";

/// Node annotation with the `address:port` at which other partitions reach the node's WireGuard.
const ENDPOINT_ANNOTATION: &str = "spillway.io/endpoint";

/// Longest message of a node, in characters.
const MAX_MESSAGE: usize = 1024;

/// True where Kubernetes says that the node is Ready.
pub(crate) fn kubernetes_ready(node: &Node) -> bool {
    node.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

fn cordoned(node: &Node) -> bool {
    node.labels().get(CORDON_LABEL).is_some_and(|v| v != "false")
}

/// Digest of the plan in the node's kernel.
pub(crate) fn programmed(node: &EgressNode) -> Option<Digest> {
    node.status.as_ref()?.programmed.as_deref()?.parse().ok()
}

/// What the annotation says.
fn endpoint(node: &Node) -> Option<Result<SocketAddr, String>> {
    let text = node.annotations().get(ENDPOINT_ANNOTATION)?;
    Some(text.parse().map_err(|_| {
        format!("annotation {ENDPOINT_ANNOTATION}: {text:?} is no address:port, such as 198.51.100.1:5713 or [2001:db8::1]:5713")
    }))
}

fn describe(name: &str, node: &Node, egress: Option<&EgressNode>) -> MemberNode {
    let status = egress.and_then(|e| e.status.as_ref());
    // An agent says its version as soon as it runs, long before it can program anything.
    let agent = status.is_some_and(|s| s.agent_version.is_some() && !s.torn_down);
    let spec = egress.map(|e| e.spec.clone()).unwrap_or_default();
    let addressed = spec.overlay != AddressPair::default();
    let fault = status.and_then(|s| {
        let kind = ConditionType::Programmed.as_str();
        s.conditions
            .iter()
            .find(|c| c.type_ == kind && c.status == "False")
    });
    let message = if let Some(fault) = fault {
        fault.message.clone()
    } else if egress.is_none() || !addressed {
        "the node has no overlay address yet".into()
    } else if !agent {
        "the node's agent isn't running".into()
    } else {
        endpoint(node).and_then(Result::err).unwrap_or_default()
    };
    MemberNode {
        name: name.into(),
        labels: node.labels().clone(),
        overlay: spec.overlay,
        underlay: spec.underlay,
        ready: kubernetes_ready(node) && !cordoned(node) && addressed && agent,
        draining: cordoned(node),
        features: status.map(|s| s.features.clone()).unwrap_or_default(),
        held: status.map(|s| s.held.clone()).unwrap_or_default(),
        port_use: status.map(|s| s.port_use.clone()).unwrap_or_default(),
        endpoint: endpoint(node).and_then(Result::ok).map(|e| e.to_string()),
        wireguard: status.and_then(|s| s.wireguard.clone()),
        programmed: egress.and_then(programmed).map(|d| d.to_string()),
        message: message.chars().take(MAX_MESSAGE).collect(),
    }
}

/// Programmed digests of the nodes that Kubernetes calls Ready. A dead node must not hold back what the
/// others have done.
pub(crate) fn progress(
    nodes: &Objects<Node>,
    egress: &Objects<EgressNode>,
) -> BTreeMap<String, Option<Digest>> {
    nodes
        .iter()
        .filter(|(_, node)| kubernetes_ready(node))
        .map(|(name, _)| (name.clone(), egress.get(name).and_then(|e| programmed(e))))
        .collect()
}

/// Most ranges of one source that the hub is told.
const MAX_RANGES: usize = 64;

/// The ranges as the hub shows them; `None` before they were looked for.
fn told(found: &ClusterRanges) -> Option<MemberRanges> {
    (*found != ClusterRanges::default()).then(|| MemberRanges {
        sources: found
            .spec
            .sources
            .iter()
            .map(|source| {
                let nets: Vec<IpNet> = source.cidrs.iter().filter_map(|c| c.parse().ok()).collect();
                let mut merged = IpNet::aggregate(&nets);
                merged.sort_unstable();
                MemberRangeSource {
                    source: source.source.clone(),
                    total: u32::try_from(merged.len())
                        .ok()
                        .filter(|_| merged.len() > MAX_RANGES),
                    cidrs: merged.iter().take(MAX_RANGES).map(ToString::to_string).collect(),
                }
            })
            .collect(),
        problem: found.problem.clone(),
    })
}

/// The report.
pub(crate) fn build(
    nodes: &Objects<Node>,
    egress: &Objects<EgressNode>,
    ranges: &ClusterRanges,
) -> MemberReport {
    let progress = progress(nodes, egress);
    let first = progress.values().next().copied().flatten();
    let agreed = progress.values().all(|d| *d == first);
    MemberReport {
        nodes: nodes
            .iter()
            .map(|(name, node)| describe(name, node, egress.get(name).map(Arc::as_ref)))
            .collect(),
        programmed: first.filter(|_| agreed),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        ranges: told(ranges),
    }
}

/// Keeps `report` up to date for ever. Whoever watches it wakes only when it really changed.
pub(crate) async fn run(
    nodes: Mirror<Node>,
    egress: Mirror<EgressNode>,
    ranges: Published<ClusterRanges>,
    report: watch::Sender<MemberReport>,
) {
    let mut wake = Wake::on([nodes.changes(), egress.changes(), ranges.changes()]);
    loop {
        // Before everything was read once, a report would tell the hub of nodes that went away.
        if nodes.synced() && egress.synced() {
            let fresh = build(&nodes.objects(), &egress.objects(), &ranges.get());
            report.send_if_modified(|old| {
                let changed = *old != fresh;
                if changed {
                    *old = fresh;
                }
                changed
            });
        }
        wake.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
    use spillway_crds::condition::{self, Verdict};
    use spillway_crds::member::{ClusterNetworkSpec, EgressNodeSpec, EgressNodeStatus, RangeSource};

    use super::*;

    fn node(name: &str, ready: bool) -> (String, Node) {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.status = Some(NodeStatus {
            conditions: Some(vec![NodeCondition {
                type_: "Ready".into(),
                status: if ready { "True" } else { "Unknown" }.into(),
                ..NodeCondition::default()
            }]),
            ..NodeStatus::default()
        });
        (name.into(), node)
    }

    fn egress(name: &str, digest: Option<Digest>) -> (String, EgressNode) {
        let mut node = EgressNode::new(
            name,
            EgressNodeSpec {
                overlay: AddressPair {
                    ipv4: Some("100.64.4.1".into()),
                    ipv6: None,
                },
                ..EgressNodeSpec::default()
            },
        );
        node.status = Some(EgressNodeStatus {
            programmed: digest.map(|d| d.to_string()),
            agent_version: Some("1".into()),
            ..EgressNodeStatus::default()
        });
        (name.into(), node)
    }

    fn built<const N: usize, const E: usize>(
        nodes: [(String, Node); N],
        egress: [(String, EgressNode); E],
    ) -> MemberReport {
        let nodes = nodes.into_iter().map(|(n, o)| (n, Arc::new(o))).collect();
        let egress = egress.into_iter().map(|(n, o)| (n, Arc::new(o))).collect();
        build(&nodes, &egress, &ClusterRanges::default())
    }

    #[test]
    fn a_digest_counts_once_every_ready_node_has_it() {
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let both = |a, b| {
            built(
                [node("a", true), node("b", true)],
                [egress("a", a), egress("b", b)],
            )
        };
        assert_eq!(both(Some(new), Some(old)).programmed, None);
        assert_eq!(both(Some(new), None).programmed, None);
        assert_eq!(both(Some(new), Some(new)).programmed, Some(new));
        let dead = built(
            [node("a", true), node("b", false)],
            [egress("a", Some(new)), egress("b", Some(old))],
        );
        assert_eq!(dead.programmed, Some(new));
        assert_eq!(
            built([node("b", false)], [egress("b", Some(old))]).programmed,
            None
        );
        assert_eq!(built([], []).programmed, None);
    }

    #[test]
    fn a_node_is_ready_when_kubernetes_its_agent_and_its_owner_say_so() {
        let ready = |node, egress| built([node], [egress]).nodes[0].ready;
        assert!(ready(node("a", true), egress("a", None)));
        assert!(!ready(node("a", false), egress("a", None)));

        let mut cordoned = node("a", true);
        let label = |v: &str| (CORDON_LABEL.to_owned(), v.to_owned());
        cordoned.1.metadata.labels = Some([label("")].into());
        assert!(!ready(cordoned.clone(), egress("a", None)));
        cordoned.1.metadata.labels = Some([label("false")].into());
        assert!(ready(cordoned, egress("a", None)));

        let mut silent = egress("a", None);
        silent.1.status = None;
        assert!(!ready(node("a", true), silent));
        let mut bare = egress("a", None);
        bare.1.spec.overlay = AddressPair::default();
        assert!(!ready(node("a", true), bare));
    }

    #[test]
    fn ranges_are_merged_and_bounded_for_the_hub() {
        assert_eq!(told(&ClusterRanges::default()), None);
        let source = |cidrs: Vec<String>| RangeSource {
            source: "s".into(),
            cidrs,
        };
        let nodes = (0..128).map(|i| format!("10.244.{i}.0/24")).collect();
        let scattered = (0..200).map(|i| format!("10.{i}.1.0/24")).collect();
        let found = ClusterRanges {
            spec: ClusterNetworkSpec {
                sources: vec![source(nodes), source(scattered)],
            },
            problem: "p".into(),
        };
        let told = told(&found).expect("something was found");
        assert_eq!(told.sources[0].cidrs, ["10.244.0.0/17"]);
        assert_eq!(told.sources[0].total, None);
        assert_eq!(
            (told.sources[1].cidrs.len(), told.sources[1].total),
            (64, Some(200))
        );
    }

    #[test]
    fn a_node_that_fails_says_why() {
        let mut failing = egress("a", None);
        let status = failing.1.status.as_mut().expect("set above");
        let why = Verdict::no(ConditionType::Programmed, "NoVxlan", "no VXLAN driver");
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        condition::set(&mut status.conditions, None, &why, now);
        assert_eq!(
            built([node("a", true)], [failing]).nodes[0].message,
            "no VXLAN driver"
        );
        assert!(built([node("a", true)], []).nodes[0].message.contains("overlay"));
    }

    #[test]
    fn an_endpoint_is_reported_and_a_wrong_one_is_named() {
        let with = |text: &str| {
            let mut node = node("a", true);
            let annotation = (ENDPOINT_ANNOTATION.to_owned(), text.to_owned());
            node.1.metadata.annotations = Some([annotation].into());
            built([node], [egress("a", None)]).nodes.remove(0)
        };
        assert_eq!(
            with("[2001:db8::1]:7000").endpoint.as_deref(),
            Some("[2001:db8::1]:7000")
        );
        let wrong = with("gateway.example.net:7000");
        assert_eq!(wrong.endpoint, None);
        assert!(wrong.message.contains("gateway.example.net"), "{wrong:?}");
        assert!(wrong.ready, "the node is as good as before");
    }
}

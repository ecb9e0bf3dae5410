//! What a member tells, as it is written to `Member.status` by the replica that holds the stream.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use spillway_core::address::Addresses;
use spillway_crds::address::AddressPair;
use spillway_crds::condition::{Condition, ConditionType, Verdict};
use spillway_crds::hub::{
    HeldAddress, Member, MemberNode, MemberRanges, MemberStatus, PlanProgress, PortUse, Refusal,
};
use spillway_link::MemberReport;

use crate::conditions;

/// Bounds of the schema: what goes beyond is cut, since one long string must not cost the whole report.
const MAX_NODES: usize = 1024;
const MAX_LABELS: usize = 256;
const MAX_NAME: usize = 253;
const MAX_VERSION: usize = 64;
const MAX_RESOURCE: usize = 512;
const MAX_MESSAGE: usize = 1024;
const MAX_FEATURES: usize = 16;
const MAX_FEATURE: usize = 63;
/// Egress IPs of which a node may say something, ranges of each, and characters of each reason. Gateways' statuses
/// have room for no more.
const MAX_ADDRESSES: usize = 1024;
const MAX_RANGES: usize = 64;
const MAX_REASON: usize = 160;
const MAX_SINCE: usize = 40;
/// Sources of ranges, ranges of each, their length, and characters of what is wrong with them.
const MAX_SOURCES: usize = 64;
const MAX_CIDRS: usize = 64;
const MAX_CIDR: usize = 49;
const MAX_PROBLEM: usize = 4096;
/// Bounds of Kubernetes for labels: `prefix/name` and value.
const MAX_LABEL_KEY: usize = 253 + 1 + 63;
const MAX_LABEL_VALUE: usize = 63;
/// Bytes that all nodes of a member may take. etcd takes no object above 1.5 MiB.
const MAX_BYTES: usize = 1 << 20;
/// Bytes that a node takes at most without labels and message, as JSON.
const BARE: usize = 768;

/// The fields of a member's status that its stream decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LinkStatus {
    /// The object that this is about.
    pub(crate) uid: Option<String>,
    /// The member has a live stream to `replica`.
    pub(crate) connected: bool,
    /// Replica that holds the stream, or held it last.
    pub(crate) replica: Option<String>,
    /// Serial number of the certificate that the stream was opened with.
    pub(crate) serial_in_use: Option<String>,
    /// Why there is no stream.
    pub(crate) why: String,
    pub(crate) agent_version: Option<String>,
    pub(crate) nodes: Vec<MemberNode>,
    pub(crate) ranges: Option<MemberRanges>,
    pub(crate) plan: PlanProgress,
}

/// The same as fields of the object.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial_in_use: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_count: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<MemberNode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranges: Option<MemberRanges>,
    plan: PlanProgress,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<Condition>,
}

impl LinkStatus {
    /// What is recorded: a replica that takes a stream over goes on from there.
    pub(crate) fn recorded(status: Option<&MemberStatus>) -> Self {
        let status = status.cloned().unwrap_or_default();
        let connected = status
            .conditions
            .iter()
            .find(|c| c.type_ == ConditionType::Connected.as_str());
        Self {
            uid: None,
            connected: connected.is_some_and(|c| c.status == "True"),
            replica: status.connected_to,
            serial_in_use: status.serial_in_use,
            why: connected.map(|c| c.message.clone()).unwrap_or_default(),
            agent_version: status.agent_version,
            nodes: status.nodes,
            ranges: status.ranges,
            plan: status.plan,
        }
    }

    /// Takes a report in.
    pub(crate) fn report(&mut self, report: MemberReport) {
        self.nodes = nodes(report.nodes);
        self.ranges = report.ranges.map(ranges);
        self.plan.programmed = report.programmed.map(|d| d.to_string());
        self.agent_version = version(&report.agent_version);
    }

    /// Takes a refusal in.
    pub(crate) fn refuse(&mut self, refusal: &spillway_link::hub::Refusal) {
        self.plan.refusal = Some(Refusal {
            digest: refusal.digest.to_string(),
            resource: cut(&refusal.resource, MAX_RESOURCE),
            reason: cut(&refusal.reason, MAX_MESSAGE),
        });
    }

    /// The fields as they should stand in `member`.
    pub(crate) fn wanted(&self, member: &Member, now: Timestamp) -> Fields {
        let current = member.status.as_ref().map_or(&[][..], |s| &s.conditions);
        let replica = self.replica.as_deref().unwrap_or("nobody");
        let verdict = if self.connected {
            Verdict::yes(
                ConditionType::Connected,
                "Streaming",
                format!("connected to {replica}"),
            )
        } else {
            Verdict::no(ConditionType::Connected, "Disconnected", self.why.clone())
        };
        let verdicts: Vec<_> = [verdict]
            .into_iter()
            .chain(self.ranges.as_ref().map(complete))
            .collect();
        Fields {
            agent_version: self.agent_version.clone(),
            connected_to: self.replica.clone(),
            serial_in_use: self.serial_in_use.clone(),
            node_count: u32::try_from(self.nodes.len()).ok(),
            nodes: self.nodes.clone(),
            ranges: self.ranges.clone(),
            plan: self.plan.clone(),
            conditions: conditions::own(current, member.metadata.generation, &verdicts, now),
        }
    }
}

impl Fields {
    /// The fields as they stand in `member`.
    pub(crate) fn standing(member: &Member) -> Self {
        let status = member.status.clone().unwrap_or_default();
        let ours =
            [ConditionType::Connected, ConditionType::RangesComplete].map(|kind| Verdict::no(kind, "", ""));
        Self {
            agent_version: status.agent_version,
            connected_to: status.connected_to,
            serial_in_use: status.serial_in_use,
            node_count: status.node_count,
            conditions: conditions::mine(&status.conditions, &ours),
            nodes: status.nodes,
            ranges: status.ranges,
            plan: status.plan,
        }
    }
}

/// The version as it fits the schema.
pub(crate) fn version(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| cut(text, MAX_VERSION))
}

fn cut(text: &str, limit: usize) -> String {
    text.chars().take(limit).collect()
}

/// Sorted, each name once, within the schema's bounds, addresses in their canonical spelling.
fn nodes(reported: Vec<MemberNode>) -> Vec<MemberNode> {
    let by_name: BTreeMap<_, _> = reported
        .into_iter()
        .filter(|n| (1..=MAX_NAME).contains(&n.name.chars().count()))
        .map(|n| (n.name.clone(), n))
        .collect();
    let fit = |mut node: MemberNode| {
        node.overlay = canonical(&node.overlay);
        node.underlay = canonical(&node.underlay);
        node.message = cut(&node.message, MAX_MESSAGE);
        node.programmed = node.programmed.map(|d| cut(&d, MAX_VERSION));
        node.labels = node
            .labels
            .into_iter()
            .filter(|(k, v)| k.len() <= MAX_LABEL_KEY && v.len() <= MAX_LABEL_VALUE)
            .take(MAX_LABELS)
            .collect();
        node.features.retain(|f| f.len() <= MAX_FEATURE);
        node.features.truncate(MAX_FEATURES);
        node.held = held(node.held);
        node.port_use = port_use(node.port_use);
        node
    };
    let mut nodes: Vec<_> = by_name.into_values().take(MAX_NODES).map(fit).collect();
    shorten(&mut nodes);
    nodes
}

/// Within the schema's bounds.
fn ranges(reported: MemberRanges) -> MemberRanges {
    let sources = reported.sources.into_iter().take(MAX_SOURCES);
    MemberRanges {
        sources: sources
            .map(|mut source| {
                source.source = cut(&source.source, MAX_NAME);
                source.cidrs.retain(|c| c.len() <= MAX_CIDR);
                source.cidrs.truncate(MAX_CIDRS);
                source
            })
            .collect(),
        problem: cut(&reported.problem, MAX_PROBLEM),
    }
}

/// Whether the member knows its ranges.
fn complete(ranges: &MemberRanges) -> Verdict {
    let kind = ConditionType::RangesComplete;
    if ranges.problem.is_empty() {
        Verdict::yes(kind, "Complete", "")
    } else {
        Verdict::no(kind, "RangesIncomplete", ranges.problem.clone())
    }
}

fn held(reported: Vec<HeldAddress>) -> Vec<HeldAddress> {
    let by_address: BTreeMap<IpAddr, _> = reported
        .into_iter()
        .filter_map(|h| Some((h.address.parse().ok()?, h)))
        .collect();
    by_address
        .into_iter()
        .take(MAX_ADDRESSES)
        .map(|(address, h)| HeldAddress {
            address: address.to_string(),
            since: cut(&h.since, MAX_SINCE),
            reason: cut(&h.reason, MAX_REASON),
        })
        .collect()
}

fn port_use(reported: Vec<PortUse>) -> Vec<PortUse> {
    let by_address: BTreeMap<IpAddr, _> = reported
        .into_iter()
        .filter_map(|u| Some((u.address.parse().ok()?, u)))
        .collect();
    by_address
        .into_iter()
        .take(MAX_ADDRESSES)
        .map(|(address, mut u)| {
            u.vacated.truncate(MAX_RANGES);
            PortUse {
                address: address.to_string(),
                ..u
            }
        })
        .collect()
}

/// Where a report is too large for an object, the last nodes lose their labels and what they say of egress IPs, and
/// say so.
fn shorten(nodes: &mut [MemberNode]) {
    let mut left = MAX_BYTES.saturating_sub(nodes.len() * BARE);
    for node in nodes {
        let labels: usize = node.labels.iter().map(|(k, v)| k.len() + v.len() + 6).sum();
        let features: usize = node.features.iter().map(|f| f.len() * 6 + 3).sum();
        let held: usize = node
            .held
            .iter()
            .map(|h| 90 + (h.since.len() + h.reason.len()) * 6)
            .sum();
        let ports: usize = node.port_use.iter().map(|u| 110 + u.vacated.len() * 30).sum();
        // Each byte of a message can take six in JSON.
        let needed = labels + features + held + ports + node.message.len() * 6;
        if needed <= left {
            left -= needed;
            continue;
        }
        left = 0;
        node.labels.clear();
        node.features.clear();
        node.held.clear();
        node.port_use.clear();
        node.message = "the member's report is too large: labels of this node are left out".into();
    }
}

fn canonical(pair: &AddressPair) -> AddressPair {
    Addresses::parse(pair).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use spillway_crds::hub::{MemberRangeSource, MemberSpec, PortRange};

    use super::*;

    fn node(name: &str) -> MemberNode {
        MemberNode {
            name: name.into(),
            message: "m".repeat(5000),
            overlay: AddressPair {
                ipv4: Some("100.64.4.1".into()),
                ipv6: Some("FD64:5711:0:1:0::1".into()),
            },
            underlay: AddressPair {
                ipv4: Some("not an address".into()),
                ipv6: None,
            },
            held: vec![
                HeldAddress {
                    address: "2001:DB8::1".into(),
                    since: "2026-01-01T00:00:00Z".into(),
                    reason: "r".repeat(5000),
                },
                HeldAddress {
                    address: "nowhere".into(),
                    ..HeldAddress::default()
                },
            ],
            port_use: vec![PortUse {
                address: "203.0.113.1".into(),
                vacated: vec![PortRange { first: 1, last: 2 }; 100],
                ..PortUse::default()
            }],
            features: vec!["f".repeat(63); 20],
            ..MemberNode::default()
        }
    }

    #[test]
    fn a_report_is_cut_to_what_the_schema_takes() {
        let mut status = LinkStatus::default();
        status.report(MemberReport {
            nodes: vec![node("b"), node("a"), node("b"), node(&"x".repeat(300)), node("")],
            agent_version: "v".repeat(100),
            programmed: None,
            ranges: Some(MemberRanges {
                sources: vec![
                    MemberRangeSource {
                        source: "s".repeat(500),
                        cidrs: vec!["c".repeat(50); 1]
                            .into_iter()
                            .chain(vec!["10.0.0.0/8".into(); 100])
                            .collect(),
                        total: None,
                    };
                    100
                ],
                problem: "p".repeat(9000),
            }),
        });
        let ranges = status.ranges.clone().expect("told");
        assert_eq!((ranges.sources.len(), ranges.problem.len()), (64, 4096));
        assert_eq!(ranges.sources[0].source.len(), 253);
        assert_eq!(ranges.sources[0].cidrs, vec!["10.0.0.0/8"; 64]);
        let names: Vec<_> = status.nodes.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(status.nodes[0].message.len(), 1024);
        assert_eq!(status.nodes[0].overlay.ipv6.as_deref(), Some("fd64:5711:0:1::1"));
        assert_eq!(status.nodes[0].underlay, AddressPair::default());
        assert_eq!(status.nodes[0].held.len(), 1);
        assert_eq!(status.nodes[0].held[0].address, "2001:db8::1");
        assert_eq!(status.nodes[0].held[0].reason.len(), 160);
        assert_eq!(status.nodes[0].port_use[0].vacated.len(), 64);
        assert_eq!(status.nodes[0].features.len(), 16);
        assert_eq!(status.agent_version.map(|v| v.len()), Some(64));
    }

    #[test]
    fn the_largest_report_fits_an_object() {
        let mut status = LinkStatus::default();
        let long = |n: usize, i: usize| format!("{i}{}", "x".repeat(n))[..n].to_owned();
        status.report(MemberReport {
            nodes: (0..2000)
                .map(|i| MemberNode {
                    labels: (0..300).map(|l| (long(300, l), long(60, l))).collect(),
                    message: "\u{1}".repeat(2000),
                    ..node(&format!("{i:04}{}", "n".repeat(249)))
                })
                .collect(),
            ..MemberReport::default()
        });
        let size = serde_json::to_vec(&status.nodes).expect("plain").len();
        assert!(size <= MAX_BYTES, "{size}");
        assert_eq!(status.nodes.len(), MAX_NODES);
        assert!(!status.nodes[0].labels.is_empty());
        assert!(status.nodes[MAX_NODES - 1].message.contains("too large"));
        let absurd = BTreeMap::from([("k".to_owned(), "v".repeat(1 << 20))]);
        let fat = MemberNode {
            labels: absurd,
            ..node("a")
        };
        status.report(MemberReport {
            nodes: vec![fat],
            ..MemberReport::default()
        });
        assert!(status.nodes[0].labels.is_empty(), "no label of Kubernetes");
    }

    #[test]
    fn what_stands_already_is_not_written_again() {
        let now = Timestamp::from_second(10).expect("in range");
        let later = Timestamp::from_second(20).expect("in range");
        let mut status = LinkStatus {
            connected: true,
            replica: Some("hub-0".into()),
            ..LinkStatus::default()
        };
        status.report(MemberReport {
            nodes: vec![node("a")],
            ranges: Some(MemberRanges {
                problem: "a pod".into(),
                ..MemberRanges::default()
            }),
            ..MemberReport::default()
        });
        let mut member = Member::new("m", MemberSpec::default());
        let wanted = status.wanted(&member, now);
        assert_ne!(wanted, Fields::standing(&member));
        let patch = serde_json::to_value(&wanted).expect("plain");
        member.status = Some(serde_json::from_value(patch).expect("fields of a status"));
        assert_eq!(status.wanted(&member, later), Fields::standing(&member));
        assert_eq!(LinkStatus::recorded(member.status.as_ref()).nodes, status.nodes);
        assert_eq!(LinkStatus::recorded(member.status.as_ref()).ranges, status.ranges);
        status.connected = false;
        assert_ne!(status.wanted(&member, later), Fields::standing(&member));
    }
}

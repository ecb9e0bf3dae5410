//! What a user asks for, and its check.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{ClusterPlan, DEFAULT_NAME, MachinePlan, NodePlan, Plan, Provider};
use crate::{provision::KubernetesVersion, wire::address};

/// What a user asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArenaSpec {
    /// Tells arenas on one machine apart; part of every namespace's name.
    #[serde(default = "default_name")]
    pub name: String,
    /// What its machines are made of.
    #[serde(default)]
    pub provider: Provider,
    /// The clusters, in the order in which they get their addresses.
    pub clusters: Vec<ClusterSpec>,
}

/// One cluster of an [`ArenaSpec`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// A DNS label; nodes are called `<name>-n1`, `<name>-n2`, …
    pub name: String,
    /// Number of nodes, 1 to 100. The control plane isn't one of them.
    #[serde(default = "default_nodes")]
    pub nodes: u8,
    /// The network segment (1 to 99) its machines are on.
    #[serde(default = "default_partition")]
    pub partition: u8,
    /// Pod ranges, one a family; the first one's family is the cluster's primary family.
    #[serde(default = "default_pod_ranges")]
    pub pod_ranges: Vec<IpNet>,
    /// Service ranges, the same families as the pod ranges in the same order.
    #[serde(default = "default_service_ranges")]
    pub service_ranges: Vec<IpNet>,
    /// Kubernetes version, such as `v1.36.3`.
    #[serde(default)]
    pub kubernetes: KubernetesVersion,
    /// Labels of every node.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Further labels of single nodes, by node name.
    #[serde(default)]
    pub node_labels: BTreeMap<String, BTreeMap<String, String>>,
    /// Who enforces NetworkPolicy; nobody unless asked for, as with the plainest CNIs.
    #[serde(default)]
    pub enforcer: Option<Enforcer>,
}

/// A program that enforces NetworkPolicy on every node, beside whatever CNI there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcer {
    /// kube-router's firewall, without its router and its proxy. It filters IPv4 only, with iptables and ipset.
    KubeRouter,
}

fn default_name() -> String {
    DEFAULT_NAME.to_owned()
}

fn default_nodes() -> u8 {
    1
}

fn default_partition() -> u8 {
    1
}

fn v4(a: [u8; 4], prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(a), prefix))
}

fn v6(a: [u16; 8], prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(a), prefix))
}

fn default_pod_ranges() -> Vec<IpNet> {
    vec![
        v4([10, 244, 0, 0], 16),
        v6([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 56),
    ]
}

fn default_service_ranges() -> Vec<IpNet> {
    vec![
        v4([10, 96, 0, 0], 16),
        v6([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 112),
    ]
}

impl ClusterSpec {
    /// A cluster with the defaults: one segment, dual-stack, the same ranges as every other cluster.
    pub fn new(name: &str, nodes: u8) -> Self {
        Self {
            name: name.to_owned(),
            nodes,
            partition: default_partition(),
            pod_ranges: default_pod_ranges(),
            service_ranges: default_service_ranges(),
            kubernetes: KubernetesVersion::DEFAULT,
            labels: BTreeMap::new(),
            node_labels: BTreeMap::new(),
            enforcer: None,
        }
    }
}

impl ArenaSpec {
    /// Reads the short form `hub:1,a:2,b:2` (`NAME[:NODES[@PARTITION]]`).
    pub fn parse_short(name: &str, clusters: &str) -> Result<Self> {
        let clusters = clusters
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(|item| {
                let (item, partition) = match item.split_once('@') {
                    Some((item, p)) => (item, p.parse().with_context(|| format!("partition in {item:?}"))?),
                    None => (item, default_partition()),
                };
                let (name, nodes) = match item.split_once(':') {
                    Some((name, n)) => (
                        name,
                        n.parse()
                            .with_context(|| format!("number of nodes in {item:?}"))?,
                    ),
                    None => (item, default_nodes()),
                };
                Ok(ClusterSpec {
                    partition,
                    ..ClusterSpec::new(name, nodes)
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            name: name.to_owned(),
            provider: Provider::default(),
            clusters,
        })
    }

    /// The same on machines of another make.
    #[must_use]
    pub fn on(self, provider: Provider) -> Self {
        Self { provider, ..self }
    }

    /// Checks the request and works out every machine's name, namespace and addresses.
    pub fn plan(&self) -> Result<Plan> {
        check_name("arena", &self.name)?;
        ensure!(!self.clusters.is_empty(), "an arena needs at least one cluster");
        ensure!(self.clusters.len() <= 10, "an arena has room for ten clusters");
        let mut next_host: BTreeMap<u8, u16> = BTreeMap::new();
        let mut names: BTreeSet<String> =
            BTreeSet::from(["wire", "rtr", "out", crate::kind::MACHINE].map(str::to_owned));
        let mut clusters = Vec::new();
        for (index, spec) in self.clusters.iter().enumerate() {
            check_name("cluster", &spec.name)?;
            let cluster = &spec.name;
            ensure!(
                (1..=100).contains(&spec.nodes),
                "cluster {cluster}: nodes must be 1 to 100"
            );
            ensure!(
                (1..=99).contains(&spec.partition),
                "cluster {cluster}: partition must be 1 to 99"
            );
            check_ranges(spec).with_context(|| format!("cluster {cluster}"))?;
            let host = 10 + u16::try_from(index)?;
            let control_plane = self.machine(&format!("{cluster}-cp"), spec.partition, host);
            let mut nodes = Vec::new();
            for i in 0..u32::from(spec.nodes) {
                let host = next_host.entry(spec.partition).or_insert(20);
                let machine = self.machine(&format!("{cluster}-n{}", i + 1), spec.partition, *host);
                *host += 1;
                ensure!(
                    *host < 255,
                    "partition {} has more nodes than addresses",
                    spec.partition
                );
                let mut labels = spec.labels.clone();
                labels.extend(spec.node_labels.get(&machine.name).cloned().unwrap_or_default());
                let pod_ranges = spec
                    .pod_ranges
                    .iter()
                    .map(|r| node_range(*r, i))
                    .collect::<Result<_>>()?;
                nodes.push(NodePlan {
                    machine,
                    pod_ranges,
                    labels,
                });
            }
            for name in spec.node_labels.keys() {
                ensure!(
                    nodes.iter().any(|n| n.machine.name == *name),
                    "cluster {cluster}: labels for {name}, which is none of its nodes"
                );
            }
            for machine in nodes.iter().map(|n| &n.machine).chain([&control_plane]) {
                ensure!(
                    names.insert(machine.name.clone()),
                    "two machines would be called {}",
                    machine.name
                );
            }
            let (control_plane, control_plane_node) = match self.provider {
                Provider::Namespaces => (control_plane, None),
                Provider::Kind | Provider::KindUpstream => kind_control_plane(spec, control_plane, &nodes)?,
            };
            clusters.push(ClusterPlan {
                spec: spec.clone(),
                control_plane,
                control_plane_node,
                nodes,
                api_port: 0,
                kubectl: std::path::PathBuf::new(),
            });
        }
        if self.provider.is_kind() {
            crate::kind::check(&clusters)?;
        }
        Ok(Plan {
            name: self.name.clone(),
            provider: self.provider,
            docker: None,
            clusters,
        })
    }

    fn machine(&self, name: &str, partition: u8, host: u16) -> MachinePlan {
        MachinePlan {
            name: name.to_owned(),
            netns: format!("sw-{}-{name}", self.name),
            cgroup: format!("sw-{}-{name}", self.name),
            port: match self.provider {
                // In the machine's own namespace, where others have names as well.
                Provider::KindUpstream => Some(address::unique_port(&format!("{}-{name}", self.name))),
                _ => None,
            },
            partition,
            ipv4: address::host_v4(partition, host),
            ipv6: address::host_v6(partition, host),
        }
    }
}

/// With kind a control plane is a node as well: one of its own beside the others, which takes no pods, or the only one.
fn kind_control_plane(
    spec: &ClusterSpec,
    machine: MachinePlan,
    nodes: &[NodePlan],
) -> Result<(MachinePlan, Option<NodePlan>)> {
    if let [only] = nodes {
        return Ok((only.machine.clone(), None));
    }
    let after_the_others = u32::try_from(nodes.len())?;
    let node = NodePlan {
        machine: machine.clone(),
        pod_ranges: spec
            .pod_ranges
            .iter()
            .map(|r| node_range(*r, after_the_others))
            .collect::<Result<_>>()?,
        labels: BTreeMap::new(),
    };
    Ok((machine, Some(node)))
}

pub(super) fn check_name(what: &str, name: &str) -> Result<()> {
    let ok = (1..=20).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    ensure!(
        ok,
        "{what} name {name:?}: use up to 20 lower-case letters, digits and dashes, a letter first and no dash last"
    );
    Ok(())
}

fn check_ranges(spec: &ClusterSpec) -> Result<()> {
    let families = |ranges: &[IpNet]| ranges.iter().map(|r| r.addr().is_ipv4()).collect::<Vec<_>>();
    let pods = families(&spec.pod_ranges);
    ensure!(
        matches!(pods.as_slice(), [_]) || matches!(pods.as_slice(), [a, b] if a != b),
        "podRanges: one range, or one of each family"
    );
    ensure!(
        pods == families(&spec.service_ranges),
        "serviceRanges must have the same families, in the same order, as podRanges"
    );
    for range in spec.pod_ranges.iter().chain(&spec.service_ranges) {
        ensure!(
            range.network() == range.addr(),
            "{range} has host bits set; did you mean {}?",
            range.trunc()
        );
    }
    Ok(())
}

/// The `index`-th /24 (v4) or /64 (v6) of a cluster's pod range.
fn node_range(range: IpNet, index: u32) -> Result<IpNet> {
    let nth = match range {
        IpNet::V4(net) => net
            .subnets(24)
            .ok()
            .and_then(|mut s| s.nth(index as usize))
            .map(IpNet::V4),
        IpNet::V6(net) => net
            .subnets(64)
            .ok()
            .and_then(|mut s| s.nth(index as usize))
            .map(IpNet::V6),
    };
    nth.with_context(|| {
        format!(
            "pod range {range} is too small for {} nodes with a /24 or /64 each",
            index + 1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_share_ranges_and_never_addresses() -> Result<()> {
        let plan = ArenaSpec::parse_short("t", "hub:1,a:2,b:2@2")?.plan()?;
        assert_eq!(
            plan.cluster("a")?.nodes[0].pod_ranges,
            plan.cluster("b")?.nodes[0].pod_ranges
        );
        assert_eq!(
            plan.cluster("a")?.nodes[1].pod_ranges[0].to_string(),
            "10.244.1.0/24"
        );
        assert_eq!(
            plan.cluster("a")?.nodes[1].pod_ranges[1].to_string(),
            "fd00:10:244:1::/64"
        );
        let machines = plan.machines().count();
        let addresses: BTreeSet<_> = plan.machines().map(|m| m.ipv4).collect();
        assert_eq!(addresses.len(), machines);
        let addresses: BTreeSet<_> = plan.machines().map(|m| m.ipv6).collect();
        assert_eq!(addresses.len(), machines);
        let namespaces: BTreeSet<_> = plan.machines().map(|m| &m.netns).collect();
        assert_eq!(namespaces.len(), machines);
        assert_eq!(plan.machine("b/n1")?.ipv4.to_string(), "172.30.2.20");
        Ok(())
    }

    #[test]
    fn a_control_plane_of_kind_is_a_node_and_no_machine_counts_twice() -> Result<()> {
        let plan = ArenaSpec::parse_short("t", "hub:1,a:2")?
            .on(Provider::Kind)
            .plan()?;
        let names: Vec<_> = plan.machines().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["hub-n1", "a-cp", "a-n1", "a-n2"]);
        let a = plan.cluster("a")?;
        let ranges: Vec<_> = a
            .kubernetes_nodes()
            .map(|n| n.pod_ranges[0].to_string())
            .collect();
        assert_eq!(ranges, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]);
        Ok(())
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(
            ArenaSpec::parse_short("t", "a:1,a:1")
                .and_then(|s| s.plan())
                .is_err()
        );
        assert!(ArenaSpec::parse_short("t", "A").and_then(|s| s.plan()).is_err());
        let mut spec = ArenaSpec {
            name: "t".into(),
            provider: Provider::default(),
            clusters: vec![ClusterSpec::new("a", 1)],
        };
        spec.clusters[0].service_ranges.pop();
        assert!(spec.plan().is_err());
    }
}

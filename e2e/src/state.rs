//! What an arena is made of, and where its files are.
//!
//! [`ArenaSpec`] is what a user asks for; [`Plan`] is what follows from it: every machine with its namespace and
//! addresses. The plan is written to the arena's directory before the first object is created, so that `down` finds
//! all of it whatever happened to the `up` that made it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{provision::KubernetesVersion, wire::address};

/// The arena meant when no name is given.
pub const DEFAULT_NAME: &str = "spillway";

/// Directory of all arenas' state. Gone after a reboot of the machine, as the arenas themselves are.
const STATE_ROOT: &str = "/run/spillway-arena";

/// Directory of all arenas' machine disks: images, etcd, logs. On a real filesystem because `/run` may be a small tmpfs.
const DISK_ROOT: &str = "/var/lib/spillway-arena";

/// What a user asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArenaSpec {
    /// Tells arenas on one machine apart; part of every namespace's name.
    #[serde(default = "default_name")]
    pub name: String,
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
            clusters,
        })
    }

    /// Checks the request and works out every machine's name, namespace and addresses.
    pub fn plan(&self) -> Result<Plan> {
        check_name("arena", &self.name)?;
        ensure!(!self.clusters.is_empty(), "an arena needs at least one cluster");
        ensure!(self.clusters.len() <= 10, "an arena has room for ten clusters");
        let mut next_host: BTreeMap<u8, u16> = BTreeMap::new();
        let mut names: BTreeSet<String> = BTreeSet::from(["wire", "rtr", "out"].map(str::to_owned));
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
            clusters.push(ClusterPlan {
                spec: spec.clone(),
                control_plane,
                nodes,
                api_port: 0,
                kubectl: PathBuf::new(),
            });
        }
        Ok(Plan {
            name: self.name.clone(),
            clusters,
        })
    }

    fn machine(&self, name: &str, partition: u8, host: u16) -> MachinePlan {
        MachinePlan {
            name: name.to_owned(),
            netns: format!("sw-{}-{name}", self.name),
            cgroup: format!("sw-{}-{name}", self.name),
            partition,
            ipv4: address::host_v4(partition, host),
            ipv6: address::host_v6(partition, host),
        }
    }
}

fn check_name(what: &str, name: &str) -> Result<()> {
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
        IpNet::V4(net) => net.subnets(24)?.nth(index as usize).map(IpNet::V4),
        IpNet::V6(net) => net.subnets(64)?.nth(index as usize).map(IpNet::V6),
    };
    nth.with_context(|| format!("pod range {range} is too small for {} nodes", index + 1))
}

/// Everything that makes up an arena.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Name of the arena.
    pub name: String,
    /// Its clusters.
    pub clusters: Vec<ClusterPlan>,
}

/// A cluster with its machines.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPlan {
    /// What was asked for.
    pub spec: ClusterSpec,
    /// The machine that runs etcd and the control plane.
    pub control_plane: MachinePlan,
    /// The nodes, in order.
    pub nodes: Vec<NodePlan>,
    /// Port on 127.0.0.1 of the machine that leads to the API server; 0 before it is known.
    pub api_port: u16,
    /// The kubectl of its version; empty before it is known.
    #[serde(default)]
    pub kubectl: PathBuf,
}

/// A node of a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePlan {
    /// The machine; its name is the node's name.
    pub machine: MachinePlan,
    /// The pod ranges routed to this node.
    pub pod_ranges: Vec<IpNet>,
    /// Labels of the Node object.
    pub labels: BTreeMap<String, String>,
}

/// A machine on the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachinePlan {
    /// Host name, unique in the arena.
    pub name: String,
    /// Name of its network namespace.
    pub netns: String,
    /// Name of its cgroup directory, in every cgroup hierarchy.
    pub cgroup: String,
    /// The segment it is on.
    pub partition: u8,
    /// Address on its segment.
    pub ipv4: Ipv4Addr,
    /// Address on its segment.
    pub ipv6: Ipv6Addr,
}

impl MachinePlan {
    /// The address of the same family as `range`.
    pub fn address_like(&self, range: IpNet) -> IpAddr {
        match range {
            IpNet::V4(_) => self.ipv4.into(),
            IpNet::V6(_) => self.ipv6.into(),
        }
    }
}

impl ClusterPlan {
    /// Address on which components reach the API server.
    pub fn api_address(&self) -> IpAddr {
        self.spec
            .pod_ranges
            .first()
            .map_or(self.control_plane.ipv4.into(), |r| {
                self.control_plane.address_like(*r)
            })
    }

    /// URL at which components inside the arena reach the API server.
    pub fn api_url(&self) -> String {
        match self.api_address() {
            IpAddr::V4(a) => format!("https://{a}:6443"),
            IpAddr::V6(a) => format!("https://[{a}]:6443"),
        }
    }
}

impl Plan {
    /// Namespace that holds a bridge per partition.
    pub fn wire_netns(&self) -> String {
        format!("sw-{}-wire", self.name)
    }

    /// Namespace of the router between the partitions and the outside.
    pub fn router_netns(&self) -> String {
        format!("sw-{}-rtr", self.name)
    }

    /// Namespace of the outside server.
    pub fn outside_netns(&self) -> String {
        format!("sw-{}-out", self.name)
    }

    /// All partitions in use.
    pub fn partitions(&self) -> BTreeSet<u8> {
        self.clusters.iter().map(|c| c.spec.partition).collect()
    }

    /// Every control plane and node.
    pub fn machines(&self) -> impl Iterator<Item = &MachinePlan> {
        self.clusters
            .iter()
            .flat_map(|c| std::iter::once(&c.control_plane).chain(c.nodes.iter().map(|n| &n.machine)))
    }

    /// Every namespace of the arena.
    pub fn namespaces(&self) -> Vec<String> {
        self.machines()
            .map(|m| m.netns.clone())
            .chain([self.wire_netns(), self.router_netns(), self.outside_netns()])
            .collect()
    }

    /// A cluster by name.
    pub fn cluster(&self, name: &str) -> Result<&ClusterPlan> {
        self.clusters
            .iter()
            .find(|c| c.spec.name == name)
            .with_context(|| {
                let known: Vec<_> = self.clusters.iter().map(|c| c.spec.name.as_str()).collect();
                format!(
                    "arena {} has no cluster {name}; it has {}",
                    self.name,
                    known.join(", ")
                )
            })
    }

    /// A machine by name, with or without its cluster in front (`a-n1`, `a/a-n1`, `a/n1`).
    pub fn machine(&self, name: &str) -> Result<&MachinePlan> {
        let full = match name.split_once('/') {
            Some((cluster, node)) if node.starts_with(&format!("{cluster}-")) => node.to_owned(),
            Some((cluster, node)) => format!("{cluster}-{node}"),
            None => name.to_owned(),
        };
        self.machines().find(|m| m.name == full).with_context(|| {
            let known: Vec<_> = self.machines().map(|m| m.name.as_str()).collect();
            format!(
                "arena {} has no machine {name}; it has {}",
                self.name,
                known.join(", ")
            )
        })
    }
}

/// The directories of one arena.
#[derive(Debug, Clone)]
pub struct Dirs {
    name: String,
}

impl Dirs {
    /// The directories of the arena called `name`, which need not exist.
    pub fn new(name: &str) -> Result<Self> {
        check_name("arena", name)?;
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// State: plan, certificates, kubeconfigs, outside log.
    pub fn state(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(&self.name)
    }

    /// Machines' disks and logs.
    pub fn disk(&self) -> PathBuf {
        Path::new(DISK_ROOT).join(&self.name)
    }

    /// Root of one machine's private files.
    pub fn machine(&self, machine: &str) -> PathBuf {
        self.disk().join("machines").join(machine)
    }

    /// Logs of one machine's daemons.
    pub fn logs(&self, machine: &str) -> PathBuf {
        self.disk().join("logs").join(machine)
    }

    /// Certificates and keys of one cluster.
    pub fn pki(&self, cluster: &str) -> PathBuf {
        self.state().join("pki").join(cluster)
    }

    /// Kubeconfig of a cluster's administrator, usable from anywhere on this machine.
    pub fn kubeconfig(&self, cluster: &str) -> PathBuf {
        self.state().join(format!("{cluster}.kubeconfig"))
    }

    /// Directory in which the outside server keeps its log.
    pub fn outside(&self) -> PathBuf {
        self.state().join("outside")
    }

    /// The file that serialises commands which change the arena.
    pub fn lock(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(format!("{}.lock", self.name))
    }

    /// The value of [`crate::node::process::MARK`] in the environment of this arena's processes.
    pub fn mark(&self) -> String {
        self.state().display().to_string()
    }

    /// Creates the directories, private to root.
    pub fn create(&self) -> Result<()> {
        for dir in [self.state(), self.disk(), self.outside()] {
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        }
        let logs = self.disk().join("logs");
        fs::create_dir_all(&logs)?;
        let link = self.state().join("logs");
        if !link.exists() {
            std::os::unix::fs::symlink(&logs, &link)?;
        }
        Ok(())
    }

    fn plan_file(&self) -> PathBuf {
        self.state().join("state.json")
    }

    /// Writes the plan, replacing an earlier one in one step.
    pub fn save(&self, plan: &Plan) -> Result<()> {
        let new = self.state().join("state.json.new");
        fs::write(&new, serde_json::to_vec_pretty(plan)?)?;
        fs::rename(&new, self.plan_file())?;
        Ok(())
    }

    /// The plan of the arena, if it exists.
    pub fn load(&self) -> Result<Option<Plan>> {
        let file = self.plan_file();
        match fs::read(&file) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes).with_context(|| format!("read {}", file.display()))?,
            )),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("read {}", file.display())),
        }
    }

    /// The plan of an arena that must exist.
    pub fn load_existing(&self) -> Result<Plan> {
        match self.load()? {
            Some(plan) => Ok(plan),
            None => bail!(
                "no arena called {}; `arena up --name {}` makes one",
                self.name,
                self.name
            ),
        }
    }

    /// Names of all arenas on this machine, also of half-made ones.
    pub fn all() -> Vec<String> {
        let mut names = BTreeSet::new();
        for root in [STATE_ROOT, DISK_ROOT] {
            for entry in fs::read_dir(root).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    names.insert(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        names.into_iter().collect()
    }
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
        let addresses: BTreeSet<_> = plan.machines().map(|m| m.ipv4).collect();
        assert_eq!(addresses.len(), plan.machines().count());
        assert_eq!(plan.machine("b/n1")?.ipv4.to_string(), "172.30.2.20");
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
            clusters: vec![ClusterSpec::new("a", 1)],
        };
        spec.clusters[0].service_ranges.pop();
        assert!(spec.plan().is_err());
    }
}

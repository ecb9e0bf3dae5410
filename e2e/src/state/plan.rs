//! Everything that makes up an arena.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ClusterSpec, Provider};
use crate::kind::Docker;

/// Everything that makes up an arena.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Name of the arena.
    pub name: String,
    /// What its machines are made of.
    #[serde(default)]
    pub provider: Provider,
    /// The Docker in which its machines are containers, once it runs.
    #[serde(default)]
    pub docker: Option<Docker>,
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
    /// The same as a node, where it is one that takes no pods.
    #[serde(default)]
    pub control_plane_node: Option<NodePlan>,
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
    /// Name of its port on the wire's side, where that isn't made of its own.
    #[serde(default)]
    pub port: Option<String>,
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
    /// Every node that its API server knows: those that take pods, then the control plane where it is a node.
    pub fn kubernetes_nodes(&self) -> impl Iterator<Item = &NodePlan> {
        self.nodes.iter().chain(&self.control_plane_node)
    }

    /// Every machine, each once: the control plane first.
    pub fn machines(&self) -> impl Iterator<Item = &MachinePlan> {
        let own = std::iter::once(&self.control_plane)
            .filter(|cp| self.nodes.iter().all(|node| node.machine.name != cp.name));
        own.chain(self.nodes.iter().map(|n| &n.machine))
    }

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
        self.clusters.iter().flat_map(ClusterPlan::machines)
    }

    /// Every cgroup directory of the arena.
    pub fn cgroups(&self) -> Vec<String> {
        match self.provider {
            Provider::Namespaces => self.machines().map(|m| m.cgroup.clone()).collect(),
            Provider::Kind => vec![self.docker_cgroup()],
            Provider::KindUpstream => Vec::new(),
        }
    }

    /// Cgroup directory of all containers, where machines are containers.
    pub fn docker_cgroup(&self) -> String {
        format!("sw-{}-docker", self.name)
    }

    /// Every namespace of the arena.
    pub fn namespaces(&self) -> Vec<String> {
        let mut names: Vec<String> = self.machines().map(|m| m.netns.clone()).collect();
        names.extend([self.router_netns(), self.outside_netns()]);
        if self.borrowed_namespace().is_none() {
            names.push(self.wire_netns());
        }
        names
    }

    /// The arena's name for this machine's own namespace, where that is the wire. Nothing in it may be killed, and only
    /// the name deleted.
    pub fn borrowed_namespace(&self) -> Option<String> {
        (self.provider == Provider::KindUpstream).then(|| self.wire_netns())
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

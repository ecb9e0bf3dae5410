//! Everything that decides what one node's kernel must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use spillway_crds::address::AddressPair;
use spillway_crds::member::{
    ClusterNetworkSpec, EgressNodeSpec, Grants, NodeRef, PlannedGatewaySpec, PlannedMemberSpec,
    PlannedPeerSpec, PlannedPolicySpec,
};

use super::gateways::Liveness;
use super::interval::Family;
use super::sandbox::Sandbox;
use super::state::Facts;

/// Inputs of [`super::compile()`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NodeInputs {
    /// Kubernetes name of this node.
    pub node: String,
    /// The plan; absent before the first one and when a teardown was asked for.
    pub plan: Option<NodePlan>,
    /// All nodes of this cluster by name, this one included.
    pub nodes: BTreeMap<String, EgressNodeSpec>,
    /// WireGuard public keys of this cluster's nodes in base64, by name, the one in use first.
    #[serde(default)]
    pub public_keys: BTreeMap<String, Vec<String>>,
    /// Ranges that no policy takes.
    pub network: ClusterNetworkSpec,
    /// What the cluster's owner lets the hub do.
    #[serde(default)]
    pub grants: Grants,
    /// Labels of namespaces by name.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Pods of this node.
    pub pods: Vec<Pod>,
    /// What the CNI said of pods' addresses, oldest first; see [`super::sandbox`].
    #[serde(default)]
    pub sandboxes: Vec<Sandbox>,
    /// What comes from a pod that this node doesn't know yet is dropped where a policy claims its destination.
    #[serde(default)]
    pub guard: bool,
    /// What the node is like.
    pub facts: Facts,
    /// What an operator may set.
    pub settings: Settings,
    /// Gateways' numbers on this node as last assigned, so that they stay; see [`super::index`].
    pub gateway_indexes: BTreeMap<String, u8>,
    /// What the probes found. Not kept over a restart: probing begins anew.
    #[serde(skip)]
    pub liveness: Liveness,
    /// Gateways that this node was one of until lately, as the plan last had them with it. What is still on its way
    /// here is forwarded, and no egress IP of theirs is answered for.
    #[serde(default)]
    pub leaving: Vec<PlannedGatewaySpec>,
    /// Nodes that were peers until lately, one to a spec: what they still forward here is taken, and what this node still
    /// forwards reaches them.
    #[serde(default)]
    pub departed: Vec<PlannedPeerSpec>,
}

impl NodeInputs {
    /// This node; nameless before there is a plan to say of which member it is.
    pub fn me(&self) -> Option<NodeRef> {
        let plan = self.plan.as_ref()?;
        Some(NodeRef::new(&plan.member.member, &self.node))
    }
}

/// The plan's objects, which add up to its digest.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NodePlan {
    /// The plan's digest, 64 hex digits.
    pub digest: String,
    /// This member.
    pub member: PlannedMemberSpec,
    /// Other members' nodes.
    pub peers: Vec<PlannedPeerSpec>,
    /// Gateways used or hosted here.
    pub gateways: Vec<PlannedGatewaySpec>,
    /// Policies.
    pub policies: Vec<PlannedPolicySpec>,
}

/// One pod of this node.
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent answers to independent questions"
)]
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What tells it from others of its name, before and after it; empty where nobody knows.
    #[serde(default)]
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The pod uses the node's own network, and so has no address of its own.
    pub host_network: bool,
    /// None of its containers will run again, so its addresses may already be another pod's.
    pub finished: bool,
    /// It is being deleted. Where another pod claims one of its addresses, that one has it.
    #[serde(default)]
    pub deleting: bool,
    /// The API server has forgotten it, though nobody said that its containers ended: they may run on, as after a
    /// forced deletion. Any other pod that claims one of its addresses has it.
    #[serde(default)]
    pub removed: bool,
    /// When it was created, in seconds since 1970. Where two pods claim one address, the younger has it.
    pub created: i64,
}

impl Pod {
    /// True where both are the same pod, as far as can be told.
    pub(super) fn is(&self, other: &Self) -> bool {
        if self.uid.is_empty() || other.uid.is_empty() {
            (&self.namespace, &self.name) == (&other.namespace, &other.name)
        } else {
            self.uid == other.uid
        }
    }
}

/// What an operator may set, equal on all nodes of a cluster.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Settings {
    /// Bits of the packet mark that route to a gateway: at most eight, contiguous, none of them used by the
    /// CNI or kube-proxy, none of the low 16.
    pub mark_mask: u32,
    /// Name of the tunnel device.
    pub device: String,
    /// Name of the WireGuard device.
    #[serde(default = "wireguard")]
    pub wireguard: String,
    /// Name of our nftables table.
    pub table: String,
    /// Gateway number n has routing table `table_base + n`, n from 1; number 0 is that of encrypted paths.
    pub table_base: u32,
    /// Gateway number n has its rule at preference `rule_base + n`, n from 1; number 0 is that of encrypted paths.
    pub rule_base: u32,
    /// Namespace of Spillway's own pods. No policy selects them: what cuts the member agent off from the hub
    /// could never be taken back.
    #[serde(default = "own_namespace")]
    pub namespace: String,
}

fn own_namespace() -> String {
    spillway_crds::NAMESPACE.into()
}

fn wireguard() -> String {
    "spillway-wg".into()
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mark_mask: 0xff00_0000,
            device: "spillway0".into(),
            wireguard: wireguard(),
            table: "spillway".into(),
            table_base: 5_711_000,
            rule_base: 20_000,
            namespace: own_namespace(),
        }
    }
}

impl Settings {
    /// The mark of gateway number `index`.
    pub const fn mark(&self, index: u8) -> u32 {
        ((index as u32) << self.mark_mask.trailing_zeros()) & self.mark_mask
    }

    /// How many gateways the mask can tell apart.
    pub fn gateways(&self) -> u8 {
        let ones = self.mark_mask.count_ones().min(8);
        u8::try_from((1u32 << ones) - 2).unwrap_or(254)
    }

    /// Name of the table that stands in for [`Settings::table`] while that is missing.
    pub fn seal_table(&self) -> String {
        format!("{}_seal", self.table)
    }

    /// Says what is wrong with the mask, if anything.
    pub fn problem(&self) -> Option<String> {
        let mask = self.mark_mask;
        let contiguous = mask != 0 && {
            let low = mask >> mask.trailing_zeros();
            low & low.wrapping_add(1) == 0
        };
        (!contiguous || !(2..=8).contains(&mask.count_ones()) || mask & 0xffff != 0).then(|| {
            format!(
                "mark mask {mask:#010x} must be 2 to 8 contiguous bits above the low 16, such as 0xff000000"
            )
        })
    }
}

/// An [`AddressPair`] that was parsed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Addresses {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl Addresses {
    /// Parses what can be parsed; an address in the other family's field counts as absent.
    pub fn of(pair: &AddressPair) -> Self {
        let read = |s: &Option<String>, family| {
            s.as_ref()
                .and_then(|s| s.parse::<IpAddr>().ok())
                .filter(|a| Family::of(*a) == family)
        };
        Self {
            v4: read(&pair.ipv4, Family::V4),
            v6: read(&pair.ipv6, Family::V6),
        }
    }

    /// The address of one family.
    pub const fn get(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// The same without those for which `unwanted` is true.
    #[must_use]
    pub fn without(self, unwanted: impl Fn(IpAddr) -> bool) -> Self {
        let keep = |a: &IpAddr| !unwanted(*a);
        Self {
            v4: self.v4.filter(keep),
            v6: self.v6.filter(keep),
        }
    }

    /// Both, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.into_iter().chain(self.v6)
    }
}

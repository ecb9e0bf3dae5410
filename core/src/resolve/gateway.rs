//! Gateways: their pools, their nodes, and who of them comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use spillway_crds::hub::{MemberNode, Translation};
use spillway_crds::member::{GatewayNode, GatewayNodeState, NodeRef};

use super::{Fault, Federation, GatewayInput, MemberInput, PolicyInput, pins};
use crate::address::{Addresses, Pool, Problem};
use crate::alloc::{Egress, MemberBlock};
use crate::plan::Digest;

/// Most nodes that a plan lists for one gateway.
const MAX_NODES: usize = 256;
/// Feature of a kernel that stateless gateways need.
const EGRESS_HOOK: &str = "egress-hook";

/// All gateways, by name.
pub(super) struct Gateways<'a> {
    by_name: BTreeMap<&'a str, Gateway<'a>>,
}

/// One gateway.
pub(super) struct Gateway<'a> {
    pub(super) input: &'a GatewayInput,
    pub(super) pool: Pool,
    /// The pool with what was taken out of it and is in use.
    pub(super) own: Pool,
    /// What policies leave with that ask for no other address.
    pub(super) default: Addresses,
    /// The pool is the gateway's own: no policy may use the gateway otherwise.
    pub(super) usable: bool,
    pub(super) faults: Vec<Fault>,
    /// Selected nodes by member, ready or not, sorted by name.
    pub(super) hosts: BTreeMap<&'a str, Vec<&'a MemberNode>>,
    /// Nodes, best first: those that are ready, those that aren't, those that are being drained.
    pub(super) order: Vec<GatewayNode>,
    /// Where packets get their egress IP: what was asked for, where every node's kernel can do it.
    pub(super) translation: Translation,
    /// The node whose kernel can't.
    pub(super) unfit: Option<NodeRef>,
    /// Nodes that are to hold certain addresses.
    pub(super) pins: BTreeMap<IpAddr, NodeRef>,
}

impl<'a> Gateways<'a> {
    pub(super) fn new(federation: &Federation<'a>) -> Self {
        let state = federation.state;
        let inputs: BTreeMap<_, _> = state.gateways.iter().map(|g| (g.name.as_str(), g)).collect();
        let mut sorted: Vec<_> = inputs.into_values().collect();
        sorted.sort_by_key(|g| (g.created, &g.name));
        let overlay = [IpNet::V4(state.overlay.v4()), IpNet::V6(state.overlay.v6())];
        let gateways: Vec<_> = sorted
            .into_iter()
            .map(|input| Gateway::new(input, federation))
            .collect();
        // Who edits a pool into addresses that another gateway uses is at fault, also as the older one.
        let intruders: BTreeSet<_> = gateways
            .iter()
            .filter(|g| gateways.iter().any(|other| g.intrudes(other)))
            .map(|g| g.input.name.as_str())
            .collect();
        let (last, first): (Vec<_>, Vec<_>) = gateways
            .into_iter()
            .partition(|g| intruders.contains(g.input.name.as_str()));
        let mut older: Vec<Gateway<'a>> = Vec::new();
        for mut gateway in first.into_iter().chain(last) {
            gateway.claim(&overlay, &older);
            older.push(gateway);
        }
        Self {
            by_name: older.into_iter().map(|g| (g.input.name.as_str(), g)).collect(),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Gateway<'a>> {
        self.by_name.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Gateway<'a>> {
        self.by_name.values()
    }

    /// Recorded identities, oldest gateway first.
    pub(super) fn recorded(&self) -> Vec<(Egress, u16)> {
        let mut sorted: Vec<_> = self.iter().map(|g| g.input).collect();
        sorted.sort_by_key(|g| (g.created, &g.name));
        sorted
            .into_iter()
            .flat_map(|g| {
                g.identities.iter().filter_map(|r| {
                    let addresses = Addresses::parse(&r.egress_ip).ok()?;
                    Some((
                        Egress {
                            gateway: g.name.clone(),
                            addresses,
                        },
                        r.id,
                    ))
                })
            })
            .collect()
    }
}

impl<'a> Gateway<'a> {
    fn new(input: &'a GatewayInput, federation: &Federation<'a>) -> Self {
        let (pool, bad) = Pool::parse(&input.spec.addresses);
        let mut faults: Vec<_> = bad
            .into_iter()
            .map(|b| {
                let reason = if b.error.problem == Problem::Duplicate {
                    "DuplicateEntry"
                } else {
                    "InvalidAddress"
                };
                Fault::new(reason, format!("spec.addresses.{}: {}", b.field, b.error))
            })
            .collect();
        let default = default(input, &pool, &mut faults);
        let in_use = input
            .identities
            .iter()
            .filter_map(|r| Addresses::parse(&r.egress_ip).ok());
        let own = pool.clone().with(in_use.flat_map(|pair| pair.iter()));
        let (pins, misread) = pins::read(&input.spec, &own);
        faults.extend(misread);
        let mut hosts: BTreeMap<&str, BTreeMap<&str, &MemberNode>> = BTreeMap::new();
        for (i, entry) in input.spec.nodes.iter().enumerate() {
            if input.spec.nodes[..i].contains(entry) {
                faults.push(Fault::new(
                    "DuplicateEntry",
                    format!("spec.nodes[{i}] repeats an earlier entry; remove one of the two"),
                ));
            }
            let Some((name, nodes)) = federation.nodes.get_key_value(entry.member.as_str()) else {
                faults.push(Fault::new(
                    "UnknownMember",
                    format!(
                        "spec.nodes[{i}].member: no member is named {:?}; join that cluster or correct the name",
                        entry.member
                    ),
                ));
                continue;
            };
            let selected = nodes.iter().filter(|(_, n)| entry.selector.matches(&n.labels));
            hosts
                .entry(name)
                .or_default()
                .extend(selected.map(|(k, n)| (*k, *n)));
        }
        hosts.retain(|_, nodes| !nodes.is_empty());
        let hosts: BTreeMap<_, Vec<_>> = hosts
            .into_iter()
            .map(|(m, nodes)| (m, nodes.into_values().collect()))
            .collect();
        let order = order(&input.name, &hosts);
        let asked = if input.spec.addresses.node_ip {
            Translation::GatewayNode
        } else {
            input.spec.translation
        };
        let unfit = unfit(&hosts).filter(|_| asked == Translation::SourceNode);
        Self {
            input,
            pool,
            own,
            default,
            usable: true,
            faults,
            hosts,
            order,
            translation: if unfit.is_some() {
                Translation::GatewayNode
            } else {
                asked
            },
            unfit,
            pins,
        }
    }

    /// True where a node of it is expected to carry traffic: one that is being drained does while there is no other.
    pub(super) fn serves(&self) -> bool {
        self.order.iter().any(|n| n.state != GatewayNodeState::NotReady)
    }

    /// It leaves with its nodes' own addresses.
    pub(super) const fn node_ip(&self) -> bool {
        self.input.spec.addresses.node_ip
    }

    /// Whether a node of it has an address of its own of the family, as far as is known.
    pub(super) fn lends(&self, v6: bool) -> bool {
        let mut nodes = self.hosts.values().flatten().peekable();
        let has = |n: &&MemberNode| own_addresses(n).iter().any(|a| a.is_ipv6() == v6);
        self.node_ip() && (nodes.peek().is_none() || nodes.any(has))
    }

    /// Whether `policy` may use it in `member`.
    pub(super) fn grants(&self, policy: &PolicyInput, member: &MemberInput) -> bool {
        let Some(entries) = &self.input.spec.allow else {
            return true;
        };
        entries.iter().any(|entry| {
            let named = |ns: &String| entry.namespaces.contains(ns);
            let all = entry.namespaces.is_empty();
            let whose = all || policy.source.namespace.as_ref().is_some_and(named);
            whose && entry.members.matches(&member.labels)
        })
    }

    /// Its ready nodes, best first.
    pub(super) fn ready(&self) -> impl Iterator<Item = &NodeRef> {
        let ready = |n: &&GatewayNode| n.state == GatewayNodeState::Ready;
        self.order.iter().filter(ready).map(|n| &n.node)
    }

    /// True where the pool has addresses that `other` uses out of its own, and not the other way round.
    fn intrudes(&self, other: &Self) -> bool {
        let uses = |user: &Self, pool: &Pool| {
            user.input.identities.iter().any(|record| {
                let pair = Addresses::parse(&record.egress_ip).unwrap_or_default();
                pair.iter().any(|a| pool.contains(a))
            })
        };
        let overlap = !std::ptr::eq(self, other) && self.own.overlap(&other.own).is_some();
        overlap && uses(other, &self.pool) && !uses(self, &other.pool)
    }

    /// Checks that the pool is nobody else's.
    fn claim(&mut self, overlay: &[IpNet], older: &[Gateway<'a>]) {
        if let Some(address) = overlay.iter().find_map(|net| self.pool.overlap_with(*net)) {
            self.usable = false;
            self.faults.insert(
                0,
                Fault::new(
                    "AddressReserved",
                    format!(
                        "spec.addresses: {address} lies in the overlay range, which never leaves a cluster; choose addresses outside it"
                    ),
                ),
            );
        }
        let taken = older
            .iter()
            .filter(|o| o.usable)
            .find_map(|o| self.own.overlap(&o.own).map(|a| (o, a)));
        if let Some((other, address)) = taken {
            self.usable = false;
            self.faults.insert(
                0,
                Fault::new(
                    "AddressOverlap",
                    format!(
                        "spec.addresses: {address} belongs to gateway {:?}, which is older or already uses it; take it out of one of the two pools",
                        other.input.name
                    ),
                ),
            );
        }
    }
}

/// Addresses that a node has in its cluster.
pub(super) fn own_addresses(node: &MemberNode) -> Addresses {
    Addresses::parse(&node.underlay).unwrap_or_default()
}

/// The gateway's default addresses: those that it names, the pool's first for families that it doesn't.
fn default(input: &GatewayInput, pool: &Pool, faults: &mut Vec<Fault>) -> Addresses {
    let first = pool.first();
    let Some(pair) = &input.spec.addresses.default else {
        return first;
    };
    let named = match Addresses::parse(pair) {
        Ok(named) => named,
        Err((field, bad)) => {
            faults.push(Fault::new(
                "InvalidAddress",
                format!("spec.addresses.default.{field}: {bad}"),
            ));
            return first;
        }
    };
    for address in named.iter().filter(|a| !pool.contains(*a)) {
        faults.push(Fault::new(
            "AddressNotInPool",
            format!(
                "spec.addresses.default: {address} is in no entry of the pool; add it or name another. Until then the pool's first address stands in for it"
            ),
        ));
    }
    let named = named.without(|a| !pool.contains(a));
    Addresses {
        v4: named.v4.or(first.v4),
        v6: named.v6.or(first.v6),
    }
}

/// A member's nodes that can be at a tunnel's end: those with overlay addresses out of the member's own
/// block, so that no member can pose as another's node. Of two nodes with the same name or the same
/// overlay address the first in the sorted list counts.
pub(super) fn usable_nodes<'a>(
    member: &'a MemberInput,
    block: Option<&MemberBlock>,
) -> BTreeMap<&'a str, &'a MemberNode> {
    let Some(block) = block else {
        return BTreeMap::new();
    };
    let mut sorted: Vec<_> = member.nodes.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut seen = BTreeSet::new();
    let mut out = BTreeMap::new();
    for node in sorted {
        let Ok(overlay) = Addresses::parse(&node.overlay) else {
            continue;
        };
        let Ok(underlay) = Addresses::parse(&node.underlay) else {
            continue;
        };
        if underlay.iter().any(|a| !is_reachable(a)) {
            continue;
        }
        let fresh = overlay.iter().all(|a| !seen.contains(&a));
        if block.holds(&overlay) && !underlay.is_empty() && fresh && !out.contains_key(node.name.as_str()) {
            seen.extend(overlay.iter());
            out.insert(node.name.as_str(), node);
        }
    }
    out
}

/// An address at which another machine can be: a member must not make others' nodes send to themselves, or
/// to whole segments.
const fn is_reachable(address: IpAddr) -> bool {
    let nobody = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let local = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    !nobody && !local
}

/// Nodes by what is known of them, then by rendezvous hash, highest first: the loss of a node moves only what it
/// carried.
fn order(gateway: &str, hosts: &BTreeMap<&str, Vec<&MemberNode>>) -> Vec<GatewayNode> {
    let mut ranked: Vec<_> = hosts
        .iter()
        .flat_map(|(member, nodes)| nodes.iter().map(move |n| (*member, n)))
        .map(|(member, node)| {
            let state = if node.draining {
                GatewayNodeState::Draining
            } else if node.ready {
                GatewayNodeState::Ready
            } else {
                GatewayNodeState::NotReady
            };
            let weight = Digest::of(format!("{gateway}/{member}/{}", node.name).as_bytes());
            let node = NodeRef::new(member, &node.name);
            (state, std::cmp::Reverse((weight, node.clone())), node)
        })
        .collect();
    ranked.sort();
    ranked.truncate(MAX_NODES);
    ranked
        .into_iter()
        .map(|(state, _, node)| GatewayNode { node, state })
        .collect()
}

/// A node whose kernel has no egress hook. One that has reported nothing of its kernel yet isn't meant.
fn unfit(hosts: &BTreeMap<&str, Vec<&MemberNode>>) -> Option<NodeRef> {
    let mut nodes = hosts
        .iter()
        .flat_map(|(member, nodes)| nodes.iter().map(move |n| (*member, n)));
    let (member, node) =
        nodes.find(|(_, n)| !n.features.is_empty() && !n.features.iter().any(|f| f == EGRESS_HOOK))?;
    Some(NodeRef::new(member, &node.name))
}

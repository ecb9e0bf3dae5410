//! Who gets what: each member's plan holds what concerns its own pods and its own gateway nodes.

use std::collections::{BTreeMap, BTreeSet};

use spillway_crds::hub::{MemberNode, MemberPath, Translation, WireGuardStatus};
use spillway_crds::member::{
    PeerNode, PlannedGatewaySpec, PlannedIdentity, PlannedMemberSpec, PlannedPeerSpec, PlannedPolicySpec,
    PlannedThrough, PolicyRef,
};

use super::gateway::{Gateway, Gateways};
use super::paths::Encrypted;
use super::policy::{Identities, Policies, Policy};
use super::reach::{Reach, endpoint};
use super::slices::Recorded;
use super::{Federation, pins};
use crate::address::Addresses;
use crate::alloc::{Egress, MemberBlock};
use crate::plan::{Plan, Prepared, Resource};
use crate::wireguard::PublicKey;

/// Most public keys of one node: the one in use and its successor.
const MAX_KEYS: usize = 2;

/// Plans, and members whose plans await an allocation.
pub(super) struct Made {
    pub(super) plans: BTreeMap<String, Plan>,
    pub(super) waiting: BTreeSet<String>,
    /// How members of different partitions reach each other.
    pub(super) paths: BTreeMap<String, Vec<MemberPath>>,
}

/// Which members use what, gathered once over all policies.
#[derive(Default)]
struct Usage<'a> {
    policies: BTreeMap<&'a str, Vec<&'a Policy<'a>>>,
    /// Members by gateway.
    gateways: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// Members by identity.
    egress: BTreeMap<&'a Egress, BTreeSet<&'a str>>,
}

pub(super) fn plans<'a>(
    federation: &Federation<'a>,
    gateways: &'a Gateways<'a>,
    policies: &'a Policies<'a>,
    identities: &Identities,
    slices: &Recorded<'_>,
) -> Made {
    let mut usage = Usage::default();
    let mut waiting = BTreeSet::new();
    for policy in policies.iter() {
        for member in &policy.selected {
            usage.policies.entry(member).or_default().push(policy);
        }
        if !policy.readable {
            continue;
        }
        let entries = policy.through.iter().zip(&policy.chosen);
        for ((egress, chosen), users) in entries.zip(&policy.users) {
            if chosen.fresh || identities.awaited(egress) {
                let hosts = gateways
                    .get(&egress.gateway)
                    .into_iter()
                    .flat_map(|g| g.hosts.keys());
                waiting.extend(policy.selected.iter().chain(hosts).map(|m| (*m).to_owned()));
            }
            usage.gateways.entry(&egress.gateway).or_default().extend(users);
            usage.egress.entry(egress).or_default().extend(users);
        }
    }
    // Whoever has ports of a gateway, be it only for connections of a policy that is gone, is its user.
    for gateway in gateways
        .iter()
        .filter(|g| g.translation == Translation::SourceNode)
    {
        let name = gateway.input.name.as_str();
        let holders = slices.holders(name);
        let users = federation.members.keys().copied().filter(|m| holders.contains(m));
        usage.gateways.entry(name).or_default().extend(users);
    }
    let mut encrypted = Encrypted::new(federation, gateways, &usage.gateways);
    let reach = Reach::new(federation, gateways, &usage.gateways, &encrypted);
    encrypted.extend(reach.hops(federation));
    let paths = federation
        .members
        .keys()
        .map(|m| ((*m).to_owned(), reach.paths(m).to_vec()))
        .collect();
    let maker = Maker {
        federation,
        encrypted,
        reach,
        gateways,
        identities,
        slices,
        usage,
        prepared: BTreeMap::new(),
    }
    .prepare(policies);
    let plans = federation
        .blocks
        .iter()
        .map(|(name, block)| ((*name).to_owned(), maker.plan(name, block)))
        .collect();
    Made {
        plans,
        waiting,
        paths,
    }
}

struct Maker<'a, 'b> {
    federation: &'b Federation<'a>,
    gateways: &'a Gateways<'a>,
    identities: &'b Identities,
    slices: &'b Recorded<'b>,
    encrypted: Encrypted<'a>,
    reach: Reach<'a>,
    usage: Usage<'a>,
    /// Policies that all their members get alike.
    prepared: BTreeMap<&'a PolicyRef, Prepared>,
}

impl<'a> Maker<'a, '_> {
    fn prepare(mut self, policies: &'a Policies<'a>) -> Self {
        self.prepared = policies
            .iter()
            .filter(|p| p.users.iter().all(|users| *users == p.selected))
            .map(|p| (&p.input.source, Resource::Policy(self.policy(p, None)).into()))
            .collect();
        self
    }

    fn plan(&self, member: &str, block: &MemberBlock) -> Plan {
        let input = self.federation.members[member];
        let id = input.member_id.unwrap_or_default();
        let mut resources = vec![Resource::Member(PlannedMemberSpec {
            member: member.into(),
            member_id: id,
            overlay: block.pair(),
            overlay_range: self.federation.state.overlay.pair(),
            partition: input.partition.clone(),
            tunnel: self.federation.state.tunnel.clone(),
            encrypted: self.encrypted.between(member, member),
            uncallable: self.reach.uncallable(member).map(str::to_owned).collect(),
        })];
        let own = self.usage.policies.get(member).map_or(&[][..], Vec::as_slice);
        let mut peers: BTreeMap<&str, BTreeMap<&str, &MemberNode>> = BTreeMap::new();
        for gateway in self.gateways.iter().filter(|g| g.usable) {
            let name = gateway.input.name.as_str();
            let all_users = self.usage.gateways.get(name);
            let uses = all_users.is_some_and(|u| u.contains(member));
            let hosts = gateway.hosts.contains_key(member);
            // Hosts probe each other.
            if uses || hosts {
                for (host, nodes) in &gateway.hosts {
                    let named = nodes.iter().map(|n| (n.name.as_str(), *n));
                    peers.entry(host).or_default().extend(named);
                }
            }
            if hosts {
                for user in all_users.into_iter().flatten() {
                    let nodes = self.federation.nodes.get(user).into_iter().flatten();
                    peers.entry(user).or_default().extend(nodes);
                }
            }
            if uses || hosts {
                resources.push(Resource::Gateway(self.gateway(gateway, member, hosts)));
            }
        }
        for (name, node) in self.reach.peers(member) {
            let found = self.federation.nodes.get_key_value(name);
            if let Some((name, (node, found))) = found.and_then(|(m, n)| Some((m, n.get_key_value(node)?))) {
                peers.entry(*name).or_default().insert(*node, *found);
            }
        }
        peers.remove(member);
        peers.retain(|_, nodes| !nodes.is_empty());
        resources.extend(
            peers
                .into_iter()
                .map(|(name, nodes)| Resource::Peer(self.peer(member, name, nodes))),
        );
        let own = own.iter().map(|p| {
            let prepared = self.prepared.get(&p.input.source).cloned();
            prepared.unwrap_or_else(|| Resource::Policy(self.policy(p, Some(member))).into())
        });
        resources.into_iter().map(Prepared::from).chain(own).collect()
    }

    /// As all of its members get it, or as the one does that is given.
    fn policy(&self, policy: &Policy<'a>, member: Option<&str>) -> PlannedPolicySpec {
        let may = |users: &Vec<&str>| member.is_none_or(|m| users.contains(&m));
        let input = policy.input;
        PlannedPolicySpec {
            source: input.source.clone(),
            created: input.created,
            namespaces: input.namespaces.clone(),
            pods: input.pods.clone(),
            priority: input.priority,
            sources: policy.sources.clone(),
            to: policy.to.clone(),
            bandwidth: policy.bandwidth.cloned(),
            through: policy
                .through
                .iter()
                .zip(&policy.users)
                .filter(|(_, users)| policy.readable && may(users))
                .filter_map(|(e, _)| {
                    Some(PlannedThrough {
                        gateway: e.gateway.clone(),
                        identity: self.identities.get(e)?,
                    })
                })
                .collect(),
            on_unavailable: input.on_unavailable,
        }
    }

    fn gateway(&self, gateway: &Gateway<'a>, member: &str, hosts: bool) -> PlannedGatewaySpec {
        let mut identities: Vec<_> = self
            .usage
            .egress
            .iter()
            .filter(|(e, users)| e.gateway == gateway.input.name && (hosts || users.contains(member)))
            .filter_map(|(e, users)| {
                let granted = users
                    .iter()
                    .filter(|_| hosts)
                    .filter_map(|u| self.federation.blocks.get(u))
                    .map(MemberBlock::pair)
                    .collect();
                Some(PlannedIdentity {
                    id: self.identities.get(e)?,
                    egress_ip: e.addresses.into(),
                    granted,
                })
            })
            .collect();
        identities.sort_by_key(|i| i.id);
        PlannedGatewaySpec {
            gateway: gateway.input.name.clone(),
            nodes: gateway.order.clone(),
            translation: gateway.translation,
            node_ip: gateway.node_ip(),
            pins: if hosts {
                pins::planned(&gateway.pins)
            } else {
                Vec::new()
            },
            identities,
            slices: match gateway.translation {
                Translation::SourceNode => {
                    let only = (!hosts).then_some(member);
                    self.slices.planned(&gateway.input.name, only)
                }
                Translation::GatewayNode => Vec::new(),
            },
        }
    }

    fn peer(&self, member: &str, name: &str, nodes: BTreeMap<&str, &MemberNode>) -> PlannedPeerSpec {
        let encrypted = self.encrypted.between(member, name);
        let partition = |member: &str| &self.federation.members[member].partition;
        let elsewhere = partition(member) != partition(name);
        PlannedPeerSpec {
            member: name.into(),
            partition: partition(name).clone(),
            encrypted,
            nodes: nodes
                .into_values()
                .map(|n| {
                    let node = (name, n.name.as_str());
                    PeerNode {
                        endpoint: endpoint(n)
                            .filter(|_| encrypted && elsewhere)
                            .map(|e| e.to_string()),
                        relays: self.reach.through(member, node),
                        relay_port: self.reach.port(node),
                        relayed: self.reach.relayed(member, node),
                        ..peer_node(n, encrypted)
                    }
                })
                .collect(),
        }
    }
}

/// Addresses in their one canonical spelling, so that a report in another one doesn't change the plan.
fn peer_node(node: &MemberNode, encrypted: bool) -> PeerNode {
    let canonical = |pair| Addresses::parse(pair).unwrap_or_default().into();
    PeerNode {
        name: node.name.clone(),
        overlay: canonical(&node.overlay),
        underlay: canonical(&node.underlay),
        public_keys: match &node.wireguard {
            Some(wireguard) if encrypted => public_keys(wireguard),
            _ => Vec::new(),
        },
        ..PeerNode::default()
    }
}

/// What a member reported that is a key: the API server of no other member may refuse a plan for it.
fn public_keys(reported: &WireGuardStatus) -> Vec<String> {
    let keys = reported.public_keys.iter().take(MAX_KEYS);
    keys.filter_map(|k| k.parse::<PublicKey>().ok())
        .map(|k| k.to_string())
        .collect()
}

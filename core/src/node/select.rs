//! Which policies select which pods, and what each policy comes to on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use spillway_crds::hub::OnUnavailable;
use spillway_crds::member::{NodeRef, PlannedGatewaySpec, PlannedPolicySpec, PlannedThrough};

use super::exits::{Exit, exit, hops};
use super::flatten::{Claim, both, flatten};
use super::flows::{Meter, Others, Verdict};
use super::forwarded::Forwarded;
use super::gateways::is_source_node;
use super::guard::certain;
use super::inputs::{Addresses, NodeInputs, NodePlan, Pod};
use super::interval::{Family, Interval};
use super::outcome::Outcome;
use super::own::Own;
use super::peers::{Peer, Peers};
use super::sandbox::settled;
use crate::bandwidth::{self, Limit};
use crate::order::rank;
use crate::ports::{self, PortClaim};

/// Pods with one list of policies, and what that list comes to.
#[derive(Clone, Debug, Default)]
pub(super) struct Class {
    /// Destinations of both families, sorted and disjoint.
    pub(super) destinations: Vec<(Interval, Outcome<Verdict>)>,
    /// Its policies with ports come to too many cases: what they claim any port of is dropped.
    pub(super) too_fine: bool,
}

impl Class {
    /// Every verdict in it, some of them many times.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        self.destinations
            .iter()
            .flat_map(|(_, outcome)| outcome.verdicts())
    }
}

/// Everything selected on this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    /// Class name by pod address.
    pub(super) pods: BTreeMap<IpAddr, String>,
    /// Classes by name.
    pub(super) classes: BTreeMap<String, Class>,
    /// How much what counts against each meter may come to.
    pub(super) meters: BTreeMap<Meter, Limit>,
    /// Addresses of pods that no policy selects.
    pub(super) bystanders: BTreeSet<IpAddr>,
    /// Those of them that can't be anybody else's by now.
    pub(super) known: BTreeSet<IpAddr>,
}

impl Selection {
    /// Identities that some class leads to.
    pub(super) fn identities(&self) -> BTreeSet<u16> {
        self.classes
            .values()
            .flat_map(Class::verdicts)
            .flat_map(Verdict::identities)
            .collect()
    }
}

/// Policies of the plan, the one that wins first.
pub(super) fn in_order(plan: &NodePlan) -> Vec<&PlannedPolicySpec> {
    let mut policies: Vec<_> = plan.policies.iter().collect();
    policies.sort_by_key(|p| rank(p.priority, p.created, &p.source));
    policies
}

/// Whether `policy` selects `pod` with its address `address`.
pub(super) fn selects(policy: &PlannedPolicySpec, pod: &Pod, address: IpAddr, inputs: &NodeInputs) -> bool {
    if pod.namespace == inputs.settings.namespace || !inputs.grants.namespace(&pod.namespace) {
        return false;
    }
    let namespace = match (&policy.source.namespace, &policy.namespaces) {
        (Some(name), _) => *name == pod.namespace,
        (None, None) => true,
        (None, Some(selector)) => match inputs.namespaces.get(&pod.namespace) {
            Some(labels) => selector.matches(labels),
            // Not seen yet; this label every namespace has.
            None => selector.matches(&BTreeMap::from([(
                "kubernetes.io/metadata.name".to_owned(),
                pod.namespace.clone(),
            )])),
        },
    };
    namespace && policy.pods.matches(&pod.labels) && from(policy, address)
}

/// Whether `address` is one of those that `policy` is for. An entry that can't be read is left out; the hub has
/// refused it.
fn from(policy: &PlannedPolicySpec, address: IpAddr) -> bool {
    policy.sources.as_ref().is_none_or(|sources| {
        let mut ranges = sources.cidrs.iter().filter_map(|c| c.parse::<IpNet>().ok());
        ranges.any(|net| net.contains(&address))
    })
}

/// Which pod has each address: of two that claim it, the one that is still known, then the one that isn't being
/// deleted, then the younger.
pub(super) fn owners(pods: &[Pod]) -> BTreeMap<IpAddr, &Pod> {
    let mut owners: BTreeMap<IpAddr, &Pod> = BTreeMap::new();
    for pod in pods.iter().filter(|p| !p.host_network && !p.finished) {
        for address in &pod.addresses {
            let age = |p: &Pod| {
                (
                    !p.removed,
                    !p.deleting,
                    p.created,
                    p.namespace.clone(),
                    p.name.clone(),
                )
            };
            match owners.get(address) {
                Some(other) if age(other) >= age(pod) => {}
                _ => {
                    owners.insert(*address, pod);
                }
            }
        }
    }
    owners
}

/// Selects pods into classes.
pub(super) fn select(ways: &Ways) -> Selection {
    let Ways { inputs, plan, .. } = ways;
    let policies = in_order(plan);
    let parsed: Vec<Taken> = policies.iter().map(|p| destinations(p)).collect();
    let mut selection = Selection::default();
    let mut names: BTreeMap<Vec<usize>, String> = BTreeMap::new();
    let pods = settled(&inputs.pods, &inputs.sandboxes);
    let certain = certain(inputs);
    for (address, pod) in owners(&pods) {
        let chosen: Vec<usize> = (0..policies.len())
            .filter(|i| selects(policies[*i], pod, address, inputs))
            .collect();
        if chosen.is_empty() {
            selection.bystanders.insert(address);
            let surely = certain
                .get(&address)
                .is_some_and(|all| all.iter().any(|p| p.is(pod)));
            if !pod.removed && !pod.deleting && surely {
                selection.known.insert(address);
            }
            continue;
        }
        if let Some(name) = names.get(&chosen) {
            selection.pods.insert(address, name.clone());
            continue;
        }
        let name = class_name(chosen.iter().map(|i| policies[*i]));
        names.insert(chosen.clone(), name.clone());
        selection
            .meters
            .extend(chosen.iter().filter_map(|i| meter(policies[*i])));
        selection.pods.insert(address, name.clone());
        selection.classes.entry(name).or_insert_with(|| {
            let claims = |family| {
                let claim = |i: &usize| Claim {
                    verdict: if parsed[*i].guessed {
                        blocked(policies[*i])
                    } else {
                        ways.resolve(policies[*i], family)
                    },
                    ..parsed[*i].claim()
                };
                chosen.iter().map(claim).collect()
            };
            class(claims)
        });
    }
    selection
}

/// The class of `claims` by family. Where ports make too many cases of them, nobody can say which of them were meant to
/// come first, so that all destinations of policies with ports are blocked.
fn class(claims: impl Fn(Family) -> Vec<Claim<Verdict>>) -> Class {
    if let Ok(destinations) = both(|family| flatten(&claims(family), family)) {
        return Class {
            destinations,
            too_fine: false,
        };
    }
    let without_ports = |family| {
        let mut claims = claims(family);
        for claim in claims.iter_mut().filter(|c| !c.ports.is_empty()) {
            claim.ports.clear();
            claim.verdict = Some(Verdict::Block);
        }
        claims
    };
    Class {
        destinations: both(|family| flatten(&without_ports(family), family)).unwrap_or_default(),
        too_fine: true,
    }
}

/// What a policy takes.
pub(super) struct Taken {
    pub(super) cidrs: Vec<IpNet>,
    /// What of it the policy leaves alone.
    pub(super) except: Vec<IpNet>,
    /// Ports there; empty: all of them.
    pub(super) ports: Vec<PortClaim>,
    /// None of its destinations or of its ports can be read, so that everything could be one.
    guessed: bool,
}

impl Taken {
    /// The claim on it, without a verdict.
    pub(super) fn claim<V>(&self) -> Claim<V> {
        Claim {
            cidrs: self.cidrs.clone(),
            except: self.except.clone(),
            ports: self.ports.clone(),
            verdict: None,
        }
    }
}

/// What a policy takes. An entry that can't be read is left out: the hub has refused such a policy, and
/// [`super::problems()`] names it.
pub(super) fn destinations(policy: &PlannedPolicySpec) -> Taken {
    let read = |list: &[String]| -> Vec<IpNet> {
        list.iter()
            .filter_map(|s| s.parse().ok())
            .map(|n: IpNet| n.trunc())
            .collect()
    };
    let mut cidrs = read(&policy.to.cidrs);
    let ports: Vec<PortClaim> = policy
        .to
        .ports
        .iter()
        .filter_map(|p| ports::parse(p).ok())
        .collect();
    let guessed = (cidrs.is_empty() && !policy.to.cidrs.is_empty())
        || (ports.is_empty() && !policy.to.ports.is_empty());
    if cidrs.is_empty() {
        cidrs.extend(Family::BOTH.map(Family::everything));
    }
    Taken {
        cidrs,
        except: read(&policy.to.except),
        ports,
        guessed,
    }
}

/// What becomes of packets that a policy may not have been meant to take: they take no gateway.
fn blocked(policy: &PlannedPolicySpec) -> Option<Verdict> {
    (policy.on_unavailable == OnUnavailable::Block).then_some(Verdict::Block)
}

/// The meter of a policy whose pods may send so much only. What can't be read the hub has refused, and limits nothing.
fn meter(policy: &PlannedPolicySpec) -> Option<(Meter, Limit)> {
    let limit = bandwidth::parse(policy.bandwidth.as_ref()?).ok()?;
    Some((Meter::of(&policy.source), limit))
}

/// A name that depends on the policies' names alone, so that a policy's edit changes a map's elements and
/// neither chains nor the pods' map.
fn class_name<'a>(policies: impl Iterator<Item = &'a PlannedPolicySpec>) -> String {
    let mut names: Vec<_> = policies
        .map(|p| {
            format!(
                "{}/{}",
                p.source.namespace.as_deref().unwrap_or(""),
                p.source.name
            )
        })
        .collect();
    names.sort_unstable();
    hex::encode(&Sha256::digest(names.join("\n").as_bytes())[..6])
}

/// What [`select`] judges a policy's gateways by.
pub(super) struct Ways<'a> {
    pub(super) inputs: &'a NodeInputs,
    pub(super) plan: &'a NodePlan,
    pub(super) peers: &'a Peers,
    pub(super) own: &'a Own,
    pub(super) forwarded: &'a Forwarded,
}

impl Ways<'_> {
    /// What becomes of packets of one family that `policy` takes: the first gateway that is there carries them. If it
    /// has no address of the family, or this node no port of that address, they are dropped, whatever
    /// `onUnavailable` says: the gateway is there, and no other address is the right one.
    pub(super) fn resolve(&self, policy: &PlannedPolicySpec, family: Family) -> Option<Verdict> {
        let verdict = self.unmetered(policy, family)?;
        Some(match (meter(policy), verdict) {
            (Some((meter, _)), Verdict::Identity(id)) => Verdict::Metered(meter, id, Others::default()),
            (Some((meter, _)), Verdict::Prefer(id, others)) => Verdict::Metered(meter, id, others),
            (_, verdict) => verdict,
        })
    }

    fn unmetered(&self, policy: &PlannedPolicySpec, family: Family) -> Option<Verdict> {
        let mut there: Vec<(u16, bool)> = policy
            .through
            .iter()
            .filter_map(|entry| Some((entry.identity, self.way(entry, family)?)))
            .collect();
        if there.is_empty() && policy.on_unavailable == OnUnavailable::Block {
            there = self.last_ways(policy, family);
        }
        let others = || {
            let first = there.first().map(|(id, _)| id);
            there
                .iter()
                .filter(move |(id, usable)| *usable && Some(id) != first)
        };
        match (there.first(), policy.on_unavailable) {
            (Some((id, true)), _) if others().next().is_none() => Some(Verdict::Identity(*id)),
            (Some((id, true)), _) => Some(Verdict::Prefer(*id, others().map(|(id, _)| *id).collect())),
            (Some((_, false)), _) => Some(Verdict::Block),
            (None, OnUnavailable::Block) if policy.through.is_empty() => Some(Verdict::Block),
            (None, OnUnavailable::Block) => {
                Some(Verdict::Wait(policy.through.iter().map(|t| t.identity).collect()))
            }
            (None, OnUnavailable::NodeIP) => None,
        }
    }

    /// What is left of a policy's gateways where none is there and packets would be dropped: to send them to nodes that
    /// don't answer costs nothing, and it is right where only their agents are away. If one gateway has no such node,
    /// flows wait as they are: those of that gateway would be cut in favour of one that may never come back.
    fn last_ways(&self, policy: &PlannedPolicySpec, family: Family) -> Vec<(u16, bool)> {
        let ways = policy.through.iter().map(|entry| {
            let (gateway, egress) = self.named(entry, family)?;
            let hops = hops(gateway, self.peers, &self.inputs.liveness);
            let usable = self.tunnels(&hops, family) && self.translates(gateway, egress, false, family);
            usable.then_some((entry.identity, true))
        });
        ways.collect::<Option<_>>().unwrap_or_default()
    }

    /// Whether the gateway of `entry` is there, and then whether packets of `family` can leave through it.
    fn way(&self, entry: &PlannedThrough, family: Family) -> Option<bool> {
        let (gateway, egress) = self.named(entry, family)?;
        let here = match exit(gateway, self.peers, &self.inputs.liveness) {
            Exit::None => return None,
            Exit::Here => true,
            Exit::Tunnel(hops) if self.tunnels(&hops, family) => false,
            Exit::Tunnel(_) => return Some(false),
        };
        Some(self.translates(gateway, egress, here, family))
    }

    /// The gateway of `entry`, and its egress IP of `family`.
    fn named(&self, entry: &PlannedThrough, family: Family) -> Option<(&PlannedGatewaySpec, Option<IpAddr>)> {
        let gateway = self.plan.gateways.iter().find(|g| g.gateway == entry.gateway)?;
        let identity = gateway.identities.iter().find(|i| i.id == entry.identity)?;
        Some((gateway, Addresses::of(&identity.egress_ip).get(family)))
    }

    /// Whether packets of `family` get to one of `hops`.
    fn tunnels(&self, hops: &[&Peer], family: Family) -> bool {
        let own = self.peers.own_overlay().get(family);
        own.is_some() && hops.iter().any(|p| p.overlay.get(family).is_some())
    }

    /// Whether a node has an address of `family` of its own. Which of a gateway's nodes carries it may change at any time, and
    /// one that has none drops.
    fn lends(&self, node: &NodeRef, family: Family) -> bool {
        let named = |(member, name): (&str, &str)| node.member == member && node.node == name;
        let own = self.plan.member.member.as_str();
        let siblings = self
            .inputs
            .nodes
            .iter()
            .map(|(name, n)| ((own, name.as_str()), &n.underlay));
        let peers = self.plan.peers.iter().flat_map(|p| {
            let nodes = p.nodes.iter();
            nodes.map(|n| ((p.member.as_str(), n.name.as_str()), &n.underlay))
        });
        let mut all = siblings.chain(peers).filter(|(n, _)| named(*n));
        all.any(|(_, underlay)| Addresses::of(underlay).get(family).is_some())
    }

    /// Whether packets of `family` can get `egress` as their source, at a gateway that this node carries or doesn't.
    fn translates(
        &self,
        gateway: &PlannedGatewaySpec,
        egress: Option<IpAddr>,
        here: bool,
        family: Family,
    ) -> bool {
        match egress {
            _ if gateway.node_ip => gateway.nodes.iter().any(|n| self.lends(&n.node, family)),
            None => false,
            Some(_) if !is_source_node(gateway) => true,
            Some(eip) => {
                let forwarded = !here || self.forwarded.eips.contains(&eip);
                forwarded && !self.own.share(eip).living.is_empty()
            }
        }
    }
}

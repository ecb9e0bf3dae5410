//! Which policies select which pods, and what each policy comes to on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use spillway_crds::hub::OnUnavailable;
use spillway_crds::member::{GatewayNodeState, NodeRef, PlannedGatewaySpec, PlannedPolicySpec};

use super::flatten::{Claim, flatten};
use super::flows::Verdict;
use super::inputs::{Addresses, NodeInputs, NodePlan, Pod};
use super::interval::{Family, Interval};
use super::peers::Peers;
use super::sandbox::settled;

/// Pods with one list of policies, and what that list comes to.
#[derive(Clone, Debug, Default)]
pub(super) struct Class {
    /// Destinations of both families, sorted and disjoint.
    pub(super) destinations: Vec<(Interval, Verdict)>,
}

/// Everything selected on this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    /// Class name by pod address.
    pub(super) pods: BTreeMap<IpAddr, String>,
    /// Classes by name.
    pub(super) classes: BTreeMap<String, Class>,
    /// Addresses of pods that no policy selects.
    pub(super) bystanders: BTreeSet<IpAddr>,
}

impl Selection {
    /// Identities that some class leads to.
    pub(super) fn identities(&self) -> BTreeSet<u16> {
        self.classes
            .values()
            .flat_map(|c| &c.destinations)
            .filter_map(|(_, v)| match v {
                Verdict::Identity(id) => Some(*id),
                Verdict::Block => None,
            })
            .collect()
    }
}

/// Policies of the plan, the one that wins first.
pub(super) fn in_order(plan: &NodePlan) -> Vec<&PlannedPolicySpec> {
    let mut policies: Vec<_> = plan.policies.iter().collect();
    policies.sort_by_key(|p| (p.created, p.source.namespace.as_deref(), p.source.name.as_str()));
    policies
}

/// Whether `policy` selects `pod`.
pub(super) fn selects(policy: &PlannedPolicySpec, pod: &Pod, inputs: &NodeInputs) -> bool {
    if pod.namespace == inputs.settings.namespace {
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
    namespace && policy.pods.matches(&pod.labels)
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
pub(super) fn select(inputs: &NodeInputs, plan: &NodePlan, peers: &Peers) -> Selection {
    let policies = in_order(plan);
    let parsed: Vec<(Vec<IpNet>, Vec<IpNet>)> = policies.iter().map(|p| destinations(p)).collect();
    let mut selection = Selection::default();
    let mut names: BTreeMap<Vec<usize>, String> = BTreeMap::new();
    let pods = settled(&inputs.pods, &inputs.sandboxes);
    for (address, pod) in owners(&pods) {
        let chosen: Vec<usize> = (0..policies.len())
            .filter(|i| selects(policies[*i], pod, inputs))
            .collect();
        if chosen.is_empty() {
            selection.bystanders.insert(address);
            continue;
        }
        if let Some(name) = names.get(&chosen) {
            selection.pods.insert(address, name.clone());
            continue;
        }
        let name = class_name(chosen.iter().map(|i| policies[*i]));
        names.insert(chosen.clone(), name.clone());
        selection.pods.insert(address, name.clone());
        selection.classes.entry(name).or_insert_with(|| {
            let destinations = Family::BOTH.into_iter().flat_map(|family| {
                let claims: Vec<Claim<Verdict>> = chosen
                    .iter()
                    .map(|i| Claim {
                        cidrs: parsed[*i].0.clone(),
                        except: parsed[*i].1.clone(),
                        verdict: resolve(policies[*i], family, plan, peers),
                    })
                    .collect();
                flatten(&claims, family)
            });
            Class {
                destinations: destinations.collect(),
            }
        });
    }
    selection
}

/// What a policy claims and leaves alone. An entry that can't be read is left out: the hub has refused
/// such a policy, and [`super::problems()`] names it.
fn destinations(policy: &PlannedPolicySpec) -> (Vec<IpNet>, Vec<IpNet>) {
    let read = |list: &[String]| -> Vec<IpNet> {
        list.iter()
            .filter_map(|s| s.parse().ok())
            .map(|n: IpNet| n.trunc())
            .collect()
    };
    let cidrs = if policy.to.cidrs.is_empty() {
        Family::BOTH.map(Family::everything).to_vec()
    } else {
        read(&policy.to.cidrs)
    };
    (cidrs, read(&policy.to.except))
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

/// What becomes of packets of one family that `policy` takes: the first gateway with a holder that this
/// node can reach carries them. If that gateway has no address of the family they are dropped, whatever
/// `onUnavailable` says: the gateway is there, and no other address is the right one.
pub(super) fn resolve(
    policy: &PlannedPolicySpec,
    family: Family,
    plan: &NodePlan,
    peers: &Peers,
) -> Option<Verdict> {
    for entry in &policy.through {
        let Some(gateway) = plan.gateways.iter().find(|g| g.gateway == entry.gateway) else {
            continue;
        };
        let Some(identity) = gateway.identities.iter().find(|i| i.id == entry.identity) else {
            continue;
        };
        let reachable = match holder(gateway) {
            Some(node) if peers.is_self(node) => true,
            Some(node) => match peers.get(node) {
                Some(peer) => {
                    if peer.overlay.get(family).is_none() || peers.own_overlay().get(family).is_none() {
                        return Some(Verdict::Block);
                    }
                    true
                }
                None => false,
            },
            None => false,
        };
        if reachable {
            let egress = Addresses::of(&identity.egress_ip).get(family);
            return Some(egress.map_or(Verdict::Block, |_| Verdict::Identity(identity.id)));
        }
    }
    match policy.on_unavailable {
        OnUnavailable::Block => Some(Verdict::Block),
        OnUnavailable::NodeIP => None,
    }
}

/// The node that carries a gateway's traffic.
pub(super) fn holder(gateway: &PlannedGatewaySpec) -> Option<&NodeRef> {
    gateway
        .nodes
        .iter()
        .find(|n| n.state == GatewayNodeState::Ready)
        .map(|n| &n.node)
}

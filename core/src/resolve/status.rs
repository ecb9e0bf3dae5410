//! What to tell users of their objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use spillway_crds::condition::{ConditionType, Verdict};
use spillway_crds::hub::{AddressUse, Allocated, MemberNode, Refusal, ResolvedEgress};
use spillway_crds::member::PolicyRef;

use super::gateway::{Gateway, Gateways};
use super::holders::{holders, lent, summary};
use super::policy::{Identities, Policies, Policy};
use super::shadow::Shadows;
use super::slices::{Allotted, Recorded};
use super::{Fault, GatewayOutcome, MemberInput, PolicyOutcome};
use super::{pins, ports};
use crate::address::Addresses;
use crate::plan::{Digest, Plan, ResourceKey, ResourceKind};

/// Faults that one message lists; the rest shows once these are mended.
const MAX_FAULTS: usize = 8;
/// Pairs of addresses that a gateway's status lists.
const MAX_USES: usize = 128;
/// Names that one message lists.
pub(super) const MAX_NAMES: usize = 5;

/// Everything a verdict depends on.
pub(super) struct View<'a, 'b> {
    pub(super) members: &'b BTreeMap<&'a str, &'a MemberInput>,
    pub(super) ids: &'b BTreeMap<&'a str, u16>,
    pub(super) plans: &'b BTreeMap<String, Plan>,
    pub(super) digests: &'b BTreeMap<&'b str, Digest>,
    pub(super) waiting: &'b BTreeSet<String>,
    pub(super) gateways: &'b Gateways<'a>,
    pub(super) policies: &'b Policies<'a>,
    pub(super) identities: &'b Identities,
    pub(super) shadows: &'b Shadows<'b>,
    /// Nodes that can be at a tunnel's end, by member.
    pub(super) nodes: &'b BTreeMap<&'a str, BTreeMap<&'a str, &'a MemberNode>>,
    pub(super) slices: &'b Recorded<'a>,
    pub(super) allotted: &'b BTreeMap<String, Allotted>,
}

/// How a member stands to its current plan.
enum Progress {
    Programmed,
    /// What it waits for; empty where that is only time.
    Pending(String),
    Refused(String),
}

impl View<'_, '_> {
    pub(super) fn members(&self) -> BTreeMap<String, Vec<Verdict>> {
        self.members
            .keys()
            .map(|name| ((*name).to_owned(), self.member(name)))
            .collect()
    }

    fn member(&self, name: &str) -> Vec<Verdict> {
        let accepted = if self.ids.contains_key(name) {
            Verdict::yes(ConditionType::Accepted, "Accepted", "")
        } else {
            Verdict::no(
                ConditionType::Accepted,
                "NoFreeMemberId",
                "the federation already has 4095 members; remove one that is gone",
            )
        };
        let programmed = match self.progress(name, None) {
            Progress::Programmed => Verdict::yes(ConditionType::Programmed, "Programmed", ""),
            Progress::Pending(why) if why.is_empty() => Verdict::no(
                ConditionType::Programmed,
                "Pending",
                "not every node has the newest plan yet",
            ),
            Progress::Pending(why) => Verdict::no(ConditionType::Programmed, "Pending", why),
            Progress::Refused(why) => Verdict::no(ConditionType::Programmed, "Refused", why),
        };
        vec![accepted, programmed]
    }

    pub(super) fn gateways(&self) -> BTreeMap<String, GatewayOutcome> {
        self.gateways
            .iter()
            .map(|g| {
                let (used, kept) = self.used(g);
                let faults: Vec<Fault> = g.faults.iter().cloned().chain(kept).collect();
                let holders = holders(g, self.members);
                // Nodes that don't say yet what they hold do as the plan says.
                let first = || g.order.first().filter(|_| g.serves()).map(|n| n.node.to_string());
                let allotted = self.allotted.get(&g.input.name);
                let pins = pins::verdict(g, &holders);
                let outcome = GatewayOutcome {
                    holder: summary(&holders).or_else(first),
                    holders,
                    ready_nodes: u32::try_from(g.ready().count()).unwrap_or(u32::MAX),
                    used,
                    verdicts: vec![
                        accepted(&faults),
                        self.gateway(g),
                        ports::of_gateway(g, allotted),
                        pins,
                    ],
                };
                (g.input.name.clone(), outcome)
            })
            .collect()
    }

    /// Who leaves with which addresses of a gateway, and what of these was taken out of its pool.
    fn used(&self, gateway: &Gateway<'_>) -> (Vec<AddressUse>, Option<Fault>) {
        let name = &gateway.input.name;
        let mut by_pair: BTreeMap<Addresses, (bool, Vec<&PolicyRef>)> = BTreeMap::new();
        let mut removed: BTreeMap<IpAddr, Vec<&PolicyRef>> = BTreeMap::new();
        for policy in self.policies.iter() {
            let entries = policy.through.iter().zip(&policy.chosen);
            for (egress, chosen) in entries.filter(|(e, _)| e.gateway == *name) {
                let (exclusive, users) = by_pair.entry(egress.addresses).or_default();
                *exclusive |= chosen.exclusive;
                users.push(&policy.input.source);
                for address in chosen.removed.iter() {
                    removed.entry(address).or_default().push(&policy.input.source);
                }
            }
        }
        let used = by_pair
            .into_iter()
            .take(MAX_USES)
            .map(|(pair, (exclusive, users))| AddressUse {
                egress_ip: if gateway.node_ip() { lent(gateway) } else { pair }.into(),
                by: listed(&users),
                exclusive,
            });
        let kept: Vec<_> = removed
            .iter()
            .take(MAX_NAMES)
            .map(|(address, users)| format!("{address}, with which {} leave", listed(users)))
            .collect();
        let kept = (!kept.is_empty()).then(|| {
            let more = removed.len().saturating_sub(MAX_NAMES);
            let more = if more > 0 { format!(" and {more} more addresses") } else { String::new() };
            Fault::new(
                "AddressInUse",
                format!(
                    "spec.addresses lacks {}{more}; these policies keep it until they ask for another one, put it back or change spec.through of theirs",
                    kept.join("; ")
                ),
            )
        });
        (used.collect(), kept)
    }

    fn gateway(&self, gateway: &Gateway<'_>) -> Verdict {
        if !gateway.usable {
            return invalid();
        }
        if gateway.hosts.is_empty() {
            return Verdict::no(
                ConditionType::Programmed,
                "NoMatchingNode",
                format!(
                    "spec.nodes selects no node that a member reported; label a node or correct the selector{}",
                    self.nodeless(gateway)
                ),
            );
        }
        if !gateway.serves() {
            return Verdict::no(
                ConditionType::Programmed,
                "NoReadyNode",
                format!(
                    "nodes are selected, but none of them is ready: {}",
                    unready(gateway)
                ),
            );
        }
        let key = key(ResourceKind::Gateway, &gateway.input.name);
        self.programmed(gateway.hosts.keys().copied(), &[key]).0
    }

    /// Members that a gateway names and that have no nodes at all, as the end of a message.
    fn nodeless(&self, gateway: &Gateway<'_>) -> String {
        let names: BTreeSet<_> = gateway
            .input
            .spec
            .nodes
            .iter()
            .map(|n| n.member.as_str())
            .collect();
        let said: Vec<_> = names
            .into_iter()
            .filter_map(|name| self.members.get(name))
            .filter(|m| m.nodes.is_empty())
            .take(MAX_NAMES)
            .map(|m| match (&m.disconnected, m.reported) {
                (Some(why), _) => format!("{} is not connected: {why}", m.name),
                (None, false) => format!("{} has reported no nodes yet", m.name),
                (None, true) => format!("{} has no nodes", m.name),
            })
            .collect();
        if said.is_empty() {
            String::new()
        } else {
            format!(" ({})", said.join("; "))
        }
    }

    pub(super) fn policies(&self) -> BTreeMap<PolicyRef, PolicyOutcome> {
        self.policies
            .iter()
            .map(|p| (p.input.source.clone(), self.policy(p)))
            .collect()
    }

    fn policy(&self, policy: &Policy<'_>) -> PolicyOutcome {
        let mut faults = policy.faults.clone();
        if policy.through.iter().any(|e| self.identities.exhausted(e)) {
            faults.push(Fault::new(
                "IdentitiesExhausted",
                "no identity is left (65535 in all, 4096 a gateway); let policies share egress IPs",
            ));
        }
        let egress = policy
            .through
            .iter()
            .zip(&policy.chosen)
            .filter_map(|(e, chosen)| {
                Some(ResolvedEgress {
                    gateway: e.gateway.clone(),
                    identity: self.identities.get(e)?,
                    egress_ip: match self.gateways.get(&e.gateway) {
                        Some(gateway) if chosen.allocated == Allocated::NodeIP => lent(gateway),
                        _ => e.addresses,
                    }
                    .into(),
                    allocated: chosen.allocated,
                    exclusive: chosen.exclusive,
                })
            })
            .collect();
        let selected = policy.selected.iter().copied();
        let (verdict, programmed) = self.programmed(selected, &self.needs(policy));
        let lacking = ports::Lacking::of(self, policy);
        let refused = verdict.reason == "Refused";
        let available = policy
            .through
            .iter()
            .filter_map(|e| self.gateways.get(&e.gateway))
            .any(Gateway::serves);
        let awaited = policy.chosen.iter().any(|c| c.fresh)
            || policy.through.iter().any(|e| self.identities.awaited(e));
        let verdict = if !faults.is_empty() {
            invalid()
        } else if awaited {
            Verdict::no(
                ConditionType::Programmed,
                "Pending",
                "its identity and egress IP are being recorded",
            )
        } else if policy.selected.is_empty() {
            Verdict::no(
                ConditionType::Programmed,
                "NoMemberSelected",
                "spec.members selects no member; label a Member or correct the selector",
            )
        } else if !refused && !available {
            Verdict::no(
                ConditionType::Programmed,
                "NoReadyNode",
                "no gateway of spec.through has a ready node; unless one answers all the same, spec.onUnavailable rules until one has",
            )
        } else if let (Some(true), Some(why)) = (verdict.status, lacking.verdict()) {
            why
        } else {
            verdict
        };
        PolicyOutcome {
            egress,
            selected: policy.selected.iter().map(|m| (*m).to_owned()).collect(),
            programmed: if policy.readable {
                lacking.programmed(programmed)
            } else {
                0
            },
            shadowed: self.shadows.column(&policy.input.source),
            verdicts: vec![
                accepted(&faults),
                verdict,
                self.shadows.verdict(&policy.input.source),
            ],
        }
    }

    /// What a policy's packets depend on in the plans of the members it selects.
    fn needs(&self, policy: &Policy<'_>) -> Vec<ResourceKey> {
        let mut needs = vec![
            ResourceKey::policy(&policy.input.source),
            key(ResourceKind::Member, spillway_crds::SINGLETON),
        ];
        for gateway in policy
            .through
            .iter()
            .filter_map(|e| self.gateways.get(&e.gateway))
        {
            needs.push(key(ResourceKind::Gateway, &gateway.input.name));
            needs.extend(gateway.hosts.keys().map(|host| key(ResourceKind::Peer, host)));
        }
        needs
    }

    /// `Programmed` over some members, and how many of them have these resources as they are in the
    /// newest plan.
    fn programmed<'m>(
        &self,
        members: impl Iterator<Item = &'m str>,
        needs: &[ResourceKey],
    ) -> (Verdict, u32) {
        let (mut done, mut pending, mut refused) = (0, Vec::new(), Vec::new());
        for member in members {
            match self.progress(member, Some(needs)) {
                Progress::Programmed => done += 1,
                Progress::Pending(why) if why.is_empty() => pending.push(member.to_owned()),
                Progress::Pending(why) => pending.push(format!("{member} ({why})")),
                Progress::Refused(why) => refused.push(format!("{member}: {why}")),
            }
        }
        let verdict = if !refused.is_empty() {
            refused.truncate(MAX_FAULTS);
            Verdict::no(ConditionType::Programmed, "Refused", refused.join("; "))
        } else if !pending.is_empty() {
            let message = format!("waiting for {}", listed(&pending));
            Verdict::no(ConditionType::Programmed, "Pending", message)
        } else {
            Verdict::yes(ConditionType::Programmed, "Programmed", "")
        };
        (verdict, done)
    }

    /// How a member stands to its newest plan as a whole, or to these resources of it.
    fn progress(&self, member: &str, needs: Option<&[ResourceKey]>) -> Progress {
        let (Some(plan), Some(current)) = (self.plans.get(member), self.digests.get(member)) else {
            return Progress::Pending(String::new());
        };
        let current = current.to_string();
        let input = self.members[member];
        let waiting = self.waiting.contains(member);
        // A cluster without nodes has no pod that could leave otherwise.
        let nowhere = input.reported && input.nodes.is_empty();
        let done = if nowhere {
            &input.progress.acknowledged
        } else {
            &input.progress.programmed
        };
        if done.as_ref() == Some(&current) && !waiting {
            return Progress::Programmed;
        }
        if let (Some(needs), Some(old)) = (needs, &input.in_force)
            && needs.iter().all(|key| old.content(key) == plan.content(key))
        {
            return Progress::Programmed;
        }
        match &input.progress.refusal {
            Some(refusal) if refusal.digest == current => refused(refusal, needs),
            _ => Progress::Pending(hindrance(input)),
        }
    }
}

/// What a member waits for, where somebody has to do something about it.
fn hindrance(member: &MemberInput) -> String {
    if let Some(why) = &member.disconnected {
        return format!("not connected: {why}");
    }
    if !member.reported {
        return "it has reported no nodes yet".into();
    }
    let mut failing = member.nodes.iter().filter(|n| !n.message.is_empty());
    match (failing.next(), failing.count()) {
        (None, _) => String::new(),
        (Some(node), 0) => format!("node {}: {}", node.name, node.message),
        (Some(node), more) => format!("node {}: {}; and {more} more nodes", node.name, node.message),
    }
}

/// A refusal that names a resource concerns what depends on it; the rest of the plan merely waits.
fn refused(refusal: &Refusal, needs: Option<&[ResourceKey]>) -> Progress {
    let resource = &refusal.resource;
    let concerned = needs.is_none_or(|keys| keys.iter().any(|k| k.to_string() == *resource));
    if resource.is_empty() {
        Progress::Refused(refusal.reason.clone())
    } else if concerned {
        Progress::Refused(format!("{resource}: {}", refusal.reason))
    } else {
        Progress::Pending(format!("the newest plan was refused for {resource}"))
    }
}

fn key(kind: ResourceKind, name: &str) -> ResourceKey {
    ResourceKey {
        kind,
        name: name.into(),
    }
}

/// A gateway's nodes with what keeps each from being ready.
fn unready(gateway: &Gateway<'_>) -> String {
    let said: Vec<_> = gateway
        .hosts
        .iter()
        .flat_map(|(member, nodes)| nodes.iter().map(move |n| (member, n)))
        .take(MAX_NAMES)
        .map(|(member, node)| match node.message.as_str() {
            "" => format!("{member}/{}", node.name),
            why => format!("{member}/{} ({why})", node.name),
        })
        .collect();
    said.join(", ")
}

/// The first names, and how many more there are.
pub(super) fn listed<T: fmt::Display>(all: &[T]) -> String {
    let names: Vec<_> = all.iter().take(MAX_NAMES).map(ToString::to_string).collect();
    match all.len().saturating_sub(MAX_NAMES) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn accepted(faults: &[Fault]) -> Verdict {
    match faults.first() {
        None => Verdict::yes(ConditionType::Accepted, "Accepted", ""),
        Some(first) => {
            let messages: Vec<_> = faults
                .iter()
                .take(MAX_FAULTS)
                .map(|f| f.message.as_str())
                .collect();
            Verdict::no(ConditionType::Accepted, first.reason, messages.join("; "))
        }
    }
}

fn invalid() -> Verdict {
    Verdict::no(
        ConditionType::Programmed,
        "NotAccepted",
        "not everything that is asked for can be done; see Accepted",
    )
}

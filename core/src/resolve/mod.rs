//! From what users wrote and what is recorded to what every member must realise.
//!
//! ```text
//!  FederationState ── gateway::Gateways ──┐
//!        │                                ├─ plan::plans ──── Resolution.plans
//!        │                                │    └── reach: how nodes reach each other ─ Resolution.paths
//!        └──────────── policy::Policies ──┘        │
//!                        │                         └─ status ── Resolution.{members,gateways,policies}
//!                        └─ allocations not yet recorded ────── Resolution.allocations, .waiting
//! ```
//!
//! Plans name only numbers that are *recorded*, so that every replica makes the same plans of the same
//! objects. What still has to be recorded comes out beside them; the members whose plans will change by
//! it are `waiting` and keep their previous plan until then.
//!
//! An object that isn't valid costs nobody but itself: what of it makes sense is planned, and where that
//! leaves a policy without a gateway, its `onUnavailable` rules. So an edit gone wrong blocks; it never leaks.

mod gateway;
mod holders;
mod input;
mod paths;
mod pins;
mod plan;
mod policy;
mod ports;
mod reach;
mod shadow;
mod slices;
mod status;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use spillway_crds::address::PrefixPair;
use spillway_crds::condition::Verdict;
use spillway_crds::hub::{
    AddressHolder, AddressSlices, AddressUse, IdentityRecord, MemberNode, MemberPath, ResolvedEgress,
};
use spillway_crds::member::PolicyRef;

pub use input::{FederationState, GatewayInput, MemberInput, PolicyInput};

use crate::alloc;
use crate::plan::Plan;

/// What the hub makes of the federation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resolution {
    /// The plan of each member whose id is recorded.
    pub plans: BTreeMap<String, Plan>,
    /// What has to be recorded.
    pub allocations: Allocations,
    /// Members whose plans await `allocations`: they keep the plan they have.
    pub waiting: BTreeSet<String>,
    /// What to say of each member.
    pub members: BTreeMap<String, Vec<Verdict>>,
    /// How each member reaches those of other partitions that it shares gateways with.
    pub paths: BTreeMap<String, Vec<MemberPath>>,
    /// What to say of each gateway.
    pub gateways: BTreeMap<String, GatewayOutcome>,
    /// What to say of each policy.
    pub policies: BTreeMap<PolicyRef, PolicyOutcome>,
}

/// Numbers that differ from the recorded ones.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Allocations {
    /// Members' ids and overlay prefixes.
    pub members: BTreeMap<String, MemberAllocation>,
    /// What is given of each gateway where any of it changes, as a whole.
    pub gateways: BTreeMap<String, GatewayAllocation>,
}

impl Allocations {
    /// True where everything is recorded.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.gateways.is_empty()
    }
}

/// What a member is given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MemberAllocation {
    /// Its number.
    pub id: u16,
    /// Its part of the overlay range.
    pub overlay: PrefixPair,
}

/// What is given of a gateway.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GatewayAllocation {
    /// Identities, sorted by number.
    pub identities: Vec<IdentityRecord>,
    /// Port slices, sorted by address, member and node.
    pub slices: Vec<AddressSlices>,
}

/// What to say of a gateway.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GatewayOutcome {
    /// `member/node` that answers for the egress IPs, or a summary where there are several.
    pub holder: Option<String>,
    /// Who answers for each egress IP, sorted by address.
    pub holders: Vec<AddressHolder>,
    /// How many selected nodes are ready.
    pub ready_nodes: u32,
    /// Who leaves with which addresses.
    pub used: Vec<AddressUse>,
    /// `Accepted`, `Programmed`, `PortsAvailable` and `PinsHeld`.
    pub verdicts: Vec<Verdict>,
}

/// What to say of a policy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PolicyOutcome {
    /// The usable entries of `through`, with the recorded identities.
    pub egress: Vec<ResolvedEgress>,
    /// Members that the policy selects, sorted.
    pub selected: Vec<String>,
    /// How many of them have it in every node's kernel.
    pub programmed: u32,
    /// What other policies take of it, for the printer column.
    pub shadowed: Option<String>,
    /// `Accepted`, `Programmed` and `Effective`.
    pub verdicts: Vec<Verdict>,
}

/// Something about an object that can't be used.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Fault {
    reason: &'static str,
    message: String,
}

impl Fault {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// The federation as far as it is settled: what everything else builds on.
struct Federation<'a> {
    state: &'a FederationState,
    members: BTreeMap<&'a str, &'a MemberInput>,
    /// Overlay prefixes of the members whose number is recorded.
    blocks: BTreeMap<&'a str, alloc::MemberBlock>,
    /// Nodes that can be at a tunnel's end, by member and name.
    nodes: BTreeMap<&'a str, BTreeMap<&'a str, &'a MemberNode>>,
}

/// Resolves the federation. The order of the lists in `state` doesn't matter; of two objects with the
/// same name one is taken.
pub fn resolve(state: &FederationState) -> Resolution {
    let members: BTreeMap<&str, &MemberInput> = state.members.iter().map(|m| (m.name.as_str(), m)).collect();
    let ids = alloc::member_ids(
        oldest_first(&members).map(|m| (m.name.as_str(), m.member_id)),
        &state.memory,
    );
    let mut allocations = Allocations::default();
    let mut recorded = BTreeMap::new();
    for (name, id) in &ids {
        let block = state.overlay.member(*id);
        let member = members[name];
        if member.member_id == Some(*id) && member.overlay.as_ref() == Some(&block.pair()) {
            recorded.insert(*name, block);
        } else {
            allocations.members.insert(
                (*name).into(),
                MemberAllocation {
                    id: *id,
                    overlay: block.pair(),
                },
            );
        }
    }

    let federation = Federation {
        state,
        nodes: members
            .iter()
            .map(|(name, m)| (*name, gateway::usable_nodes(m, recorded.get(name))))
            .collect(),
        members,
        blocks: recorded,
    };
    let gateways = gateway::Gateways::new(&federation);
    let policies = policy::Policies::new(state, &federation.members, &gateways);
    let (identities, lists) = policies.identities(&gateways, &state.memory);
    let slices = slices::Recorded::new(state);
    let mut made = plan::plans(&federation, &gateways, &policies, &identities, &slices);
    let digests = made.plans.iter().map(|(m, p)| (m.as_str(), p.digest())).collect();
    let mut allotted = slices::Allotter {
        federation: &federation,
        policies: &policies,
        recorded: &slices,
        plans: &made.plans,
        digests: &digests,
        read: RefCell::default(),
    }
    .run(&gateways);
    for gateway in gateways.iter() {
        let name = &gateway.input.name;
        let identities = lists.get(name.as_str()).cloned().unwrap_or_default();
        let slices = allotted
            .get_mut(name)
            .map(|a| std::mem::take(&mut a.record))
            .unwrap_or_default();
        if identities != gateway.input.identities || slices != gateway.input.slices {
            let given = GatewayAllocation { identities, slices };
            allocations.gateways.insert(name.clone(), given);
        }
        let newcomers = allotted.get(name).map(|a| &a.newcomers).into_iter().flatten();
        let mut newcomers = newcomers.peekable();
        if newcomers.peek().is_some() {
            // They get the grant and all it depends on in one plan.
            let hosts = gateway.hosts.keys().map(|h| (*h).to_owned());
            made.waiting.extend(hosts.chain(newcomers.cloned()));
        }
    }
    let shadows = shadow::Shadows::new(&policies);
    let view = status::View {
        shadows: &shadows,
        members: &federation.members,
        ids: &ids,
        plans: &made.plans,
        digests: &digests,
        waiting: &made.waiting,
        gateways: &gateways,
        policies: &policies,
        identities: &identities,
        nodes: &federation.nodes,
        slices: &slices,
        allotted: &allotted,
    };
    let (members, gateways, policies) = (view.members(), view.gateways(), view.policies());
    Resolution {
        allocations,
        members,
        gateways,
        policies,
        waiting: made.waiting,
        plans: made.plans,
        paths: made.paths,
    }
}

fn oldest_first<'a>(
    members: &BTreeMap<&'a str, &'a MemberInput>,
) -> impl Iterator<Item = &'a MemberInput> + use<'a> {
    let mut sorted: Vec<_> = members.values().copied().collect();
    sorted.sort_by_key(|m| (m.created, &m.name));
    sorted.into_iter()
}

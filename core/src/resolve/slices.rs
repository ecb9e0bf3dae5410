//! Port slices of every gateway: as recorded, as planned, and what to record next.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use spillway_crds::hub::{AddressSlices, PortRange, PortSlice, Translation};
use spillway_crds::member::NodeRef;

use super::gateway::{Gateway, Gateways};
use super::policy::Policies;
use super::{Federation, FederationState, MemberInput};
use crate::plan::{Digest, Plan, Resource, ResourceKey, ResourceKind};
use crate::slices::{Facts, Input, Known, Outcome, Ports, Slice, Slices, allot};

/// Bytes that a gateway's slices may take in its status, roughly. etcd takes no object above 1.5 MiB.
const MAX_BYTES: usize = 700_000;
/// Bytes of one slice without its names.
const ENTRY: usize = 120;

/// Slices by address.
pub(super) type ByAddress = BTreeMap<IpAddr, Slices>;

/// Recorded slices of all gateways.
pub(super) struct Recorded<'a>(BTreeMap<&'a str, ByAddress>);

impl<'a> Recorded<'a> {
    pub(super) fn new(state: &'a FederationState) -> Self {
        Self(
            state
                .gateways
                .iter()
                .map(|g| (g.name.as_str(), parse(&g.slices)))
                .collect(),
        )
    }

    fn get(&self, gateway: &str) -> &ByAddress {
        static NONE: ByAddress = BTreeMap::new();
        self.0.get(gateway).unwrap_or(&NONE)
    }

    /// The node's slice.
    pub(super) fn of(&self, gateway: &str, address: IpAddr, node: &NodeRef) -> Option<&Slice> {
        self.get(gateway).get(&address)?.get(node)
    }

    /// Members that have ports of the gateway, if only such as drain.
    pub(super) fn holders(&self, gateway: &str) -> BTreeSet<&str> {
        self.get(gateway)
            .values()
            .flat_map(|slices| slices.keys().map(|n| n.member.as_str()))
            .collect()
    }

    /// Slices as a plan names them: one member's, or all.
    pub(super) fn planned(&self, gateway: &str, member: Option<&str>) -> Vec<AddressSlices> {
        let concerns = |node: &NodeRef| member.is_none_or(|m| m == node.member);
        self.get(gateway)
            .iter()
            .map(|(address, slices)| record(*address, slices.iter().filter(|(n, _)| concerns(n))))
            .filter(|a| !a.slices.is_empty())
            .collect()
    }
}

/// Reads a record. Somebody may have written into it: where two slices have the same port, the first that uses it
/// keeps it.
fn parse(recorded: &[AddressSlices]) -> ByAddress {
    let mut out = ByAddress::new();
    for entry in recorded {
        let Ok(address) = entry.address.parse::<IpAddr>() else {
            continue;
        };
        let slices = out.entry(address).or_default();
        for slice in &entry.slices {
            let add = |set: &mut Ports, ranges: &[PortRange]| *set = set.or(&Ports::touched(ranges));
            let read = slices.entry(slice.owner()).or_default();
            add(&mut read.ports, &slice.ports);
            add(&mut read.pending, &slice.pending);
            add(&mut read.draining, &slice.draining);
        }
    }
    for slices in out.values_mut() {
        let mut taken = Ports::NONE;
        for part in [
            (|s| &mut s.ports) as fn(&mut Slice) -> &mut Ports,
            |s| &mut s.draining,
            |s| &mut s.pending,
        ] {
            for slice in slices.values_mut() {
                let ports = part(slice);
                *ports = ports.minus(&taken);
                taken = taken.or(ports);
            }
        }
        slices.retain(|_, s| !s.is_empty());
    }
    out.retain(|_, slices| !slices.is_empty());
    out
}

fn record<'s>(address: IpAddr, slices: impl Iterator<Item = (&'s NodeRef, &'s Slice)>) -> AddressSlices {
    AddressSlices {
        address: address.to_string(),
        slices: slices
            .map(|(node, slice)| PortSlice {
                member: node.member.clone(),
                node: node.node.clone(),
                ports: slice.ports.ranges(),
                pending: slice.pending.ranges(),
                draining: slice.draining.pieces(),
            })
            .collect(),
    }
}

/// What to record of one gateway, and who lacks ports.
#[derive(Default)]
pub(super) struct Allotted {
    pub(super) record: Vec<AddressSlices>,
    /// Members of nodes that get their first ports by that.
    pub(super) newcomers: BTreeSet<String>,
    pub(super) shortage: BTreeMap<IpAddr, Shortage>,
}

/// Who lacks ports of an address.
#[derive(Default)]
pub(super) struct Shortage {
    /// Nodes without ports, and whether others are giving some up.
    pub(super) without: BTreeMap<NodeRef, bool>,
    /// Nodes whose slice is nearly full and can't grow.
    pub(super) cramped: Vec<NodeRef>,
}

/// Member, plan's digest and gateway.
type PlanPart = (String, String, String);

/// Everything that decides who gets which ports.
pub(super) struct Allotter<'a, 'b> {
    pub(super) federation: &'b Federation<'a>,
    pub(super) policies: &'b Policies<'a>,
    pub(super) recorded: &'b Recorded<'a>,
    pub(super) plans: &'b BTreeMap<String, Plan>,
    pub(super) digests: &'b BTreeMap<&'b str, Digest>,
    /// Slices of plans in nodes' kernels, by member, digest and gateway.
    pub(super) read: RefCell<BTreeMap<PlanPart, Option<Rc<ByAddress>>>>,
}

impl<'a> Allotter<'a, '_> {
    /// What comes next for each gateway.
    pub(super) fn run(&self, gateways: &Gateways<'a>) -> BTreeMap<String, Allotted> {
        let mut claims: BTreeMap<&str, BTreeMap<IpAddr, BTreeSet<&str>>> = BTreeMap::new();
        for policy in self.policies.iter().filter(|p| p.readable) {
            for (egress, users) in policy.through.iter().zip(&policy.users) {
                let by_address = claims.entry(&egress.gateway).or_default();
                for address in egress.addresses.iter() {
                    by_address.entry(address).or_default().extend(users);
                }
            }
        }
        gateways
            .iter()
            .map(|gateway| {
                let name = gateway.input.name.as_str();
                let claims = claims.remove(name).unwrap_or_default();
                (name.to_owned(), self.gateway(gateway, &claims))
            })
            .collect()
    }

    fn gateway(&self, gateway: &Gateway<'a>, claims: &BTreeMap<IpAddr, BTreeSet<&str>>) -> Allotted {
        let name = gateway.input.name.as_str();
        let recorded = self.recorded.get(name);
        if !gateway.usable {
            // Nothing of it is planned; what it had is still its own once it is mended.
            return Allotted {
                record: self.recorded.planned(name, None),
                ..Allotted::default()
            };
        }
        let lost = parse(&gateway.input.lost);
        let base = if recorded.is_empty() { &lost } else { recorded };
        let known = self.known(gateway);
        let mut room = MAX_BYTES.saturating_sub(cost(base.values().flat_map(Slices::keys)));
        let mut out = Allotted::default();
        let addresses: BTreeSet<_> = claims.keys().chain(base.keys()).copied().collect();
        for address in addresses {
            let had = base.get(&address).cloned().unwrap_or_default();
            let claimants = match (gateway.translation, claims.get(&address)) {
                (Translation::SourceNode, Some(members)) => self.claimants(members, &had),
                _ => BTreeSet::new(),
            };
            let (claimants, beyond) = within(claimants, &had, &mut room);
            let facts = claimants
                .iter()
                .chain(had.keys())
                .map(|node| (node.clone(), self.facts(name, address, node)))
                .collect();
            let known_here = known.as_ref().and_then(|k| k.get(&address));
            let outcome = allot(&Input {
                known: known_here.cloned().unwrap_or_default(),
                unwatched: known.is_none() || gateway.translation == Translation::GatewayNode,
                recorded: had,
                claimants,
                facts,
            });
            let before = recorded.get(&address);
            out.newcomers.extend(
                outcome
                    .slices
                    .keys()
                    .filter(|n| before.is_none_or(|b| !b.contains_key(*n)))
                    .map(|n| n.member.clone()),
            );
            if !outcome.slices.is_empty() {
                out.record.push(record(address, outcome.slices.iter()));
            }
            out.note(address, outcome, beyond);
        }
        out
    }

    /// Nodes that are to have ports: those of `members` that can use them, and those that had some and may be back soon.
    fn claimants(&self, members: &BTreeSet<&str>, had: &Slices) -> BTreeSet<NodeRef> {
        let mut out: BTreeSet<_> = had
            .keys()
            .filter(|n| members.contains(n.member.as_str()) && !self.gone(n))
            .cloned()
            .collect();
        for member in members {
            for node in self
                .federation
                .nodes
                .get(member)
                .into_iter()
                .flat_map(BTreeMap::keys)
            {
                out.insert(NodeRef::new(*member, *node));
            }
        }
        out
    }

    fn gone(&self, node: &NodeRef) -> bool {
        !self.federation.members.contains_key(node.member.as_str())
            || self.federation.state.gone.contains(node)
    }

    fn facts(&self, gateway: &str, address: IpAddr, node: &NodeRef) -> Facts {
        let gone = self.gone(node);
        let silent = Facts {
            silent: true,
            gone,
            ..Facts::default()
        };
        let Some(member) = self.federation.members.get(node.member.as_str()) else {
            return silent;
        };
        let Some(reported) = member.nodes.iter().find(|n| n.name == node.node) else {
            return silent;
        };
        let ports = reported
            .port_use
            .iter()
            .find(|u| u.address.parse() == Ok(address));
        let runs = reported.programmed.as_ref().and_then(|digest| {
            let slices = self.read(member, digest, gateway)?;
            let slice = slices.get(&address).and_then(|s| s.get(node));
            Some(slice.copied().unwrap_or_default())
        });
        let newest = self.digests.get(member.name.as_str()).map(Digest::to_string);
        Facts {
            level: ports.map(|u| u.level).unwrap_or_default(),
            measured: ports.map(|u| u.measured).unwrap_or_default(),
            vacated: ports.map(|u| Ports::within(&u.vacated)).unwrap_or_default(),
            settled: newest.is_some() && newest == reported.programmed,
            silent: member.disconnected.is_some() || !(reported.ready || reported.draining),
            runs,
            gone,
        }
    }

    /// What every node of the gateway that counts has in its kernel: those that are ready, in members that are
    /// connected. What the others know can't be told, and must not hold up everybody. `None` where none counts.
    fn known(&self, gateway: &Gateway<'a>) -> Option<BTreeMap<IpAddr, BTreeMap<NodeRef, Known>>> {
        let connected = || {
            gateway
                .hosts
                .iter()
                .map(|(name, nodes)| (self.federation.members[name], nodes))
                .filter(|(m, _)| m.disconnected.is_none())
                .flat_map(|(m, nodes)| nodes.iter().map(move |n| (m, *n)))
        };
        let ready = connected().any(|(_, n)| n.ready);
        let plans: BTreeSet<_> = connected()
            .filter(|(_, n)| if ready { n.ready } else { n.draining })
            .map(|(m, n)| (&m.name, &n.programmed))
            .collect();
        let mut all: Option<BTreeMap<_, BTreeMap<_, Known>>> = None;
        for (member, digest) in plans {
            let member = self.federation.members[member.as_str()];
            let slices = digest
                .as_ref()
                .and_then(|digest| self.read(member, digest, &gateway.input.name));
            let Some(slices) = slices else {
                return Some(BTreeMap::new());
            };
            let said = slices.iter().map(|(address, slices)| {
                let nodes = slices.iter().map(|(n, s)| (n.clone(), Known::of(s)));
                (*address, nodes.collect())
            });
            all = Some(match all {
                None => said.collect(),
                Some(all) => said.map(|(a, s)| (a, common(all.get(&a), s))).collect(),
            });
        }
        all
    }

    /// Slices of a gateway in the plan of this digest. `None` where the plan isn't known.
    fn read(&self, member: &MemberInput, digest: &str, gateway: &str) -> Option<Rc<ByAddress>> {
        let key = (member.name.clone(), digest.to_owned(), gateway.to_owned());
        if let Some(read) = self.read.borrow().get(&key) {
            return read.clone();
        }
        let newest = self.digests.get(member.name.as_str());
        let plan = match newest.filter(|d| d.to_string() == digest) {
            Some(_) => self.plans.get(&member.name),
            None => member.plans.get(digest).map(AsRef::as_ref),
        };
        let read = plan.map(|plan| {
            let key = ResourceKey {
                kind: ResourceKind::Gateway,
                name: gateway.into(),
            };
            Rc::new(match plan.get(&key) {
                Some(Resource::Gateway(g)) => parse(&g.slices),
                _ => ByAddress::new(),
            })
        });
        self.read.borrow_mut().insert(key, read.clone());
        read
    }
}

impl Allotted {
    fn note(&mut self, address: IpAddr, outcome: Outcome, beyond: Vec<NodeRef>) {
        let hopeful = outcome.waiting.into_iter().map(|n| (n, true));
        let others = outcome.without.into_iter().chain(beyond).map(|n| (n, false));
        let shortage = Shortage {
            without: hopeful.chain(others).collect(),
            cramped: outcome.cramped,
        };
        if !shortage.without.is_empty() || !shortage.cramped.is_empty() {
            self.shortage.insert(address, shortage);
        }
    }
}

/// Claimants of which the status has room for a record, and the others.
fn within(claimants: BTreeSet<NodeRef>, had: &Slices, room: &mut usize) -> (BTreeSet<NodeRef>, Vec<NodeRef>) {
    let mut beyond = Vec::new();
    let kept = claimants
        .into_iter()
        .filter(|node| {
            if had.contains_key(node) {
                return true;
            }
            let needed = cost([node]);
            if needed > *room {
                beyond.push(node.clone());
                return false;
            }
            *room -= needed;
            true
        })
        .collect();
    (kept, beyond)
}

fn cost<'n>(nodes: impl IntoIterator<Item = &'n NodeRef>) -> usize {
    nodes
        .into_iter()
        .map(|n| n.member.len() + n.node.len() + ENTRY)
        .sum()
}

/// What both plans say of each node.
fn common(a: Option<&BTreeMap<NodeRef, Known>>, mut b: BTreeMap<NodeRef, Known>) -> BTreeMap<NodeRef, Known> {
    b.retain(|node, _| a.is_some_and(|a| a.contains_key(node)));
    for (node, known) in &mut b {
        if let Some(other) = a.and_then(|a| a.get(node)) {
            *known = known.and(other);
        }
    }
    b
}

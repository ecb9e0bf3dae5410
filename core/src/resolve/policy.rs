//! Policies: whom they select, what of them makes sense, and the identities they need.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use spillway_crds::hub::{
    Allocated, Allocation, Bandwidth, DestinationPort, Destinations, IdentityRecord, ResolvedEgress, Sources,
    Through,
};
use spillway_crds::member::PolicyRef;

use super::gateway::Gateways;
use super::status::listed;
use super::{Fault, FederationState, MemberInput, PolicyInput};
use crate::address::{Addresses, parse_prefix};
use crate::alloc::{self, Egress, Memory};
use crate::bandwidth;
use crate::eip::{Denial, Grant, Held, Request, Supply, allocate};
use crate::ports::{self, PortClaim};

/// Identities that one gateway's status has room for.
const MAX_RECORDS: usize = 4096;
/// Ports that one policy may name.
const MAX_PORTS: usize = 64;

/// All policies.
pub(super) struct Policies<'a> {
    by_source: BTreeMap<&'a PolicyRef, Policy<'a>>,
}

/// One policy.
pub(super) struct Policy<'a> {
    pub(super) input: &'a PolicyInput,
    /// Selected members, sorted.
    pub(super) selected: Vec<&'a str>,
    pub(super) faults: Vec<Fault>,
    /// What can be used of `through`, in order.
    pub(super) through: Vec<Egress>,
    /// How each of these was chosen.
    pub(super) chosen: Vec<Chosen>,
    /// Selected members that may use each of these, sorted.
    pub(super) users: Vec<Vec<&'a str>>,
    /// What of its destinations could be read.
    pub(super) to: Destinations,
    /// What of its sources could be read; `None` where it names none, and where none could.
    pub(super) sources: Option<Sources>,
    /// How much its pods may send on each node, where that could be read.
    pub(super) bandwidth: Option<&'a Bandwidth>,
    /// True where some of each could. Where none could, nobody knows what it was meant to take: it is planned as if it
    /// named none, and without a gateway, so that its `onUnavailable` rules.
    pub(super) readable: bool,
}

/// How a policy came to its addresses of one gateway.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    pub(super) allocated: Allocated,
    pub(super) exclusive: bool,
    /// It isn't recorded yet.
    pub(super) fresh: bool,
    /// Those that the gateway's pool doesn't hold any more.
    pub(super) removed: Addresses,
}

/// What policies get of each gateway.
type Grants<'a> = BTreeMap<(&'a PolicyRef, &'a str), Result<Grant, Denial<'a>>>;

/// Identities: those recorded, and those that could not be given at all.
#[derive(Default)]
pub(super) struct Identities {
    recorded: BTreeMap<Egress, u16>,
    exhausted: BTreeSet<Egress>,
}

impl Identities {
    /// The recorded number.
    pub(super) fn get(&self, egress: &Egress) -> Option<u16> {
        self.recorded.get(egress).copied()
    }

    /// True where the number is yet to be recorded.
    pub(super) fn awaited(&self, egress: &Egress) -> bool {
        !self.recorded.contains_key(egress) && !self.exhausted.contains(egress)
    }

    /// True where no number is left.
    pub(super) fn exhausted(&self, egress: &Egress) -> bool {
        self.exhausted.contains(egress)
    }
}

impl<'a> Policies<'a> {
    pub(super) fn new(
        state: &'a FederationState,
        members: &BTreeMap<&'a str, &'a MemberInput>,
        gateways: &Gateways<'a>,
    ) -> Self {
        let inputs: BTreeMap<_, _> = state
            .policies
            .iter()
            .map(|p| (&p.source, (p, Audience::of(p, members, gateways))))
            .collect();
        let grants = grants(inputs.values(), gateways);
        let by_source = inputs
            .into_iter()
            .map(|(source, (p, audience))| (source, Policy::new(p, audience, gateways, &grants)))
            .collect();
        Self { by_source }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Policy<'a>> {
        self.by_source.values()
    }

    /// Gives every (gateway, egress IPs) in use an identity. Also returns what each gateway's records should be,
    /// sorted by number.
    pub(super) fn identities<'g>(
        &self,
        gateways: &'g Gateways<'a>,
        memory: &Memory,
    ) -> (Identities, BTreeMap<&'g str, Vec<IdentityRecord>>) {
        let wanted: BTreeSet<_> = self.iter().flat_map(|p| p.through.iter().cloned()).collect();
        let recorded = gateways.recorded();
        let room = within_bounds(&wanted, &recorded);
        let given = alloc::identities(recorded.iter().map(|(e, id)| (e, *id)), &room, memory);
        let mut lists: BTreeMap<_, Vec<_>> = gateways
            .iter()
            .map(|g| (g.input.name.as_str(), Vec::new()))
            .collect();
        for (egress, id) in &given {
            if let Some(list) = lists.get_mut(egress.gateway.as_str()) {
                list.push(IdentityRecord {
                    id: *id,
                    egress_ip: egress.addresses.into(),
                });
            }
        }
        for list in lists.values_mut() {
            list.sort_by_key(|r| r.id);
        }
        let identities = Identities {
            exhausted: wanted.into_iter().filter(|e| !given.contains_key(e)).collect(),
            recorded: recorded
                .into_iter()
                .filter(|(e, id)| given.get(e) == Some(id))
                .collect(),
        };
        (identities, lists)
    }
}

/// What fits into every gateway's list of records; what is recorded comes first. A list that the API
/// server refuses would hold up every policy of the gateway.
fn within_bounds(wanted: &BTreeSet<Egress>, recorded: &[(Egress, u16)]) -> BTreeSet<Egress> {
    let known: BTreeSet<_> = recorded.iter().map(|(e, _)| e).collect();
    let (old, new): (Vec<_>, Vec<_>) = wanted.iter().partition(|e| known.contains(e));
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    old.into_iter()
        .chain(new)
        .filter(|e| {
            let used = used.entry(&e.gateway).or_default();
            *used += 1;
            *used <= MAX_RECORDS
        })
        .cloned()
        .collect()
}

impl<'a> Policy<'a> {
    fn new(
        input: &'a PolicyInput,
        audience: Audience<'a>,
        gateways: &Gateways<'a>,
        grants: &Grants<'a>,
    ) -> Self {
        let mut faults = Vec::new();
        let (mut through, mut chosen, mut users) = (Vec::new(), Vec::new(), Vec::new());
        let Audience {
            selected,
            users: may_use,
        } = audience;
        for (i, (entry, may)) in input.through.iter().zip(may_use).enumerate() {
            if input.through[..i].iter().any(|e| e.gateway == entry.gateway) {
                faults.push(Fault::new(
                    "DuplicateEntry",
                    format!(
                        "spec.through[{i}].gateway repeats {:?}; a gateway can't stand in for itself, remove one of the two",
                        entry.gateway
                    ),
                ));
                continue;
            }
            if may.len() < selected.len() {
                faults.push(ungranted(i, input, &selected, &may));
                if may.is_empty() {
                    continue;
                }
            }
            let grant = grants.get(&(&input.source, entry.gateway.as_str()));
            match egress(i, entry, gateways, grant) {
                Ok((egress, how)) => {
                    through.push(egress);
                    chosen.push(how);
                    users.push(may);
                }
                Err(fault) => faults.push(fault),
            }
        }
        if input.through.is_empty() {
            faults.push(Fault::new(
                "NoGateway",
                "spec.through is empty; name at least one EgressGateway",
            ));
        }
        let cidrs = prefixes("to.cidrs", &input.to.cidrs, &mut faults);
        let except = prefixes("to.except", &input.to.except, &mut faults);
        let texts = |nets: Vec<(usize, IpNet)>| nets.into_iter().map(|(_, net)| net.to_string()).collect();
        let sources = input.sources.as_ref().map(|s| Sources {
            cidrs: texts(prefixes("sources.cidrs", &s.cidrs, &mut faults)),
        });
        check_families(&cidrs, &through, gateways, &mut faults);
        let bandwidth = input
            .bandwidth
            .as_ref()
            .filter(|given| match bandwidth::parse(given) {
                Ok(_) => true,
                Err(bad) => {
                    let message = format!("spec.bandwidth.{bad}; until it is corrected nothing is limited");
                    faults.push(Fault::new("InvalidBandwidth", message));
                    false
                }
            });
        // An empty list means everything, so a list of which nothing could be read must not become one.
        let somewhere = input.to.cidrs.is_empty() || !cidrs.is_empty();
        let somebody = sources.as_ref().is_none_or(|s| !s.cidrs.is_empty());
        let ports = destination_ports(&input.to.ports, &mut faults);
        let some_port = input.to.ports.is_empty() || !ports.is_empty();
        for (field, some, whom) in [
            ("to.cidrs", somewhere, "everything that its pods send"),
            (
                "sources.cidrs",
                somebody,
                "all pods that the other selectors match",
            ),
            ("to.ports", some_port, "all ports of its destinations"),
        ] {
            let first = faults
                .iter_mut()
                .find(|f| f.message.starts_with(&format!("spec.{field}")));
            if let Some(fault) = first.filter(|_| !some) {
                fault.message.push_str("; none of spec.");
                fault.message.push_str(field);
                fault
                    .message
                    .push_str(" can be read, so spec.onUnavailable rules for ");
                fault.message.push_str(whom);
            }
        }
        let to = Destinations {
            cidrs: texts(cidrs),
            except: texts(except),
            ports,
        };
        Self {
            input,
            selected,
            faults,
            through,
            chosen,
            users,
            to,
            sources: sources.filter(|_| somebody),
            bandwidth,
            readable: somewhere && somebody && some_port,
        }
    }
}

/// Whom a policy is for.
struct Audience<'a> {
    /// Members that it selects, sorted.
    selected: Vec<&'a str>,
    /// Those in which it may use what each entry of `through` names, sorted. Where that is no gateway, all.
    users: Vec<Vec<&'a str>>,
}

impl<'a> Audience<'a> {
    fn of(
        input: &PolicyInput,
        members: &BTreeMap<&'a str, &'a MemberInput>,
        gateways: &Gateways<'a>,
    ) -> Self {
        let selected: Vec<_> = members
            .iter()
            .filter(|(_, m)| input.members.matches(&m.labels))
            .collect();
        let users = |entry: &Through| {
            let gateway = gateways.get(&entry.gateway);
            let may = |m: &MemberInput| gateway.is_none_or(|g| g.grants(input, m));
            let users = selected.iter().filter(|(_, m)| may(m));
            users.map(|(name, _)| **name).collect()
        };
        Self {
            users: input.through.iter().map(users).collect(),
            selected: selected.iter().map(|(name, _)| **name).collect(),
        }
    }
}

/// Where a policy may not use what it names.
fn ungranted(i: usize, input: &PolicyInput, selected: &[&str], may: &[&str]) -> Fault {
    let denied: Vec<_> = selected.iter().filter(|m| !may.contains(m)).collect();
    let whose = match &input.source.namespace {
        Some(namespace) => format!("policies of namespace {namespace}"),
        None => "cluster-wide policies".into(),
    };
    Fault::new(
        "NotGranted",
        format!(
            "spec.through[{i}].gateway: EgressGateway {:?} isn't granted to {whose} in {}; ask whoever owns it for an entry in its spec.allow, or select other members. There it is as if the entry were missing",
            input.through[i].gateway,
            listed(&denied)
        ),
    )
}

/// Hands out every gateway's addresses, to those who may use it.
fn grants<'a: 'p, 'p>(
    policies: impl Iterator<Item = &'p (&'a PolicyInput, Audience<'a>)>,
    gateways: &Gateways<'a>,
) -> Grants<'a> {
    let mut requests: BTreeMap<&str, Vec<Request<'a>>> = BTreeMap::new();
    for (policy, audience) in policies {
        let mut asked = BTreeSet::new();
        let entries = policy.through.iter().zip(&audience.users);
        let granted = entries.filter(|(_, users)| audience.selected.is_empty() || !users.is_empty());
        for (entry, _) in granted {
            let fixed = entry
                .egress_ip
                .as_ref()
                .map_or(Ok(Addresses::default()), Addresses::parse);
            // What can't be read is told of with the policy's other faults.
            if let (true, Ok(fixed)) = (asked.insert(&entry.gateway), fixed) {
                requests.entry(&entry.gateway).or_default().push(Request {
                    policy: &policy.source,
                    created: policy.created,
                    fixed,
                    allocation: entry.allocation,
                    exclusive: entry.exclusive,
                    held: held(policy, entry),
                });
            }
        }
    }
    let mut out = Grants::new();
    for gateway in gateways.iter().filter(|g| g.usable && !g.node_ip()) {
        let name = gateway.input.name.as_str();
        let requests = requests.remove(name).unwrap_or_default();
        let supply = Supply {
            pool: gateway.pool.clone(),
            default: gateway.default,
        };
        let results = allocate(&supply, &requests);
        out.extend(
            requests
                .iter()
                .zip(results)
                .map(|(r, result)| ((r.policy, name), result)),
        );
    }
    out
}

/// What `policy` has of the gateway of `entry`. The gateway's default addresses, with which everybody leaves, aren't what
/// one that asks for its own from then on means, and nodes' own addresses are nobody's.
fn held(policy: &PolicyInput, entry: &Through) -> Held {
    let recorded = policy.held.iter().find(|h| h.gateway == entry.gateway);
    let own =
        |r: &&ResolvedEgress| entry.allocation == Allocation::Default || r.allocated != Allocated::Default;
    let given = recorded.filter(|r| r.allocated != Allocated::NodeIP);
    given.filter(own).map_or_else(Held::default, |r| Held {
        addresses: Addresses::parse(&r.egress_ip).unwrap_or_default(),
        exclusive: r.exclusive,
    })
}

fn egress(
    i: usize,
    entry: &Through,
    gateways: &Gateways<'_>,
    grant: Option<&Result<Grant, Denial<'_>>>,
) -> Result<(Egress, Chosen), Fault> {
    let name = &entry.gateway;
    let Some(gateway) = gateways.get(name) else {
        return Err(Fault::new(
            "UnknownGateway",
            format!(
                "spec.through[{i}].gateway: there is no EgressGateway named {name:?}; create it or correct the name"
            ),
        ));
    };
    if !gateway.usable {
        return Err(Fault::new(
            "GatewayNotAccepted",
            format!(
                "spec.through[{i}].gateway: EgressGateway {name:?} is not accepted; see its Accepted condition"
            ),
        ));
    }
    if let Some(Err((field, bad))) = entry.egress_ip.as_ref().map(Addresses::parse) {
        return Err(Fault::new(
            "InvalidAddress",
            format!("spec.through[{i}].egressIP.{field}: {bad}"),
        ));
    }
    if gateway.node_ip() {
        return lent(i, entry);
    }
    let grant = match grant {
        Some(Ok(grant)) => *grant,
        Some(Err(denial)) => return Err(denied(i, entry, denial)),
        None => Grant::default(),
    };
    if grant.addresses.is_empty() {
        return Err(Fault::new(
            "GatewayNotAccepted",
            format!(
                "spec.through[{i}].gateway: no address of EgressGateway {name:?} can be used; see its Accepted condition"
            ),
        ));
    }
    let fixed = entry
        .egress_ip
        .as_ref()
        .and_then(|pair| Addresses::parse(pair).ok())
        .unwrap_or_default();
    let egress = Egress {
        gateway: name.clone(),
        addresses: grant.addresses,
    };
    let chosen = Chosen {
        allocated: match entry.allocation {
            _ if fixed == grant.addresses => Allocated::Fixed,
            Allocation::Default => Allocated::Default,
            Allocation::Pool => Allocated::Pool,
        },
        exclusive: entry.exclusive,
        fresh: grant.fresh,
        removed: grant.removed,
    };
    Ok((egress, chosen))
}

/// An entry of `through` for a gateway without a pool.
fn lent(i: usize, entry: &Through) -> Result<(Egress, Chosen), Fault> {
    let name = &entry.gateway;
    let named = entry.egress_ip.as_ref();
    let asks = named.is_some_and(|pair| pair.ipv4.is_some() || pair.ipv6.is_some());
    if asks || entry.exclusive || entry.allocation != Allocation::Default {
        return Err(Fault::new(
            "NoPool",
            format!(
                "spec.through[{i}]: EgressGateway {name:?} leaves with its nodes' own addresses (addresses.nodeIP) and has none to choose from; leave egressIP, allocation and exclusive out, or name a gateway with a pool"
            ),
        ));
    }
    let egress = Egress {
        gateway: name.clone(),
        addresses: Addresses::default(),
    };
    let chosen = Chosen {
        allocated: Allocated::NodeIP,
        exclusive: false,
        fresh: false,
        removed: Addresses::default(),
    };
    Ok((egress, chosen))
}

/// Why an entry of `through` gets no address.
fn denied(i: usize, entry: &Through, denial: &Denial<'_>) -> Fault {
    let name = &entry.gateway;
    match denial {
        Denial::NotInPool(address) => {
            let field = if address.is_ipv6() { "ipv6" } else { "ipv4" };
            Fault::new(
                "AddressNotInPool",
                format!(
                    "spec.through[{i}].egressIP.{field}: {address} is not in the pool of EgressGateway {name:?}; choose one of spec.addresses there or add it"
                ),
            )
        }
        Denial::Reserved(address, owner) => Fault::new(
            "AddressTaken",
            format!(
                "spec.through[{i}]: {address} of EgressGateway {name:?} is reserved for policy {owner}, which has it exclusively; name another one in egressIP or set allocation: Pool"
            ),
        ),
        Denial::InUse(address, user) => Fault::new(
            "AddressInUse",
            format!(
                "spec.through[{i}].exclusive: {address} of EgressGateway {name:?} can't be this policy's alone while policy {user} leaves with it; choose another one or change that policy"
            ),
        ),
        Denial::Exhausted => Fault::new(
            "PoolExhausted",
            format!(
                "spec.through[{i}].allocation: no address of EgressGateway {name:?} is left{}; add some to spec.addresses there",
                if entry.exclusive {
                    " that nobody leaves with"
                } else {
                    ""
                }
            ),
        ),
    }
}

fn prefixes(field: &str, list: &[String], faults: &mut Vec<Fault>) -> Vec<(usize, IpNet)> {
    let mut out: Vec<(usize, IpNet)> = Vec::new();
    for (i, text) in list.iter().enumerate() {
        match parse_prefix(text) {
            Err(bad) => faults.push(Fault::new("InvalidCIDR", format!("spec.{field}[{i}]: {bad}"))),
            Ok(net) if out.iter().any(|(_, n)| *n == net) => faults.push(Fault::new(
                "DuplicateEntry",
                format!("spec.{field}[{i}] repeats {net}; remove one of the two"),
            )),
            Ok(net) => out.push((i, net)),
        }
    }
    out
}

/// What of a policy's ports could be read.
fn destination_ports(list: &[DestinationPort], faults: &mut Vec<Fault>) -> Vec<DestinationPort> {
    if list.len() > MAX_PORTS {
        faults.push(Fault::new(
            "TooManyPorts",
            format!(
                "spec.to.ports has {} entries, and a policy has at most {MAX_PORTS}: merge some to ranges, or divide them among \
                 several policies",
                list.len()
            ),
        ));
        return Vec::new();
    }
    let mut seen: BTreeMap<PortClaim, usize> = BTreeMap::new();
    let mut out = Vec::new();
    for (i, entry) in list.iter().enumerate() {
        match ports::parse(entry) {
            Err(bad) => faults.push(Fault::new("InvalidPort", format!("spec.to.ports[{i}]: {bad}"))),
            Ok(claim) => {
                if let Some(first) = seen.get(&claim) {
                    faults.push(Fault::new(
                        "DuplicateEntry",
                        format!("spec.to.ports[{i}] repeats spec.to.ports[{first}]; remove one of the two"),
                    ));
                    continue;
                }
                seen.insert(claim, i);
                out.push(*entry);
            }
        }
    }
    out
}

/// A destination of a family in which no gateway of the policy has an address would always be blocked.
fn check_families(
    cidrs: &[(usize, IpNet)],
    through: &[Egress],
    gateways: &Gateways<'_>,
    faults: &mut Vec<Fault>,
) {
    if through.is_empty() {
        return;
    }
    for (v6, family) in [(false, "IPv4"), (true, "IPv6")] {
        let served = through.iter().any(|e| {
            let named = e.addresses.iter().any(|a| a.is_ipv6() == v6);
            named || gateways.get(&e.gateway).is_some_and(|g| g.lends(v6))
        });
        let asked = cidrs.iter().find(|(_, net)| net.network().is_ipv6() == v6);
        if let (false, Some((i, net))) = (served, asked) {
            faults.push(Fault::new(
                "NoAddressOfFamily",
                format!(
                    "spec.to.cidrs[{i}]: {net} is {family}, but no gateway of spec.through has an {family} address; add one to the gateway's pool or remove the entry"
                ),
            ));
        }
    }
}

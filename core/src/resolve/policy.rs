//! Policies: whom they select, what of them makes sense, and the identities they need.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use spillway_crds::hub::{DestinationPort, Destinations, IdentityRecord, Sources};
use spillway_crds::member::PolicyRef;

use super::gateway::Gateways;
use super::{Fault, FederationState, MemberInput, PolicyInput};
use crate::address::{Addresses, parse_prefix};
use crate::alloc::{self, Egress, Memory};
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
    /// What of its destinations could be read.
    pub(super) to: Destinations,
    /// What of its sources could be read; `None` where it names none, and where none could.
    pub(super) sources: Option<Sources>,
    /// True where some of each could. Where none could, nobody knows what it was meant to take: it is planned as if it
    /// named none, and without a gateway, so that its `onUnavailable` rules.
    pub(super) readable: bool,
}

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
        let by_source = state
            .policies
            .iter()
            .map(|p| (&p.source, Policy::new(p, members, gateways)))
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
        members: &BTreeMap<&'a str, &'a MemberInput>,
        gateways: &Gateways<'a>,
    ) -> Self {
        let mut faults = Vec::new();
        let mut through = Vec::new();
        for (i, entry) in input.through.iter().enumerate() {
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
            match egress(i, entry, gateways) {
                Ok(e) => through.push(e),
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
        check_families(&cidrs, &through, &mut faults);
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
        let selected = members
            .iter()
            .filter(|(_, m)| input.members.matches(&m.labels))
            .map(|(name, _)| *name)
            .collect();
        Self {
            input,
            selected,
            faults,
            through,
            to,
            sources: sources.filter(|_| somebody),
            readable: somewhere && somebody && some_port,
        }
    }
}

fn egress(i: usize, entry: &spillway_crds::hub::Through, gateways: &Gateways<'_>) -> Result<Egress, Fault> {
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
    let first = gateway.pool.first();
    let mut addresses = first;
    if let Some(pair) = &entry.egress_ip {
        let asked = Addresses::parse(pair).map_err(|(field, bad)| {
            Fault::new(
                "InvalidAddress",
                format!("spec.through[{i}].egressIP.{field}: {bad}"),
            )
        })?;
        let single = |v4, v6| Addresses { v4, v6 };
        for (field, one) in [("ipv4", single(asked.v4, None)), ("ipv6", single(None, asked.v6))] {
            if !gateway.holds(&one) {
                return Err(Fault::new(
                    "AddressNotInPool",
                    format!(
                        "spec.through[{i}].egressIP.{field}: {one} is not in the pool of EgressGateway {name:?}; choose one of spec.addresses there or add it"
                    ),
                ));
            }
        }
        addresses = single(asked.v4.or(first.v4), asked.v6.or(first.v6));
    }
    if addresses.is_empty() {
        return Err(Fault::new(
            "GatewayNotAccepted",
            format!(
                "spec.through[{i}].gateway: no address of EgressGateway {name:?} can be used; see its Accepted condition"
            ),
        ));
    }
    Ok(Egress {
        gateway: name.clone(),
        addresses,
    })
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
fn check_families(cidrs: &[(usize, IpNet)], through: &[Egress], faults: &mut Vec<Fault>) {
    if through.is_empty() {
        return;
    }
    for (v6, family) in [(false, "IPv4"), (true, "IPv6")] {
        let served = through.iter().any(|e| {
            if v6 {
                e.addresses.v6.is_some()
            } else {
                e.addresses.v4.is_some()
            }
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

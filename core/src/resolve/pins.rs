//! Egress IPs that are pinned to nodes: what of it makes sense, and what became of it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use spillway_crds::condition::{ConditionType, Verdict};
use spillway_crds::hub::{AddressHolder, AddressPin, EgressGatewaySpec, Translation};
use spillway_crds::member::{GatewayNodeState, NodeRef};

use super::Fault;
use super::gateway::Gateway;
use super::status::MAX_NAMES;
use crate::address::Pool;

/// Pins by address, and what is wrong with the others. One of an address outside `pool` is a typing error that would show
/// in nothing else.
pub(super) fn read(spec: &EgressGatewaySpec, pool: &Pool) -> (BTreeMap<IpAddr, NodeRef>, Vec<Fault>) {
    let mut pins = BTreeMap::new();
    let mut faults = Vec::new();
    if spec.addresses.node_ip || spec.translation == Translation::GatewayNode {
        if !spec.pins.is_empty() {
            faults.push(Fault::new(
                "NotPinnable",
                "spec.pins: a gateway that translates on its own nodes is carried by one node as a whole; remove the pins, or let it have a pool and translation: SourceNode",
            ));
        }
        return (pins, faults);
    }
    for (i, pin) in spec.pins.iter().enumerate() {
        let Ok(address) = pin.address.parse::<IpAddr>() else {
            faults.push(Fault::new(
                "InvalidAddress",
                format!("spec.pins[{i}].address: {:?} is no address", pin.address),
            ));
            continue;
        };
        if !pool.contains(address) {
            faults.push(Fault::new(
                "AddressNotInPool",
                format!("spec.pins[{i}].address: {address} is in no entry of the pool; add it to spec.addresses or remove the pin"),
            ));
            continue;
        }
        match pins.entry(address) {
            Entry::Vacant(place) => {
                place.insert(pin.node.clone());
            }
            Entry::Occupied(_) => faults.push(Fault::new(
                "DuplicateEntry",
                format!("spec.pins[{i}].address: {address} is pinned already; an address is held by one node, remove one of the two"),
            )),
        }
    }
    (pins, faults)
}

/// As a plan has them.
pub(super) fn planned(pins: &BTreeMap<IpAddr, NodeRef>) -> Vec<AddressPin> {
    let mut list: Vec<_> = pins
        .iter()
        .map(|(address, node)| AddressPin {
            address: address.to_string(),
            node: node.clone(),
        })
        .collect();
    list.sort();
    list
}

/// `PinsHeld` of a gateway. `holders`: who holds what, as the nodes say.
pub(super) fn verdict(gateway: &Gateway<'_>, holders: &[AddressHolder]) -> Verdict {
    let kind = ConditionType::PinsHeld;
    if gateway.pins.is_empty() {
        return Verdict::yes(kind, "NoPins", "");
    }
    if gateway.translation == Translation::GatewayNode {
        return Verdict::no(
            kind,
            "TranslatedAtGateway",
            "the gateway translates on its own nodes and is carried by one of them as a whole; see PortsAvailable",
        );
    }
    let mut astray: BTreeSet<(&str, String)> = BTreeSet::new();
    for (address, node) in &gateway.pins {
        let holder = holders.iter().find(|h| h.address.parse() == Ok(*address));
        let holder = holder.map(|h| NodeRef::new(&h.member, &h.node));
        let Some(place) = gateway.order.iter().find(|n| n.node == *node) else {
            astray.insert((
                "NodeNotInGateway",
                format!(
                    "{address} is pinned to {node}, which spec.nodes doesn't select or no member reports"
                ),
            ));
            continue;
        };
        let elsewhere = holder.filter(|h| h != node);
        let why = match (place.state, &elsewhere) {
            (GatewayNodeState::Draining, _) => "which is being drained",
            (GatewayNodeState::NotReady, _) => "which isn't ready",
            (GatewayNodeState::Ready, Some(_)) => "which has yet to take it",
            (GatewayNodeState::Ready, None) => continue,
        };
        let instead = elsewhere.map_or_else(String::new, |h| format!("; {h} holds it until then"));
        astray.insert((
            "HeldElsewhere",
            format!("{address} is pinned to {node}, {why}{instead}"),
        ));
    }
    let Some((reason, _)) = astray.last() else {
        return Verdict::yes(kind, "PinsHeld", "");
    };
    let said: Vec<_> = astray
        .iter()
        .rev()
        .take(MAX_NAMES)
        .map(|(_, text)| text.as_str())
        .collect();
    let more = match astray.len().saturating_sub(MAX_NAMES) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    Verdict::no(kind, reason, format!("{}{more}", said.join("; ")))
}

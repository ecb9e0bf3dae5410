//! Policy rules with our protocol number, of both families.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use spillway_core::node::state::{Rule, UdpPort};

use super::netlink::Requests;
use super::step::Step;
use crate::{PROTOCOL, Result};

/// A rule as the kernel holds it; `rule` is absent for one of a form that we never write.
#[derive(Clone, Debug)]
pub(super) struct Held {
    ours: bool,
    rule: Option<Rule>,
    message: RuleMessage,
}

/// All rules of both families.
pub(super) fn observe(requests: &mut Requests<RouteNetlinkMessage>) -> Result<Vec<Held>> {
    let mut out = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RuleMessage::default();
        message.header.family = family;
        for message in requests.dump("list rules", &RouteNetlinkMessage::GetRule(message))? {
            if let RouteNetlinkMessage::NewRule(message) = message
                && message.header.family == family
            {
                out.push(read(message));
            }
        }
    }
    Ok(out)
}

/// Dumps name defaults that nobody gave: `suppress_prefixlength -1`, a full mask where no mark is compared.
pub(super) fn read(message: RuleMessage) -> Held {
    let header = &message.header;
    let mut rule = Rule {
        ipv6: header.family == AddressFamily::Inet6,
        priority: 0,
        mark: 0,
        mask: 0,
        udp: None,
        table: u32::from(header.table),
    };
    let (mut to, mut udp, mut ports) = (None, false, Vec::new());
    let mut ours = false;
    let mut plain = header.action == RuleAction::ToTable
        && header.src_len == 0
        && header.tos == 0
        && !header.flags.contains(RuleFlags::Invert);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(p) => rule.priority = *p,
            RuleAttribute::FwMark(m) => rule.mark = *m,
            RuleAttribute::FwMask(m) => rule.mask = *m,
            RuleAttribute::Table(t) => rule.table = *t,
            RuleAttribute::Protocol(p) => ours = *p == RouteProtocol::Other(PROTOCOL),
            RuleAttribute::Destination(address) => to = Some(*address),
            RuleAttribute::IpProtocol(IpProtocol::Udp) => udp = true,
            RuleAttribute::DestinationPortRange(range) if range.start == range.end => {
                ports.push(UdpPort::Destination(range.start));
            }
            RuleAttribute::SourcePortRange(range) if range.start == range.end => {
                ports.push(UdpPort::Source(range.start));
            }
            RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX)
            | RuleAttribute::L3MDev(false)
            | RuleAttribute::Other(_) => {}
            _ => plain = false,
        }
    }
    if rule.mark == 0 && rule.mask == u32::MAX {
        rule.mask = 0;
    }
    rule.udp = match (to, udp, ports.as_slice()) {
        (Some(to), true, [port]) => IpNet::new(to, header.dst_len).ok().map(|to| (to, *port)),
        _ => None,
    };
    plain &= rule.udp.is_some() || (to.is_none() && header.dst_len == 0 && !udp && ports.is_empty());
    Held {
        ours,
        rule: plain.then_some(rule),
        message,
    }
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    message.attributes.extend([
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ]);
    if rule.mask != 0 {
        message
            .attributes
            .extend([RuleAttribute::FwMark(rule.mark), RuleAttribute::FwMask(rule.mask)]);
    }
    if let Some((to, port)) = rule.udp {
        message.header.dst_len = to.prefix_len();
        message.attributes.extend([
            RuleAttribute::Destination(to.network()),
            RuleAttribute::IpProtocol(IpProtocol::Udp),
            match port {
                UdpPort::Source(port) => RuleAttribute::SourcePortRange(only(port)),
                UdpPort::Destination(port) => RuleAttribute::DestinationPortRange(only(port)),
            },
        ]);
    }
    message
}

const fn only(port: u16) -> RulePortRange {
    RulePortRange {
        start: port,
        end: port,
    }
}

fn describe(rule: &Rule) -> String {
    let Rule {
        priority,
        mark,
        mask,
        udp,
        table,
        ..
    } = rule;
    let family = if rule.ipv6 { "-6 " } else { "" };
    let selects = match udp {
        Some((to, UdpPort::Source(port))) => format!("to {to} ipproto udp sport {port}"),
        Some((to, UdpPort::Destination(port))) => format!("to {to} ipproto udp dport {port}"),
        None => format!("fwmark {mark:#x}/{mask:#x}"),
    };
    format!("{family}rule pref {priority} {selects} lookup {table}")
}

/// Rules as the kernel holds them where it holds `rules`.
pub(super) fn written<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Vec<Held> {
    let held = |rule: &Rule| Held {
        ours: true,
        rule: Some(rule.clone()),
        message: message(rule),
    };
    rules.into_iter().map(held).collect()
}

/// Compares rules. New ones are added before old ones go, so that a mark is never without its table.
pub(super) fn steps(held: &[Held], wanted: &BTreeSet<Rule>) -> Vec<Step> {
    let mut steps = Vec::new();
    for rule in wanted {
        // The kernel takes an equal rule of another protocol number for the same one and refuses ours: that
        // one serves as well.
        if !held.iter().any(|h| h.rule.as_ref() == Some(rule)) {
            let mut step = Step::add(describe(rule), RouteNetlinkMessage::NewRule(message(rule)));
            // "Replace" would put a second one beside the first.
            if let super::step::Action::Netlink(_, flags) = &mut step.action {
                *flags = NLM_F_CREATE | NLM_F_EXCL;
            }
            steps.push(step);
        }
    }
    let mut seen = BTreeSet::new();
    for held in held.iter().filter(|h| h.ours) {
        let keep = held
            .rule
            .as_ref()
            .is_some_and(|r| wanted.contains(r) && seen.insert(r.clone()));
        if !keep {
            let object = held
                .rule
                .as_ref()
                .map_or_else(|| "rule of a foreign form".into(), describe);
            // The kernel compares every attribute it is given: only what it printed is sure to match.
            let message = RouteNetlinkMessage::DelRule(held.message.clone());
            steps.push(Step::remove(object, message));
        }
    }
    steps
}

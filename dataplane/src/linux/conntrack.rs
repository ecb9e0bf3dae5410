//! Connection tracking entries: listed, judged, deleted, counted.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::libc::ENOENT;
use spillway_core::node::flows::{Flow, Flows, TAG, TAG_MASK};
use spillway_crds::hub::PortRange;

use super::netlink::Requests;
use crate::{PortCount, Result};

/// `IPCTNL_MSG_CT_GET_STATS`: answers with the number of entries, whatever that is.
const GET_STATS: u8 = 5;

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x0101;

/// Attributes that name an entry for its deletion: both tuples would do, the kernel asks for one of them;
/// CTA_ID tells it from a successor with the same tuple, CTA_ZONE from an equal one in another zone.
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

fn message(family: NetfilterProtoFamily, inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// Whether the kernel tracks connections and lets us see them.
pub(super) fn probe(requests: &mut Requests<NetfilterMessage>) -> Result<()> {
    let stats = ConntrackMessage::Other {
        message_type: GET_STATS,
        attributes: Vec::new(),
    };
    requests.ack(
        "read connection tracking statistics",
        0,
        message(NetfilterProtoFamily::Unspec, stats),
    )
}

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_MARK`, `CTA_MARK_MASK`; in tuples `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`, and
/// in these the addresses, the protocol and what tells connections of one protocol apart.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const MARK: u16 = 8;
const MARK_MASK: u16 = 21;
const IP: u16 = 1;
const PROTOCOL: u16 = 2;
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const ICMP_ID: [u16; 2] = [4, 7];
const V4: [u16; 2] = [1, 2];
const V6: [u16; 2] = [3, 4];

/// `CTA_FILTER` with `CTA_FILTER_ORIG_FLAGS`: which parts of the original tuple count; of them
/// `CTA_FILTER_F_CTA_IP_SRC` (nf_internals.h).
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_SOURCE: u32 = 1;

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Up to so many sources are asked for one by one: the kernel walks its whole table for each.
const FEW: usize = 16;

/// Bytes of `nfgenmsg`.
const FAMILY_HEADER: usize = 4;

/// Kinds and contents of netlink attributes.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let content = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// One direction of an entry.
#[derive(Clone, Copy, Debug, Default)]
struct Tuple {
    ends: [Option<IpAddr>; 2],
    protocol: u8,
    /// Source and destination port; of an ICMP echo its identifier twice; 0 where there are none.
    ports: [u16; 2],
}

fn tuple(bytes: &[u8]) -> Tuple {
    let mut out = Tuple::default();
    for (kind, content) in attributes(bytes) {
        match kind {
            IP => {
                for (kind, content) in attributes(content) {
                    let address = <[u8; 4]>::try_from(content)
                        .map(IpAddr::from)
                        .or_else(|_| <[u8; 16]>::try_from(content).map(IpAddr::from));
                    for (end, slot) in out.ends.iter_mut().enumerate() {
                        if kind == V4[end] || kind == V6[end] {
                            *slot = address.ok();
                        }
                    }
                }
            }
            PROTOCOL => {
                for (kind, content) in attributes(content) {
                    let port = || <[u8; 2]>::try_from(content).map_or(0, u16::from_be_bytes);
                    match kind {
                        NUMBER => out.protocol = content.first().copied().unwrap_or_default(),
                        SOURCE_PORT => out.ports[0] = port(),
                        DESTINATION_PORT => out.ports[1] = port(),
                        _ if ICMP_ID.contains(&kind) => out.ports = [port(); 2],
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    out
}

/// What matters of an entry, read from its bytes: typed messages take ten times as long, and most entries are
/// others'.
fn flow(message: &[u8]) -> Option<Flow> {
    let (mut original, mut reply, mut mark) = (Tuple::default(), Tuple::default(), 0);
    for (kind, content) in attributes(message.get(FAMILY_HEADER..)?) {
        match kind {
            ORIGINAL => original = tuple(content),
            REPLY => reply = tuple(content),
            MARK => mark = u32::from_be_bytes(content.try_into().ok()?),
            _ => {}
        }
    }
    Some(Flow {
        source: original.ends[0]?,
        destination: reply.ends[0]?,
        translated: reply.ends[1]?,
        port: reply.ports[1],
        protocol: reply.protocol,
        to_port: reply.ports[0],
        mark,
    })
}

/// Counts what our connections use of each address's ranges. The kernel leaves others' connections out itself.
pub(super) fn port_use(
    requests: &mut Requests<NetfilterMessage>,
    of: &[(IpAddr, Vec<PortRange>)],
) -> Result<Vec<PortCount>> {
    let index: HashMap<IpAddr, usize> = of.iter().enumerate().map(|(n, (ip, _))| (*ip, n)).collect();
    let request = [
        vec![u8::from(NetfilterProtoFamily::Unspec), 0, 0, 0],
        encoded(MARK, &TAG.to_be_bytes()),
        encoded(MARK_MASK, &TAG_MASK.to_be_bytes()),
    ]
    .concat();
    let none = || {
        let counts = of.iter().map(|(_, ranges)| PortCount {
            connections: vec![0; ranges.len()],
            busiest: 0,
        });
        (counts.collect::<Vec<_>>(), HashMap::new())
    };
    let (mut counts, towards) =
        requests.fold("count connections", GET, &request, none, |state, message| {
            let reply =
                attributes(message.get(FAMILY_HEADER..).unwrap_or_default()).find(|(kind, _)| *kind == REPLY);
            let Some(reply) = reply.map(|(_, content)| tuple(content)) else {
                return;
            };
            let [Some(remote), Some(egress)] = reply.ends else {
                return;
            };
            let Some(&place) = index.get(&egress) else { return };
            let [remote_port, port] = reply.ports;
            let (counts, towards) = state;
            for (range, count) in of[place].1.iter().zip(&mut counts[place].connections) {
                if (range.first..=range.last).contains(&port) {
                    *count += 1;
                }
            }
            // An echo's identifier is no port of the other side: all echoes to one address share their identifiers.
            let icmp =
                [nix::libc::IPPROTO_ICMP, nix::libc::IPPROTO_ICMPV6].contains(&i32::from(reply.protocol));
            let remote_port = if icmp { 0 } else { remote_port };
            *towards
                .entry((place, reply.protocol, remote, remote_port))
                .or_insert(0_u32) += 1;
        })?;
    for ((place, ..), connections) in towards {
        counts[place].busiest = counts[place].busiest.max(connections);
    }
    Ok(counts)
}

fn identifying(attributes: Vec<ConntrackAttribute>) -> Vec<ConntrackAttribute> {
    use netlink_packet_core::Nla as _;
    attributes
        .into_iter()
        .filter(|attribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(_) => true,
            ConntrackAttribute::Other(other) => [CTA_ID, CTA_ZONE].contains(&other.kind()),
            _ => false,
        })
        .collect()
}

/// One attribute as bytes, padded.
fn encoded(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 4).unwrap_or(u16::MAX);
    let mut out = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// Has the kernel print entries from `source` only. Linux before 5.8 prints all of them.
fn from_source(source: Ipv4Addr) -> Vec<u8> {
    let address = encoded(V4[0], &source.octets());
    let flags = encoded(FILTER_ORIGINAL, &FILTER_SOURCE.to_ne_bytes());
    [
        encoded(ORIGINAL | NESTED, &encoded(IP | NESTED, &address)),
        encoded(FILTER | NESTED, &flags),
    ]
    .concat()
}

/// The dumps it takes to see all entries, or at least those from few sources: family and filter. Kernels don't
/// agree on what the filter means for IPv6.
fn dumps(only: Option<&BTreeSet<IpAddr>>) -> Vec<(NetfilterProtoFamily, Vec<u8>)> {
    let few = only.filter(|sources| sources.len() <= FEW);
    let mut out = Vec::new();
    match few {
        Some(sources) => out.extend(sources.iter().filter_map(|source| match source {
            IpAddr::V4(ip) => Some((NetfilterProtoFamily::IPv4, from_source(*ip))),
            IpAddr::V6(_) => None,
        })),
        None => out.push((NetfilterProtoFamily::IPv4, Vec::new())),
    }
    if few.is_none_or(|sources| sources.iter().any(IpAddr::is_ipv6)) {
        out.push((NetfilterProtoFamily::IPv6, Vec::new()));
    }
    out
}

/// Deletes the entries of both families that `flows` condemns.
pub(super) fn cut(requests: &mut Requests<NetfilterMessage>, flows: &Flows) -> Result<usize> {
    if flows.is_empty() {
        return Ok(0);
    }
    let mut count = 0;
    let mut failed = None;
    for (family, filter) in dumps(flows.only.as_ref()) {
        let request = [vec![u8::from(family), 0, 0, 0], filter].concat();
        let condemned = |message: &[u8]| flow(message).is_some_and(|f| flows.cut(&f));
        let entries = requests.dump_where("list connection tracking entries", GET, &request, condemned)?;
        for entry in entries {
            let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = entry.inner else {
                continue;
            };
            tracing::debug!(?attributes, "cutting a flow that left another way");
            let delete = ConntrackMessage::Delete(identifying(attributes));
            match requests.ack("delete a connection tracking entry", 0, message(family, delete)) {
                Ok(()) => count += 1,
                // It ended by itself.
                Err(error) if error.errno() == Some(ENOENT) => {}
                // One that stays must not keep the others.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    failed.map_or(Ok(count), Err)
}

//! Connection tracking entries: listed, judged, deleted.

use std::net::IpAddr;

use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::libc::ENOENT;
use spillway_core::node::flows::{Flow, Flows};

use super::netlink::Requests;
use crate::Result;

/// `IPCTNL_MSG_CT_GET_STATS`: answers with the number of entries, whatever that is.
const GET_STATS: u8 = 5;

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

/// Source and destination of a tuple.
fn ends(tuple: &[Tuple]) -> Option<(IpAddr, IpAddr)> {
    let (mut source, mut destination) = (None, None);
    for part in tuple {
        if let Tuple::Ip(addresses) = part {
            for address in addresses {
                match address {
                    IPTuple::SourceAddress(ip) => source = Some(*ip),
                    IPTuple::DestinationAddress(ip) => destination = Some(*ip),
                    _ => {}
                }
            }
        }
    }
    Some((source?, destination?))
}

fn flow(attributes: &[ConntrackAttribute]) -> Option<Flow> {
    let (mut original, mut reply, mut mark) = (None, None, 0);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = ends(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = ends(tuple),
            ConntrackAttribute::CtaMark(m) => mark = *m,
            _ => {}
        }
    }
    let ((source, _), (destination, translated)) = (original?, reply?);
    Some(Flow {
        source,
        destination,
        translated,
        mark,
    })
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

/// Deletes the entries of both families that `flows` condemns.
pub(super) fn cut(requests: &mut Requests<NetfilterMessage>, flows: &Flows) -> Result<usize> {
    if flows.is_empty() {
        return Ok(0);
    }
    let mut count = 0;
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        let all = message(family, ConntrackMessage::Get(Vec::new()));
        for entry in requests.dump("list connection tracking entries", &all)? {
            let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = entry.inner else {
                continue;
            };
            let Some(flow) = flow(&attributes).filter(|f| flows.cut(f)) else {
                continue;
            };
            tracing::debug!(?flow, "cutting a flow that left another way");
            let delete = ConntrackMessage::Delete(identifying(attributes));
            match requests.ack("delete a connection tracking entry", 0, message(family, delete)) {
                Ok(()) => count += 1,
                // It ended by itself.
                Err(error) if error.errno() == Some(ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(count)
}

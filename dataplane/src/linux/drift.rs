//! Listens for what others change.
//!
//! The kernel tells every change, ours as well. What could concern us is only a hint: the worker then compares the
//! kernel with what was last applied, and that comparison alone decides, so our own writes come to nothing. A
//! listener that was too slow (ENOBUFS) has missed something and counts as a hint for everything.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourFlags;
use netlink_packet_route::route::{RouteAttribute, RouteProtocol};
use netlink_packet_route::rule::RuleAttribute;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::libc::ENOBUFS;
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;

use super::link;
use crate::nft::seal_table;
use crate::{Error, PROTOCOL, Result};

/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, and its message that only tells the generation.
const NFTABLES: u8 = 10;
const NEWGEN: u8 = 15;
/// Bytes of `nlmsghdr` and `nfgenmsg`.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// Interfaces whose messages matter, by index.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Our device, 0 for none. Its neighbours are ours.
    pub(super) tunnel: u32,
    /// Interfaces with proxies of ours, which the kernel drops without a word when the interface goes down.
    pub(super) proxies: BTreeSet<u32>,
}

/// What a message may mean.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Hint {
    /// Something of ours may have changed.
    pub(super) ours: bool,
    /// The facts may have changed.
    pub(super) facts: bool,
}

impl Hint {
    const EVERYTHING: Self = Self {
        ours: true,
        facts: true,
    };

    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            ours: self.ours || other.ours,
            facts: self.facts || other.facts,
        }
    }
}

/// Listens in the calling thread's network namespace, as tasks of its runtime. Hints come out of the channel; one
/// that is full holds one already.
pub(super) fn listen(hints: &mpsc::Sender<Hint>, table: &str, watched: &Arc<Mutex<Watched>>) -> Result<()> {
    let watched = watched.clone();
    let tables = [table.to_owned(), seal_table(table)];
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv6Rule,
    ];
    let groups = groups.iter().fold(0, |all, group| all | 1 << (*group as u32 - 1));
    let open = |what, protocol, groups| open(protocol, groups).map_err(|source| Error::Open { what, source });
    let route = open("route netlink listener", NETLINK_ROUTE, groups)?;
    let netfilter = open("nftables listener", NETLINK_NETFILTER, 1 << (NFTABLES_GROUP - 1))?;
    tokio::spawn(read(route, hints.clone(), move |message| {
        of_route(message, &watched.lock().unwrap_or_else(PoisonError::into_inner))
    }));
    tokio::spawn(read(netfilter, hints.clone(), move |message| {
        of_nftables(message, &tables)
    }));
    Ok(())
}

fn open(protocol: isize, groups: u32) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    // Bounded by net.core.rmem_max; the more fits, the fewer comparisons of everything.
    let _ = socket.socket_mut().set_rx_buf_sz(4_i32 << 20);
    Ok(socket)
}

async fn read(socket: TokioSocket, hints: mpsc::Sender<Hint>, meaning: impl Fn(&[u8]) -> Hint) {
    loop {
        let hint = match socket.recv_from_full().await {
            Ok((datagram, _)) => messages(&datagram).map(&meaning).fold(Hint::default(), Hint::and),
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => Hint::EVERYTHING,
            Err(error) => {
                tracing::error!(%error, "a kernel listener failed; drift is now only found by the periodic check");
                return;
            }
        };
        // The actor has gone.
        if hint != Hint::default() && hints.send(hint).await.is_err() {
            return;
        }
    }
}

pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length: [u8; 4] = datagram.get(..4)?.try_into().ok()?;
        let length = u32::from_ne_bytes(length) as usize;
        if length < HEADER || length > datagram.len() {
            return None;
        }
        let (one, rest) = datagram.split_at(length);
        datagram = rest
            .get(length.next_multiple_of(4) - length..)
            .unwrap_or_default();
        Some(one)
    })
}

pub(super) fn of_route(message: &[u8], watched: &Watched) -> Hint {
    use RouteNetlinkMessage as M;
    let Ok(message) = NetlinkMessage::<M>::deserialize(message) else {
        return Hint::default();
    };
    match message.payload {
        NetlinkPayload::InnerMessage(M::NewLink(link) | M::DelLink(link)) => Hint {
            ours: concerns_us(&link) || watched.proxies.contains(&link.header.index),
            facts: true,
        },
        // Whose device it is can't be told from the message. Addresses change seldom.
        NetlinkPayload::InnerMessage(M::NewAddress(_) | M::DelAddress(_)) | NetlinkPayload::Overrun(_) => {
            Hint::EVERYTHING
        }
        NetlinkPayload::InnerMessage(M::NewNeighbour(n) | M::DelNeighbour(n)) => {
            // Not by state: an entry that is deleted is told of as a failed one. States on other devices change
            // all the time.
            let ours = n.header.ifindex == watched.tunnel || n.header.flags.contains(NeighbourFlags::Proxy);
            Hint { ours, facts: false }
        }
        NetlinkPayload::InnerMessage(M::NewRoute(route) | M::DelRoute(route)) => Hint {
            ours: route.header.protocol == RouteProtocol::Other(PROTOCOL),
            facts: route.header.destination_prefix_length == 0
                && !route
                    .attributes
                    .iter()
                    .any(|a| matches!(a, RouteAttribute::Table(t) if *t != 254)),
        },
        NetlinkPayload::InnerMessage(M::NewRule(rule) | M::DelRule(rule)) => {
            let ours = rule
                .attributes
                .iter()
                .any(|a| matches!(a, RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL))));
            Hint { ours, facts: false }
        }
        _ => Hint::default(),
    }
}

fn concerns_us(message: &LinkMessage) -> bool {
    link::is_vxlan(message)
        || message
            .attributes
            .iter()
            .any(|a| matches!(a, LinkAttribute::IfAlias(alias) if alias == link::ALIAS || alias == link::WIREGUARD_ALIAS))
}

/// Every nftables message but the generation's begins with the table's name as attribute 1.
pub(super) fn of_nftables(message: &[u8], tables: &[String]) -> Hint {
    let kind = u16::from_ne_bytes([message[4], message[5]]).to_le_bytes();
    let ours = || {
        let attribute = message.get(HEADER + FAMILY_HEADER..)?;
        let length = usize::from(u16::from_ne_bytes(attribute.get(..2)?.try_into().ok()?));
        let number = u16::from_ne_bytes(attribute.get(2..4)?.try_into().ok()?) & 0x3fff;
        let name = attribute.get(4..length)?;
        let name = name.strip_suffix(&[0]).unwrap_or(name);
        Some(number == 1 && tables.iter().any(|table| name == table.as_bytes()))
    };
    let ours = kind[1] == NFTABLES && kind[0] != NEWGEN && ours().unwrap_or(false);
    Hint { ours, facts: false }
}

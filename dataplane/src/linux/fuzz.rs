//! What reads the kernel's messages, for `fuzz/`. Not part of the interface.

use netlink_packet_core::NetlinkMessage;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;

use super::drift::{Watched, messages, of_nftables, of_route};
use super::{link, neighbours, routes, rules};

/// A datagram of the kernel's: what is told of changes, and dumps.
pub fn netlink(datagram: &[u8]) {
    let watched = Watched::default();
    let tables = ["spillway".to_owned()];
    for message in messages(datagram) {
        let _ = of_route(message, &watched);
        let _ = of_nftables(message, &tables);
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
            continue;
        };
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(m)) => drop(link::read(m)),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(m)) => drop(routes::read(m)),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(m)) => drop(rules::read(m)),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(m)) => {
                let _ = neighbours::destination(&m);
            }
            _ => {}
        }
    }
}

//! The way back from a stateless gateway: whose is a reply?

use std::collections::BTreeMap;

use super::Parts;
use super::words::{PORTS, WORDS, Words};
use crate::node::carried::PLACEHOLDER;
use crate::node::nft::{Atom, Chain, Hook, Ruleset, Set};
use crate::node::peers::Mac;

/// The mark that stands for a peer between `leave` and the tunnel device's egress hook: the low half of its MAC, which
/// no other node of the federation has.
pub(super) const fn peer_mark([_, _, a, b, c, d]: Mac) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

impl Parts<'_> {
    /// What is addressed to an egress IP and isn't tracked here is the node's whose port it is addressed to, or in an
    /// ICMP error, whose port the embedded packet came from. Nobody's is dropped.
    pub(super) fn replies() -> Vec<String> {
        let mut rules = Vec::new();
        for w in &WORDS {
            let Words {
                suffix,
                header,
                icmp,
                inner,
                ..
            } = w;
            let mark = |condition: &str, field: &str, map: &str| {
                format!("{condition} meta mark set {header} daddr . {field} map @{map}{suffix} return")
            };
            rules.extend([
                mark(PORTS, "th dport", "reply"),
                mark(
                    &format!("{icmp} type echo-reply"),
                    &format!("{icmp} id"),
                    "reply_id",
                ),
                mark(&w.error_with_ports(), inner.source_port, "reply_err"),
                mark(&w.error_of_echo(), inner.echo_id, "reply_err"),
            ]);
        }
        rules.push("counter drop".into());
        rules
    }

    /// The table of the tunnel device's egress hook. Absent where nothing is forwarded.
    pub(in crate::node) fn steering(&self) -> Option<Ruleset> {
        if self.forwarded.eips.is_empty() {
            return None;
        }
        let placeholder = Atom::Mac(PLACEHOLDER);
        let peers = self.peers.others();
        let peers = peers.map(|p| (vec![Atom::Number(peer_mark(p.mac))], Some(Atom::Mac(p.mac))));
        let peers = Set {
            elements: peers.collect(),
            ..Set::map("mark", "ether_addr", false)
        };
        let steer = Chain {
            hook: Some(Hook {
                kind: "filter".into(),
                hook: "egress".into(),
                priority: 0,
                device: Some(self.settings.device.clone()),
            }),
            rules: vec![
                // The tunnel header would carry the mark as an identity.
                format!(
                    "ether daddr {placeholder} ether daddr set meta mark map @peers meta mark set 0x00000000 return"
                ),
                format!("ether daddr {placeholder} counter drop"),
            ],
        };
        Some(Ruleset {
            family: "netdev".into(),
            table: self.settings.table.clone(),
            sets: BTreeMap::from([("peers".to_owned(), peers)]),
            chains: BTreeMap::from([("steer".to_owned(), steer)]),
        })
    }
}

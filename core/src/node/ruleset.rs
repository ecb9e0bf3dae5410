//! Our nftables table. Chains in the order in which a packet meets them:
//!
//! ```text
//! prerouting  raw_in -300      the tunnel's own packets aren't tracked
//!             arrive -160      from the tunnel: grant checked; identity from packet mark to connection mark
//!             classify -90     after everyone's DNAT: selected pod and destination → egress_ID or blocked
//! input       tunnel_input     tunnel packets from nobody's address are dropped before decapsulation
//! forward     forward -150     nothing without identity enters the tunnel; TCP MSS
//! output      raw_out -300     as raw_in; the outer packet loses the mark it inherited
//! postrouting translate 90     before everyone's SNAT: to this node's overlay address, or to the egress IP
//!             leave 400        after everyone: guards; the identity into the packet mark, for the tunnel header
//! ```
//!
//! Guards stand behind the NAT they check: a packet that carries an identity leaves translated as that
//! identity demands, or not at all. No rule accepts, so that the CNI's own chains have their say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::flows::{IDENTITY_MASK, TAG, TAG_MASK, connection_mark};
use super::held::Held;
use super::inputs::{Addresses, Settings};
use super::interval::{Family, Interval};
use super::nft::{Chain, Hook, Ruleset};
use super::select::Selection;

/// What the table is made of.
pub(super) struct Parts<'a> {
    pub(super) settings: &'a Settings,
    /// UDP port of the tunnel.
    pub(super) port: u16,
    /// This node's overlay addresses.
    pub(super) overlay: Addresses,
    /// The federation's overlay ranges.
    pub(super) overlay_range: &'a [IpNet],
    /// Addresses that tunnel packets come from.
    pub(super) remotes: BTreeSet<IpAddr>,
    /// Destinations that no policy takes.
    pub(super) local: &'a [Interval],
    pub(super) selection: &'a Selection,
    /// For each identity in use whose gateway is elsewhere, its routing mark.
    pub(super) routed: &'a BTreeMap<u16, u32>,
    /// Identities of the plan that aren't held here.
    pub(super) away: &'a BTreeSet<u16>,
    pub(super) held: &'a Held,
}

/// The words in which the families differ.
pub(super) struct Words {
    pub(super) family: Family,
    /// Suffix of set names.
    pub(super) suffix: &'static str,
    /// Header in an expression.
    pub(super) header: &'static str,
    /// Type of an address.
    pub(super) address: &'static str,
    /// Value of `meta nfproto`.
    pub(super) nfproto: &'static str,
}

pub(super) const WORDS: [Words; 2] = [
    Words {
        family: Family::V4,
        suffix: "4",
        header: "ip",
        address: "ipv4_addr",
        nfproto: "ipv4",
    },
    Words {
        family: Family::V6,
        suffix: "6",
        header: "ip6",
        address: "ipv6_addr",
        nfproto: "ipv6",
    },
];

/// What is ours of `ct mark`: tag and identity.
fn identity() -> String {
    format!("ct mark and {:#010x}", TAG_MASK | IDENTITY_MASK)
}

/// Whether a connection is ours, where `is` is `==` or `!=`.
fn tagged(is: &str) -> String {
    format!("ct mark and {TAG_MASK:#010x} {is} {TAG:#010x}")
}

impl Parts<'_> {
    pub(super) fn ruleset(&self) -> Ruleset {
        let mut chains = BTreeMap::new();
        let mut base = |name: &str, kind: &str, hook: &str, priority, rules| {
            let hook = Some(Hook {
                kind: kind.into(),
                hook: hook.into(),
                priority,
                device: None,
            });
            chains.insert(name.to_owned(), Chain { hook, rules });
        };
        base("raw_in", "filter", "prerouting", -300, self.raw_in());
        base("arrive", "filter", "prerouting", -160, self.arrive());
        base("classify", "filter", "prerouting", -90, self.classify());
        base("tunnel_input", "filter", "input", -10, self.tunnel_input());
        base("forward", "filter", "forward", -150, self.forward());
        base("raw_out", "filter", "output", -300, self.raw_out());
        base("translate", "nat", "postrouting", 90, self.translate());
        base("leave", "filter", "postrouting", 400, self.leave());
        let mut plain = |name: String, rules| chains.insert(name, Chain { hook: None, rules });
        plain("into_tunnel".into(), self.tunnel_exit());
        plain("blocked".into(), vec!["counter drop".into()]);
        for name in self.selection.classes.keys() {
            plain(format!("class_{name}"), Self::class(name));
        }
        for id in self.selection.identities() {
            plain(format!("egress_{id}"), self.egress(id));
        }
        for (id, egress) in &self.held.identities {
            plain(format!("held_{id}"), held(egress));
        }
        Ruleset {
            family: "inet".into(),
            table: self.settings.table.clone(),
            sets: self.sets(),
            chains,
        }
    }

    fn raw_in(&self) -> Vec<String> {
        // Only from peers and only to this node: a pod's own packet to that port must stay tracked, or
        // nothing would translate it.
        let rule = |w: &Words| {
            format!(
                "{h} saddr @underlay{s} udp dport {port} fib daddr type local notrack",
                h = w.header,
                s = w.suffix,
                port = self.port
            )
        };
        WORDS.iter().map(rule).collect()
    }

    fn raw_out(&self) -> Vec<String> {
        let rule = |w: &Words| {
            format!(
                "{h} daddr @underlay{s} udp dport {port} meta mark set 0x00000000 notrack",
                h = w.header,
                s = w.suffix,
                port = self.port
            )
        };
        WORDS.iter().map(rule).collect()
    }

    fn tunnel_input(&self) -> Vec<String> {
        let rule = |w: &Words| {
            format!(
                "{h} saddr != @underlay{s} udp dport {port} counter drop",
                h = w.header,
                s = w.suffix,
                port = self.port
            )
        };
        WORDS.iter().map(rule).collect()
    }

    fn arrive(&self) -> Vec<String> {
        let mut rules = vec![
            format!("iifname != \"{}\" return", self.settings.device),
            "ct state invalid,untracked counter drop".into(),
            "ct direction reply meta mark set 0x00000000 return".into(),
        ];
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "{header} saddr . meta mark != @granted{suffix} counter drop"
            ));
        }
        // A grant is for the way out, not for this cluster and not for this node.
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @local{suffix} counter drop"));
        }
        rules.push("fib daddr type { local, broadcast, anycast, multicast } counter drop".into());
        rules.push(format!("ct state new ct mark set meta mark or {TAG:#010x}"));
        rules.push("meta mark set 0x00000000".into());
        rules
    }

    fn classify(&self) -> Vec<String> {
        // A router confirms its neighbour by a solicitation sent to the address itself.
        let mut rules = vec![
            "ip6 daddr @eips6 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } return".to_owned(),
        ];
        // What connection tracking hasn't translated back belongs to no connection, and would go round
        // between the egress IP's route and the tunnel.
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @eips{suffix} counter drop"));
        }
        rules.push(format!("iifname \"{}\" return", self.settings.device));
        rules.push("ct direction reply return".into());
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} saddr vmap @pods{suffix}"));
        }
        rules
    }

    fn class(name: &str) -> Vec<String> {
        let mut rules = Vec::new();
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @local{suffix} return"));
        }
        rules.push("fib daddr type { local, broadcast, anycast, multicast } return".into());
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr vmap @to{suffix}_{name}"));
        }
        rules
    }

    fn egress(&self, id: u16) -> Vec<String> {
        let mut rules = vec![
            // NAT never touches these, so they would leave with the pod's own address.
            "ct state invalid,untracked counter drop".to_owned(),
            format!(
                "ct state new ct mark set ct mark and {:#010x} or {:#010x}",
                !(TAG_MASK | IDENTITY_MASK),
                connection_mark(id)
            ),
            // A flow that began under another identity, or under none, was translated then and for good.
            format!("{} != {:#010x} counter drop", identity(), connection_mark(id)),
        ];
        if let Some(mark) = self.routed.get(&id) {
            rules.push(format!(
                "meta mark set meta mark and {:#010x} or {mark:#010x}",
                !self.settings.mark_mask
            ));
        }
        rules
    }

    fn forward(&self) -> Vec<String> {
        let device = &self.settings.device;
        vec![
            format!("oifname \"{device}\" {} counter drop", tagged("!=")),
            format!("oifname \"{device}\" tcp flags syn / syn,rst tcp option maxseg size set rt mtu"),
        ]
    }

    fn translate(&self) -> Vec<String> {
        let device = &self.settings.device;
        let mut rules = Vec::new();
        for Words {
            family,
            header,
            nfproto,
            suffix,
            ..
        } in &WORDS
        {
            if let Some(own) = self.overlay.get(*family) {
                rules.push(format!(
                    "oifname \"{device}\" meta nfproto {nfproto} {} snat {header} to {own}",
                    tagged("==")
                ));
            }
            rules.push(format!(
                "oifname != \"{device}\" meta nfproto {nfproto} snat {header} to {} map @eip{suffix}",
                identity()
            ));
        }
        rules
    }

    fn leave(&self) -> Vec<String> {
        let device = &self.settings.device;
        let mut rules = vec![format!("oifname \"{device}\" goto into_tunnel")];
        for range in self.overlay_range {
            let header = match range {
                IpNet::V4(_) => "ip",
                IpNet::V6(_) => "ip6",
            };
            rules.push(format!("oifname != \"lo\" {header} saddr {range} counter drop"));
        }
        let identity = identity();
        let mask = self.settings.mark_mask;
        rules.push(format!(
            "{} meta mark and {mask:#010x} @routed counter drop",
            tagged("==")
        ));
        rules.push(format!("ct direction original {identity} @away counter drop"));
        rules.push(format!("ct direction original {identity} vmap @held"));
        rules
    }

    fn tunnel_exit(&self) -> Vec<String> {
        let mut rules = vec!["ct state invalid,untracked counter drop".to_owned()];
        for Words {
            family,
            header,
            nfproto,
            suffix,
            ..
        } in &WORDS
        {
            rules.push(match self.overlay.get(*family) {
                Some(own) => format!("ct direction original {header} saddr != {own} counter drop"),
                None => format!("meta nfproto {nfproto} counter drop"),
            });
            rules.push(format!("{header} daddr @eips{suffix} counter drop"));
        }
        // The node's own packets belong to no identity.
        rules.push(format!("{} meta mark set 0x00000000 return", tagged("!=")));
        rules.push(format!("meta mark set ct mark and {IDENTITY_MASK:#010x}"));
        rules
    }
}

/// What carries an identity that is held here leaves with its egress IP.
fn held(egress: &Addresses) -> Vec<String> {
    WORDS
        .iter()
        .map(|w| match egress.get(w.family) {
            Some(eip) => format!("{} saddr != {eip} counter drop", w.header),
            None => format!("meta nfproto {} counter drop", w.nfproto),
        })
        .collect()
}

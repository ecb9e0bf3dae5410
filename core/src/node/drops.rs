//! Why packets are dropped: every rule that drops counts, and each of them stands for one reason, so that the kernel's
//! own counters tell an operator what was prevented.

use super::nft::Ruleset;
use super::state::DesiredState;

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum DropReason {
    /// `onUnavailable: Block`: none of the policy's gateways can be reached, or the node has no ports of the egress IP.
    Blocked,
    /// The policy's pods have sent what they may (`bandwidth`).
    Bandwidth,
    /// It would have left with an address or port that isn't what its policy says. A guard caught it.
    Leak,
    /// It would have entered the tunnel without belonging there. The node's own neighbour discovery does so now and then.
    TunnelExit,
    /// It was caught by the table that stands in while somebody had deleted the other one.
    Sealed,
    /// It has a source port of the egress IP that isn't this node's.
    WrongPort,
    /// Its connection began before the policy, or under another one.
    OtherIdentity,
    /// A protocol that can't be translated to a port, to a gateway that forwards only.
    UnsupportedProtocol,
    /// Connection tracking can't make anything of it.
    Invalid,
    /// The sender's address in the tunnel isn't that of the peer it came from.
    Forged,
    /// The plan doesn't grant (peer, identity, egress IP, port) to the sender.
    Ungranted,
    /// It came out of the tunnel, or from this cluster, for where egress must not lead: this cluster, this node, an egress
    /// IP.
    Inward,
    /// It is addressed to an egress IP, or came as a reply, and belongs to no connection.
    NoConnection,
    /// A reply to a port of an egress IP that is nobody's.
    NobodysPort,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Blocked,
        Self::Bandwidth,
        Self::Leak,
        Self::TunnelExit,
        Self::Sealed,
        Self::WrongPort,
        Self::OtherIdentity,
        Self::UnsupportedProtocol,
        Self::Invalid,
        Self::Forged,
        Self::Ungranted,
        Self::Inward,
        Self::NoConnection,
        Self::NobodysPort,
    ];

    /// One word for it, as metrics have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Bandwidth => "bandwidth",
            Self::Leak => "leak",
            Self::TunnelExit => "tunnel_exit",
            Self::Sealed => "sealed",
            Self::WrongPort => "wrong_port",
            Self::OtherIdentity => "other_identity",
            Self::UnsupportedProtocol => "unsupported_protocol",
            Self::Invalid => "invalid",
            Self::Forged => "forged",
            Self::Ungranted => "ungranted",
            Self::Inward => "inward",
            Self::NoConnection => "no_connection",
            Self::NobodysPort => "nobodys_port",
        }
    }
}

/// A rule that drops and counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dropping<'a> {
    /// Its table.
    pub table: &'a Ruleset,
    /// Its chain.
    pub chain: &'a str,
    /// Its text.
    pub rule: &'a str,
    /// Why.
    pub reason: DropReason,
}

/// Every rule of `state` that drops and counts.
pub fn dropping(state: &DesiredState) -> impl Iterator<Item = Dropping<'_>> {
    let sealing = state.seal.iter().map(|table| (table, true));
    let others = state.ruleset.iter().chain(&state.steering);
    let tables = sealing.chain(others.map(|table| (table, false)));
    tables.flat_map(|(table, seals)| {
        let chains = table.chains.iter();
        chains.flat_map(move |(chain, content)| {
            let drops = content.rules.iter().filter(|rule| rule.ends_with("counter drop"));
            drops.map(move |rule| Dropping {
                table,
                chain,
                rule,
                reason: if seals {
                    DropReason::Sealed
                } else {
                    reason(chain, rule)
                },
            })
        })
    })
}

/// By chain; where a chain drops for several reasons, by what the rule looks at.
fn reason(chain: &str, rule: &str) -> DropReason {
    use DropReason::{
        Bandwidth, Blocked, Forged, Invalid, Inward, Leak, NoConnection, NobodysPort, OtherIdentity,
        TunnelExit, Ungranted, UnsupportedProtocol, WrongPort,
    };
    let looks_at = |what: &str| rule.contains(what);
    match chain {
        "blocked" => Blocked,
        "tunnel_input" => Forged,
        "arrive" if looks_at("@peers") => Forged,
        "arrive" if looks_at("@granted") => Ungranted,
        "arrive" if looks_at("ct state") => NoConnection,
        "transit" if rule == "counter drop" => Ungranted,
        "to_eip" if rule == "counter drop" => NoConnection,
        "arrive" | "transit" | "to_eip" => Inward,
        "replies" | "steer" => NobodysPort,
        "own_ports" => WrongPort,
        _ if chain.starts_with("limit_") => Bandwidth,
        _ if chain.starts_with("egress_") => match rule {
            "counter drop" => OtherIdentity,
            _ if looks_at("ct state") => Invalid,
            _ => UnsupportedProtocol,
        },
        "forward" | "into_tunnel" | "untracked_exit" => TunnelExit,
        // `leave`, `leaves_ID`: what stands behind the translation.
        _ => Leak,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use spillway_crds::hub::Bandwidth;

    use super::*;
    use crate::node::{compile, fixtures};

    #[test]
    fn every_drop_counts_and_every_reason_has_a_rule() {
        let mut seen = BTreeSet::new();
        let mut metered = fixtures::source();
        metered.plan.as_mut().expect("a plan").policies[0].bandwidth = Some(Bandwidth {
            rate: "50M".into(),
            burst: None,
        });
        for inputs in [
            metered,
            fixtures::source(),
            fixtures::gateway(),
            fixtures::both(),
            fixtures::stateless_source(),
            fixtures::stateless_gateway(),
            fixtures::stateless_both(),
        ] {
            let state = compile(&inputs);
            let tables = [&state.seal, &state.ruleset, &state.steering];
            let chains = tables.into_iter().flatten().flat_map(|t| t.chains.values());
            let rules = chains.flat_map(|c| &c.rules);
            let uncounted: Vec<_> = rules
                .filter(|r| r.ends_with("drop") && !r.ends_with("counter drop"))
                .collect();
            assert!(uncounted.is_empty(), "{uncounted:?}");
            seen.extend(dropping(&state).map(|d| d.reason));
        }
        assert_eq!(seen, BTreeSet::from(DropReason::ALL));
    }

    #[test]
    fn a_chain_that_drops_for_several_reasons_tells_them_apart() {
        use DropReason::{
            Forged, Invalid, Inward, Leak, NoConnection, OtherIdentity, TunnelExit, Ungranted,
            UnsupportedProtocol,
        };

        let state = compile(&fixtures::stateless_both());
        let reasons = |wanted: &str| -> Vec<_> {
            let all = dropping(&state).filter(|d| d.chain == wanted);
            all.map(|d| d.reason).collect()
        };
        assert_eq!(
            reasons("arrive"),
            [
                NoConnection,
                Forged,
                Forged,
                Ungranted,
                Ungranted,
                Inward,
                Inward,
                Inward
            ]
        );
        assert_eq!(
            reasons("transit"),
            [Inward, Inward, Inward, Inward, Inward, Ungranted]
        );
        assert_eq!(
            reasons("egress_7"),
            [
                Invalid,
                UnsupportedProtocol,
                UnsupportedProtocol,
                UnsupportedProtocol,
                OtherIdentity
            ]
        );
        assert!(reasons("untracked_exit").iter().all(|r| *r == TunnelExit));
        assert!(reasons("leave").iter().all(|r| *r == Leak));
        assert!(reasons("leaves_7").iter().all(|r| *r == Leak));
    }
}

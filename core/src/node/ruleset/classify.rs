//! Which packets are whose: selected pods' packets get their identity.

use super::words::{WORDS, Words};
use super::{IDENTITY_MASK, Parts, TAG_MASK, identity};
use crate::bandwidth::Limit;
use crate::node::flows::{Verdict, connection_mark};

/// Destinations that are no single host elsewhere.
pub(super) const NOT_ELSEWHERE: &str = "fib daddr type { local, broadcast, anycast, multicast }";

impl Parts<'_> {
    pub(super) fn classify(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @eips{suffix} goto to_eip"));
        }
        rules.push(format!("iifname \"{}\" return", self.settings.device));
        rules.push("ct direction reply return".into());
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} saddr vmap @pods{suffix}"));
        }
        rules.extend(self.to_unknown());
        rules
    }

    /// What is addressed to an egress IP that this node carries and that connection tracking hasn't translated back.
    pub(super) fn to_eip() -> Vec<String> {
        // A router confirms its neighbour by a solicitation sent to the address itself.
        let mut rules = vec!["icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } return".to_owned()];
        // No grant leads to this cluster, so nothing of it replies.
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} saddr @local{suffix} counter drop"));
        }
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "ct state untracked {header} daddr @forwarded{suffix} return"
            ));
        }
        // It belongs to no connection, and would go round between the egress IP's route and the tunnel.
        rules.push("counter drop".into());
        rules
    }

    pub(super) fn class(name: &str) -> Vec<String> {
        let mut rules = Vec::new();
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @local{suffix} return"));
        }
        rules.push(format!("{NOT_ELSEWHERE} return"));
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr vmap @to{suffix}_{name}"));
        }
        rules
    }

    /// The chain of a verdict under which flows of several identities live, or that only so much comes under, if it needs one.
    pub(super) fn prefer(verdict: Verdict) -> Option<(String, Vec<String>)> {
        let (meter, id, others) = match verdict {
            Verdict::Prefer(id, others) => (None, id, others),
            Verdict::Metered(meter, id, others) => (Some(meter), id, others),
            _ => return None,
        };
        let began = |other| {
            let mark = connection_mark(other);
            format!("{} == {mark:#010x} goto egress_{other}", identity())
        };
        let metered = meter.map(|m| format!("jump limit_{m}"));
        let rules = others.iter().map(began).chain([format!("goto egress_{id}")]);
        Some((goto(verdict), metered.into_iter().chain(rules).collect()))
    }

    /// Drops what is more than a policy's pods may send. A rule has one bucket, so all that counts against one limit comes by
    /// here. The bucket holds what the rate gives for a second, and the burst (`nft_limit_init()` in
    /// net/netfilter/nft_limit.c).
    pub(super) fn limit(limit: Limit) -> Vec<String> {
        let Limit { rate, burst } = limit;
        let burst = if burst == 0 {
            String::new()
        } else {
            format!(" burst {burst} bytes")
        };
        vec![format!("limit rate over {rate} bytes/second{burst} counter drop")]
    }

    pub(super) fn egress(&self, id: u16) -> Vec<String> {
        let mine = format!("{} == {:#010x}", identity(), connection_mark(id));
        let routed = self.routed.get(&id).map(|mark| {
            format!(
                "meta mark set meta mark and {:#010x} or {mark:#010x} ",
                !self.settings.mark_mask
            )
        });
        let routed = routed.unwrap_or_default();
        let mut rules = vec![
            // All that was checked when the connection began.
            format!("{mine} {routed}return"),
            // NAT never touches these, so they would leave with the pod's own address.
            "ct state invalid,untracked counter drop".to_owned(),
        ];
        if self.own.identities.contains_key(&id) {
            rules.push("meta l4proto != { tcp, udp, sctp, icmp, ipv6-icmp } counter drop".into());
            for Words { icmp, .. } in &WORDS {
                rules.push(format!("{icmp} type != echo-request counter drop"));
            }
        }
        rules.extend([
            format!(
                "ct state new ct mark set ct mark and {:#010x} or {:#010x}",
                !(TAG_MASK | IDENTITY_MASK),
                connection_mark(id)
            ),
            format!("{mine} {routed}return"),
            // A flow that began under another identity, or under none, was translated then and for good.
            "counter drop".to_owned(),
        ]);
        rules
    }
}

/// Name of the chain that a verdict sends packets to.
pub(super) fn goto(verdict: Verdict) -> String {
    match verdict {
        Verdict::Identity(id) => format!("egress_{id}"),
        Verdict::Prefer(..) => verdict
            .identities()
            .fold("prefer".into(), |name, id| format!("{name}_{id}")),
        Verdict::Metered(meter, ..) => verdict
            .identities()
            .fold(format!("meter_{meter}"), |name, id| format!("{name}_{id}")),
        Verdict::Block | Verdict::Wait(_) => "blocked".into(),
    }
}

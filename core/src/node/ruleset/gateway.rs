//! What comes out of the tunnel, and what a stateless gateway's node only forwards.

use super::Parts;
use super::classify::NOT_ELSEWHERE;
use super::words::{PORTS, WORDS, Words};
use crate::health::message::PORT as PROBE_PORT;
use crate::node::flows::TAG;

impl Parts<'_> {
    pub(super) fn raw_in(&self) -> Vec<String> {
        let mut rules = vec![format!("iifname \"{}\" goto raw_tunnel", self.settings.device)];
        rules.extend(self.raw_in_encrypted());
        // Only from peers and only to this node: a pod's own packet to that port must stay tracked, or
        // nothing would translate it.
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "udp dport {port} {header} saddr @underlay{suffix} fib daddr type local notrack",
                port = self.port
            ));
        }
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @forwarded{suffix} goto raw_reply"));
        }
        rules
    }

    /// What came out of the tunnel.
    pub(super) fn raw_tunnel(&self) -> Vec<String> {
        let forwarded = |w: &Words| format!("{} saddr @forwarded{} notrack return", w.header, w.suffix);
        let probe = |w: &Words| Some(format!("{} notrack", self.probe(w)?));
        let rules = WORDS.iter().map(forwarded);
        rules.chain(WORDS.iter().filter_map(probe)).collect()
    }

    /// Matches a probe or its answer from a peer.
    fn probe(&self, w: &Words) -> Option<String> {
        let own = self.overlay.get(w.family)?;
        let Words { suffix, header, .. } = w;
        Some(format!(
            "udp sport {PROBE_PORT} udp dport {PROBE_PORT} ether saddr . {header} saddr @peers{suffix} {header} daddr {own}"
        ))
    }

    /// Replies to this node's own ports are tracked, since it translates them back; all others are only forwarded.
    pub(super) fn raw_reply() -> Vec<String> {
        let mut rules = Vec::new();
        for w in &WORDS {
            let Words {
                suffix,
                header,
                icmp,
                inner,
                ..
            } = w;
            rules.extend([
                format!("{PORTS} {header} daddr . th dport @own{suffix} return"),
                format!("{icmp} type echo-reply {header} daddr . {icmp} id @own_id{suffix} return"),
                format!(
                    "{} {header} daddr . {} @own_err{suffix} return",
                    w.error_with_ports(),
                    inner.source_port
                ),
                format!(
                    "{} {header} daddr . {} @own_err{suffix} return",
                    w.error_of_echo(),
                    inner.echo_id
                ),
            ]);
        }
        rules.push("notrack".into());
        rules
    }

    pub(super) fn raw_out(&self) -> Vec<String> {
        let mut rules = self.raw_out_encrypted();
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "{header} daddr @underlay{suffix} udp dport {port} meta mark set 0x00000000 notrack",
                port = self.port
            ));
        }
        for Words {
            family,
            suffix,
            header,
            ..
        } in &WORDS
        {
            if let Some(own) = self.overlay.get(*family) {
                rules.push(format!(
                    "oifname \"{}\" {header} saddr {own} {header} daddr @overlay{suffix} udp sport {PROBE_PORT} udp dport \
                     {PROBE_PORT} notrack",
                    self.settings.device
                ));
            }
        }
        // This node's own errors about what it only forwards.
        for Words {
            suffix,
            header,
            errors,
            ..
        } in &WORDS
        {
            rules.push(format!(
                "{errors} {header} daddr @forwarded{suffix} goto raw_reply"
            ));
        }
        rules
    }

    pub(super) fn arrive(&self) -> Vec<String> {
        let mut rules = vec![format!("iifname != \"{}\" return", self.settings.device)];
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "ct state untracked {header} saddr @forwarded{suffix} goto transit"
            ));
        }
        for w in &WORDS {
            rules.extend(
                self.probe(w)
                    .map(|probe| format!("ct state untracked {probe} meta mark set 0x00000000 return")),
            );
        }
        rules.push("ct state invalid,untracked counter drop".into());
        rules.push("ct direction reply meta mark set 0x00000000 return".into());
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "ether saddr . {header} saddr != @peers{suffix} counter drop"
            ));
        }
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "{header} saddr . meta mark != @granted{suffix} counter drop"
            ));
        }
        // A grant is for the way out, not for this cluster and not for this node.
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @local{suffix} counter drop"));
        }
        rules.push(format!("{NOT_ELSEWHERE} counter drop"));
        rules.push(format!("ct state new ct mark set meta mark or {TAG:#010x}"));
        rules.push("meta mark set 0x00000000".into());
        rules
    }

    /// Translated packets of other nodes' pods: what the plan grants to exactly this peer, identity, egress IP and
    /// port goes on. In an ICMP error that a pod sends it is the embedded packet's destination that must be the pod's own.
    pub(super) fn transit() -> Vec<String> {
        let mut rules = Vec::new();
        for Words { suffix, header, .. } in &WORDS {
            for set in ["local", "eips"] {
                rules.push(format!("{header} daddr @{set}{suffix} counter drop"));
            }
        }
        rules.push(format!("{NOT_ELSEWHERE} counter drop"));
        for w in &WORDS {
            let Words {
                suffix,
                header,
                icmp,
                inner,
                ..
            } = w;
            let key = format!("ether saddr . meta mark . {header} saddr");
            let itself = w.pieces().fold(String::new(), |all, (set, piece)| {
                all + header + " saddr . " + piece + " @itself" + &set + " "
            });
            rules.extend([
                format!("{PORTS} {key} . th sport @out{suffix} goto pass"),
                format!("{icmp} type echo-request {key} . {icmp} id @out_id{suffix} goto pass"),
                format!(
                    "{} {itself}{key} . {} @out_err{suffix} goto pass",
                    w.error_with_ports(),
                    inner.destination_port
                ),
            ]);
        }
        rules.push("counter drop".into());
        rules
    }
}

//! What may enter and leave this node: checks behind everything that could have gone wrong before.

use ipnet::IpNet;

use super::words::{WORDS, Words};
use super::{IDENTITY_MASK, Parts, identity, tagged};
use crate::health::message::PORT as PROBE_PORT;
use crate::node::interval::Family;

/// Bytes of the IP and TCP headers without options (RFC 6691).
const fn headers(family: Family) -> u32 {
    match family {
        Family::V4 => 40,
        Family::V6 => 60,
    }
}

impl Parts<'_> {
    /// The inner source MAC names the peer to all later checks, so that it must be the one whose address the outer
    /// packet comes from: 8 bytes of UDP and 8 of VXLAN header before the inner frame, whose source is at 6.
    pub(super) fn tunnel_input(&self) -> Vec<String> {
        let port = self.port;
        let mut rules = Vec::new();
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "udp dport {port} {header} saddr . @th,192,32 != @bound{suffix} counter drop"
            ));
        }
        rules.push(format!("udp dport {port} @th,176,16 != 0x253 counter drop"));
        rules
    }

    pub(super) fn forward(&self) -> Vec<String> {
        let device = &self.settings.device;
        let mut rules = vec![format!(
            "oifname \"{device}\" ct state != untracked {} counter drop",
            tagged("!=")
        )];
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "oifname \"{device}\" ct state untracked {header} daddr != @forwarded{suffix} counter drop"
            ));
        }
        let syn = "tcp flags syn / syn,rst tcp option maxseg size set";
        rules.push(format!("oifname \"{device}\" {syn} rt mtu"));
        for Words { family, nfproto, .. } in &WORDS {
            rules.extend(self.mtu.map(|mtu| {
                let most = mtu.saturating_sub(headers(*family));
                format!("iifname \"{device}\" meta nfproto {nfproto} {syn} {most}")
            }));
        }
        rules
    }

    pub(super) fn leave(&self) -> Vec<String> {
        let device = &self.settings.device;
        let mut rules = vec![format!("oifname \"{device}\" goto into_tunnel")];
        rules.extend(self.leave_encrypted());
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "iifname \"{device}\" ct state untracked {header} saddr @forwarded{suffix} return"
            ));
        }
        // Gateways' own errors about what they forward.
        for Words { errors, .. } in &WORDS {
            rules.push(format!(
                "iifname \"{device}\" ct state related ct direction reply {errors} return"
            ));
        }
        for range in self.overlay_range {
            let header = match range {
                IpNet::V4(_) => "ip",
                IpNet::V6(_) => "ip6",
            };
            rules.push(format!("oifname != \"lo\" {header} saddr {range} counter drop"));
        }
        // Whoever doesn't come out of the tunnel needs an identity to leave with an egress IP.
        for Words { suffix, header, .. } in &WORDS {
            for not in ["ct state untracked".to_owned(), tagged("!=")] {
                rules.push(format!(
                    "iifname != \"{device}\" {header} saddr @forwarded{suffix} {not} counter drop"
                ));
            }
        }
        let identity = identity();
        let mask = self.settings.mark_mask;
        rules.push(format!(
            "{} meta mark and {mask:#010x} @routed counter drop",
            tagged("==")
        ));
        rules.push(format!("ct direction original {identity} @away counter drop"));
        rules.push(format!("ct direction original {identity} vmap @leaves"));
        rules
    }

    pub(super) fn tunnel_exit(&self) -> Vec<String> {
        let mut rules = vec![
            "ct state untracked goto untracked_exit".to_owned(),
            "ct state invalid counter drop".to_owned(),
        ];
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @eips{suffix} counter drop"));
        }
        let identity = identity();
        let mark = format!("meta mark set ct mark and {IDENTITY_MASK:#010x}");
        rules.push(format!("ct direction original {identity} vmap @into"));
        for Words {
            family,
            header,
            nfproto,
            ..
        } in &WORDS
        {
            rules.push(match self.overlay.get(*family) {
                Some(own) => format!("ct direction original {header} saddr != {own} counter drop"),
                None => format!("meta nfproto {nfproto} counter drop"),
            });
        }
        // The node's own packets belong to no identity.
        rules.push(format!("{} meta mark set 0x00000000 return", tagged("!=")));
        rules.push(mark);
        rules
    }

    /// What enters the tunnel untracked: replies to what this node forwards for, and probes.
    pub(super) fn untracked_exit(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!("{header} daddr @forwarded{suffix} goto replies"));
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
                    "{header} saddr {own} {header} daddr @overlay{suffix} udp sport {PROBE_PORT} udp dport {PROBE_PORT} \
                     meta mark set 0x00000000 return"
                ));
            }
        }
        rules.push("counter drop".into());
        rules
    }

    /// What enters the tunnel with an identity that this node translates.
    pub(super) fn into(id: u16) -> Vec<String> {
        vec![
            format!("jump leaves_{id}"),
            format!("meta mark set {:#010x}", u32::from(id)),
        ]
    }
}

//! Translation on the pod's own node, and what its result must look like.

use spillway_crds::hub::PortRange;

use super::words::{PORTS, WORDS, Words};
use super::{Parts, identity, tagged};
use crate::node::inputs::Addresses;
use crate::node::interval::Family;
use crate::slices::Ports;

impl Parts<'_> {
    pub(super) fn translate(&self) -> Vec<String> {
        let device = &self.settings.device;
        let mut rules = vec![format!("{} vmap @sliced", identity())];
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

    /// The chains that translate one identity's new connections to this node's ports. Of several ranges one is drawn,
    /// each as often as it has ports: the kernel looks for a free port in one range only. Whatever it doesn't
    /// translate the guards drop.
    pub(super) fn snat(&self, id: u16, egress: &Addresses) -> Vec<(String, Vec<String>)> {
        let mut chains = Vec::new();
        let mut first = Vec::new();
        for Words {
            family,
            header,
            nfproto,
            suffix,
            l4proto,
            ..
        } in &WORDS
        {
            let Some(address) = egress.get(*family) else {
                continue;
            };
            let target = match family {
                Family::V4 => address.to_string(),
                Family::V6 => format!("[{address}]"),
            };
            let usable = self.own.share(address).usable;
            let to = |range: &PortRange| {
                format!(
                    "meta nfproto {nfproto} meta l4proto {{ tcp, udp, sctp, {l4proto} }} snat {header} to {target}:{}-{}",
                    range.first, range.last
                )
            };
            let ranges = usable.ranges();
            if let [range] = ranges.as_slice() {
                first.push(to(range));
                continue;
            }
            let mut picks = Vec::new();
            let mut total = 0;
            for (n, range) in ranges.iter().enumerate() {
                let name = format!("snat_{id}_{suffix}_{n}");
                let blocks = Ports::within(&[*range]).blocks();
                picks.push(format!("{total}-{} : goto {name}", total + blocks - 1));
                total += blocks;
                chains.push((name, vec![to(range)]));
            }
            if total > 0 {
                first.push(format!(
                    "meta nfproto {nfproto} numgen random mod {total} vmap {{ {} }}",
                    picks.join(", ")
                ));
            }
        }
        chains.push((format!("snat_{id}"), first));
        chains
    }

    /// What carries an identity leaves with its egress IP, and where the node has only some ports of it, with one of
    /// those.
    pub(super) fn leaves(egress: &Addresses, sliced: bool) -> Vec<String> {
        let address = |w: &Words| match egress.get(w.family) {
            Some(eip) => format!("{} saddr != {eip} counter drop", w.header),
            None => format!("meta nfproto {} counter drop", w.nfproto),
        };
        let ports = sliced.then(|| "jump own_ports".to_owned());
        WORDS.iter().map(address).chain(ports).collect()
    }

    /// Drops what leaves with a port that isn't this node's. The port that an ICMP error embeds is its connection's.
    pub(super) fn own_ports() -> Vec<String> {
        let mut rules = Vec::new();
        for Words { suffix, header, .. } in &WORDS {
            rules.push(format!(
                "{PORTS} {header} saddr . th sport != @own{suffix} counter drop"
            ));
        }
        for Words {
            suffix, header, icmp, ..
        } in &WORDS
        {
            rules.push(format!(
                "{icmp} type echo-request {header} saddr . {icmp} id != @own_id{suffix} counter drop"
            ));
        }
        rules
    }
}

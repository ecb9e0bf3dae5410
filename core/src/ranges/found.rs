//! What one source gave.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// Shortest prefixes that a detected range may have. A wider one is no pod range: taken for one, it would let most
/// of what policies take leave with the nodes' addresses. Ranges given by hand may be of any size.
const WIDEST_V4: u8 = 8;
/// See [`WIDEST_V4`].
const WIDEST_V6: u8 = 16;
/// Most faults of one source that are kept; the first few say enough.
const MAX_FAULTS: usize = 8;
/// Longest piece of somebody else's text in a message, in characters.
const MAX_QUOTE: usize = 60;

/// Ranges of one source, and what in it can't be used.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Found {
    /// Ranges, host bits cut off.
    pub ranges: BTreeSet<IpNet>,
    /// One sentence each: the object, the field, what is wrong. At most eight.
    pub faults: Vec<String>,
}

impl Found {
    /// Takes in a CIDR or an address; `place` names the object and the field.
    pub(super) fn range(&mut self, text: &str, place: impl Display) {
        match parse(text.trim()) {
            Some(net) => self.net(net, place),
            None => self.fault(format!(
                "{place}: {} is neither a CIDR nor an address",
                quoted(text)
            )),
        }
    }

    /// Takes in a list separated by commas or blanks.
    pub(super) fn list(&mut self, text: &str, place: impl Display) {
        for part in text.split([',', ' ', '\n', '\t']).filter(|s| !s.is_empty()) {
            self.range(part, &place);
        }
    }

    /// Takes in one of ours, already read.
    pub(super) fn net(&mut self, net: IpNet, place: impl Display) {
        let widest = match net {
            IpNet::V4(_) => WIDEST_V4,
            IpNet::V6(_) => WIDEST_V6,
        };
        if net.prefix_len() < widest {
            self.fault(format!(
                "{place}: {net} is wider than /{widest} and is not used: policies would take nothing to it"
            ));
        } else {
            self.ranges.insert(net.trunc());
        }
    }

    /// Takes in a value that must be a string.
    pub(super) fn value(&mut self, value: &Value, place: impl Display) {
        match value {
            Value::String(text) => self.range(text, place),
            other => self.fault(format!("{place}: {} is no string", quoted(&other.to_string()))),
        }
    }

    /// Takes in a value that, where it is there, must be a list of strings.
    pub(super) fn values(&mut self, value: &Value, place: impl Display) {
        match value {
            Value::Null => {}
            Value::Array(items) => {
                for item in items {
                    self.value(item, &place);
                }
            }
            other => self.fault(format!("{place}: {} is no list", quoted(&other.to_string()))),
        }
    }

    /// Notes what can't be used.
    pub(super) fn fault(&mut self, fault: String) {
        if self.faults.len() < MAX_FAULTS && !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }
}

/// A CIDR or an address, host bits cut off.
pub fn parse(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        .map(|n| n.trunc())
}

/// Somebody else's text as it may stand in a message.
pub(super) fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(MAX_QUOTE).collect();
    format!("{cut:?}")
}

/// `metadata.name`, or what stands for it.
pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_range_is_named_and_what_is_too_wide_isnt_taken() {
        let mut found = Found::default();
        found.list("10.244.1.7/16, fd00::/48\n192.0.2.1", "there");
        found.list("0.0.0.0/0 ::/0 ten 10.0.0.0/33", "there");
        let ranges: Vec<_> = found.ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.244.0.0/16", "192.0.2.1/32", "fd00::/48"]);
        assert_eq!(found.faults.len(), 4);
        assert!(found.faults[0].starts_with("there: 0.0.0.0/0 is wider than /8"));
        assert!(found.faults[1].starts_with("there: ::/0 is wider than /16"));
        assert!(found.faults[2].contains("\"ten\" is neither"));
    }

    #[test]
    fn a_hostile_source_fills_no_message() {
        let mut found = Found::default();
        for i in 0..1000 {
            found.range(&format!("{i}{}", "\u{7f}x".repeat(10_000)), "there");
        }
        assert_eq!(found.faults.len(), MAX_FAULTS);
        assert!(
            found.faults.iter().all(|f| f.chars().count() < 600),
            "{:?}",
            found.faults
        );
    }
}

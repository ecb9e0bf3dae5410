//! Our nftables table as a typed value that renders to nft's own text.
//!
//! Rules are opaque text, compared by the digest that each carries as its comment, because nft prints
//! rules in a form of its own. Sets and maps are typed down to their elements, so that one pod's change
//! is one element's change.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// A whole table.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Ruleset {
    /// Family, such as `inet`.
    pub family: String,
    /// Table name.
    pub table: String,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A set, or a map where `value` is given.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Set {
    /// nft type of the key, such as `ipv4_addr` or `ipv4_addr . mark`.
    pub key: String,
    /// For a key one of whose fields has a type without a name: the expression that `typeof` declares it by, such as
    /// `ip daddr . icmp id`, and for a map ` : ` and the value's. `key` and `value` are then what nft lists, which has
    /// `integer` for such a field.
    pub expression: Option<String>,
    /// nft type of the value of a map, such as `verdict` or `ipv4_addr`.
    pub value: Option<String>,
    /// Keys may be prefixes and ranges (`flags interval`).
    pub interval: bool,
    /// Elements; the value is absent in a plain set.
    pub elements: BTreeMap<Vec<Atom>, Option<Atom>>,
}

/// One field of a key, or a value.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Atom {
    /// An address.
    Ip(IpAddr),
    /// A prefix.
    Net(IpNet),
    /// An inclusive range of addresses that is no prefix.
    Range(IpAddr, IpAddr),
    /// A number (mark, port).
    Number(u32),
    /// An inclusive range of ports, or of numbers of 16 bits; one port where both are equal.
    Ports(u16, u16),
    /// A MAC address.
    Mac([u8; 6]),
    /// A verdict: jump to this chain.
    Jump(String),
    /// A verdict: go to this chain without coming back.
    Goto(String),
    /// A verdict: drop the packet.
    Drop,
    /// A verdict: go back to where this chain was called from, or out of the base chain where it wasn't.
    Return,
    /// A protocol's number.
    Protocol(u8),
}

/// A chain.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Chain {
    /// Where a base chain hooks in; absent for a chain that is only jumped to.
    pub hook: Option<Hook>,
    /// Rules, in nft's text, without comment.
    pub rules: Vec<String>,
}

/// A base chain's place.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Hook {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// `prerouting`, `input`, `forward`, `output` or `postrouting`.
    pub hook: String,
    /// Priority as a number.
    pub priority: i32,
    /// The device, for a hook of the `netdev` family.
    pub device: Option<String>,
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Net(net) => write!(f, "{net}"),
            Self::Range(first, last) => write!(f, "{first}-{last}"),
            Self::Number(number) => write!(f, "{number:#010x}"),
            Self::Ports(first, last) if first == last => write!(f, "{first}"),
            Self::Ports(first, last) => write!(f, "{first}-{last}"),
            Self::Mac(mac) => f.write_str(&mac.map(|byte| format!("{byte:02x}")).join(":")),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Protocol(number) => match crate::ports::name(*number) {
                Some(name) => f.write_str(name),
                None => write!(f, "{number}"),
            },
        }
    }
}

/// The comment that tells a rule when it is read back: 16 hex digits of the digest of its text.
pub fn rule_comment(rule: &str) -> String {
    hex::encode(&Sha256::digest(rule.as_bytes())[..8])
}

impl Set {
    /// A set without elements.
    pub fn of(key: &str, interval: bool) -> Self {
        Self {
            key: key.into(),
            expression: None,
            value: None,
            interval,
            elements: BTreeMap::new(),
        }
    }

    /// A map without elements.
    pub fn map(key: &str, value: &str, interval: bool) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::of(key, interval)
        }
    }

    /// One element in nft's text.
    pub fn element(key: &[Atom], value: Option<&Atom>) -> String {
        let key = key.iter().map(Atom::to_string).collect::<Vec<_>>().join(" . ");
        value.map_or_else(|| key.clone(), |v| format!("{key} : {v}"))
    }

    /// What stands between the braces of the set's declaration, without its elements.
    pub fn head(&self) -> String {
        let flags = if self.interval { " flags interval;" } else { "" };
        if let Some(expression) = &self.expression {
            return format!("typeof {expression};{flags}");
        }
        let value = self.value.as_ref().map(|v| format!(" : {v}")).unwrap_or_default();
        format!("type {}{value};{flags}", self.key)
    }

    fn render(&self, name: &str, out: &mut String) {
        let keyword = if self.value.is_some() { "map" } else { "set" };
        _ = writeln!(out, "\t{keyword} {name} {{\n\t\t{}", self.head());
        if !self.elements.is_empty() {
            let elements: Vec<String> = self
                .elements
                .iter()
                .map(|(k, v)| Self::element(k, v.as_ref()))
                .collect();
            _ = writeln!(out, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t"));
        }
        out.push_str("\t}\n");
    }
}

impl Chain {
    /// The chain's `type … hook …` line; `None` for a chain that is only jumped to.
    pub fn head(&self) -> Option<String> {
        self.hook.as_ref().map(|h| {
            let device = h
                .device
                .as_ref()
                .map(|d| format!(" device \"{d}\""))
                .unwrap_or_default();
            format!(
                "type {} hook {}{device} priority {}; policy accept;",
                h.kind, h.hook, h.priority
            )
        })
    }

    /// A rule as it is written, with the comment that tells it.
    pub fn line(rule: &str) -> String {
        format!("{rule} comment \"{}\"", rule_comment(rule))
    }

    fn render(&self, name: &str, out: &mut String) {
        _ = writeln!(out, "\tchain {name} {{");
        if let Some(head) = self.head() {
            _ = writeln!(out, "\t\t{head}");
        }
        for rule in &self.rules {
            _ = writeln!(out, "\t\t{}", Self::line(rule));
        }
        out.push_str("\t}\n");
    }
}

impl Ruleset {
    /// The whole table as input of `nft -f`, replacing one of that name in one transaction. (The table is
    /// added before it is deleted because nft before 1.0.7 has no `destroy`.)
    pub fn render(&self) -> String {
        let Self { family, table, .. } = self;
        let mut out = format!("add table {family} {table}\ndelete table {family} {table}\n");
        _ = writeln!(out, "table {family} {table} {{");
        for (name, set) in &self.sets {
            set.render(name, &mut out);
        }
        for (name, chain) in &self.chains {
            chain.render(name, &mut out);
        }
        out.push_str("}\n");
        out
    }
}

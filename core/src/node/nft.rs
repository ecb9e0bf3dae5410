//! Our nftables table as a typed value that renders to nft's own text.
//!
//! Rules are opaque text, compared by the digest that each carries as its comment, because nft prints
//! rules in a form of its own. Sets and maps are typed down to their elements, so that one pod's change
//! is one element's change.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

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
    /// A verdict: jump to this chain.
    Jump(String),
    /// A verdict: go to this chain without coming back.
    Goto(String),
    /// A verdict: drop the packet.
    Drop,
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
}

//! Reads what `nft -j list table` prints.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use spillway_core::node::nft::{Atom, Hook};
use spillway_core::plan::Digest;

use super::canonical;
use crate::{Error, Result};

/// A table as the kernel holds it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Observed {
    /// Sets and maps by name.
    pub sets: BTreeMap<String, ObservedSet>,
    /// Chains by name.
    pub chains: BTreeMap<String, ObservedChain>,
    /// Objects and flags that we never make, in words; a table that has any isn't as we left it.
    pub foreign: Vec<String>,
}

/// A set as the kernel holds it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ObservedSet {
    /// Type of the key, fields joined by ` . `.
    pub key: String,
    /// Type of the value of a map.
    pub value: Option<String>,
    /// Whether it has `flags interval`.
    pub interval: bool,
    /// Flags that we never set, or elements of a form that we never write.
    pub odd: bool,
    /// Elements in canonical form.
    pub elements: BTreeMap<Vec<Atom>, Option<Atom>>,
}

/// A chain as the kernel holds it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ObservedChain {
    /// Where it hooks in.
    pub hook: Option<Hook>,
    /// `policy drop`: never ours.
    pub odd: bool,
    /// Rules in order.
    pub rules: Vec<ObservedRule>,
}

/// A rule as the kernel holds it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ObservedRule {
    /// Its comment; absent for a rule that isn't ours.
    pub stamp: Option<String>,
    /// Digest of its expressions without counters: changes when somebody puts another rule under our comment.
    pub fingerprint: Digest,
}

fn unreadable(what: impl Into<String>, detail: impl Into<String>) -> Error {
    Error::NftUnreadable {
        what: what.into(),
        detail: detail.into(),
    }
}

/// Reads nft's JSON of one table.
///
/// # Errors
/// Where it isn't nft's JSON at all. Single forms that we never write are marked odd or foreign instead, so
/// that they are replaced rather than stop us.
pub fn parse(json: &str) -> Result<Observed> {
    let root: Value = serde_json::from_str(json).map_err(|e| unreadable("the table", e.to_string()))?;
    let items = root
        .get("nftables")
        .and_then(Value::as_array)
        .ok_or_else(|| unreadable("the table", "no list `nftables`"))?;
    let mut observed = Observed::default();
    for item in items.iter().filter_map(Value::as_object) {
        for (kind, body) in item {
            match kind.as_str() {
                "metainfo" => {}
                "table" => {
                    if body.get("flags").is_some() {
                        // nft 1.0.6 prints flags under the family's name, so their value can't be trusted.
                        observed.foreign.push("table flags".into());
                    }
                }
                "set" | "map" => {
                    observed.sets.insert(text(body, "name")?, set(body));
                }
                "chain" => {
                    let read = chain(body);
                    let known = observed.chains.entry(text(body, "name")?).or_default();
                    known.hook = read.hook;
                    known.odd = read.odd;
                }
                "rule" => observed
                    .chains
                    .entry(text(body, "chain")?)
                    .or_default()
                    .rules
                    .push(rule(body)),
                other => {
                    let name = body.get("name").and_then(Value::as_str).unwrap_or("?");
                    observed.foreign.push(format!("{other} {name}"));
                }
            }
        }
    }
    Ok(observed)
}

fn text(body: &Value, field: &str) -> Result<String> {
    body.get(field)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| unreadable(field, "missing"))
}

/// A type as text: a string, or a list of strings for a concatenation.
fn type_name(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(fields)) => fields
            .iter()
            .map(|f| f.as_str().unwrap_or("?"))
            .collect::<Vec<_>>()
            .join(" . "),
        _ => "?".into(),
    }
}

fn set(body: &Value) -> ObservedSet {
    let flags: Vec<&str> = match body.get("flags") {
        Some(Value::Array(flags)) => flags.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(flag)) => vec![flag],
        _ => Vec::new(),
    };
    let mut out = ObservedSet {
        key: type_name(body.get("type")),
        value: body.get("map").map(|v| type_name(Some(v))),
        interval: flags.contains(&"interval"),
        odd: flags.iter().any(|f| *f != "interval")
            || ["timeout", "size", "policy", "auto-merge", "gc-interval", "stmt"]
                .iter()
                .any(|f| body.get(*f).is_some()),
        elements: BTreeMap::new(),
    };
    for item in body.get("elem").and_then(Value::as_array).into_iter().flatten() {
        let read = if out.value.is_some() {
            item.as_array()
                .and_then(|pair| Some((key(pair.first()?)?, Some(canonical(&atom(pair.get(1)?)?)))))
        } else {
            key(item).map(|k| (k, None))
        };
        match read {
            Some((key, value)) => {
                out.elements.insert(key, value);
            }
            None => out.odd = true,
        }
    }
    out
}

fn key(value: &Value) -> Option<Vec<Atom>> {
    match value.get("concat").and_then(Value::as_array) {
        Some(fields) => fields.iter().map(|f| atom(f).map(|a| canonical(&a))).collect(),
        None => Some(vec![canonical(&atom(value)?)]),
    }
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    bytes
        .collect::<std::result::Result<Vec<u8>, _>>()
        .ok()?
        .try_into()
        .ok()
}

fn range(first: &Value, last: &Value) -> Option<Atom> {
    let number = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok());
    match (number(first), number(last)) {
        (Some(first), Some(last)) => Some(Atom::Ports(first, last)),
        _ => Some(Atom::Range(address(first)?, address(last)?)),
    }
}

fn atom(value: &Value) -> Option<Atom> {
    match value {
        Value::String(text) => address(value).map(Atom::Ip).or_else(|| mac(text).map(Atom::Mac)),
        Value::Number(number) => number
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .map(Atom::Number),
        Value::Object(fields) => {
            let (kind, body) = fields.iter().next()?;
            match kind.as_str() {
                "prefix" => {
                    let length = u8::try_from(body.get("len")?.as_u64()?).ok()?;
                    IpNet::new(address(body.get("addr")?)?, length)
                        .ok()
                        .map(Atom::Net)
                }
                "range" => range(body.get(0)?, body.get(1)?),
                "jump" => Some(Atom::Jump(body.get("target")?.as_str()?.to_owned())),
                "goto" => Some(Atom::Goto(body.get("target")?.as_str()?.to_owned())),
                "drop" => Some(Atom::Drop),
                "return" => Some(Atom::Return),
                _ => None,
            }
        }
        _ => None,
    }
}

fn chain(body: &Value) -> ObservedChain {
    let hook = body.get("hook").and_then(Value::as_str).map(|hook| Hook {
        kind: type_name(body.get("type")),
        hook: hook.to_owned(),
        device: body.get("dev").and_then(Value::as_str).map(str::to_owned),
        priority: body
            .get("prio")
            .and_then(Value::as_i64)
            .and_then(|p| i32::try_from(p).ok())
            .unwrap_or(i32::MAX),
    });
    ObservedChain {
        hook,
        odd: body
            .get("policy")
            .and_then(Value::as_str)
            .is_some_and(|p| p != "accept"),
        rules: Vec::new(),
    }
}

fn rule(body: &Value) -> ObservedRule {
    let mut expressions = body.get("expr").cloned().unwrap_or_default();
    forget_counts(&mut expressions);
    ObservedRule {
        stamp: body
            .get("comment")
            .and_then(Value::as_str)
            .filter(|c| c.starts_with("sw:"))
            .map(str::to_owned),
        fingerprint: Digest::of(expressions.to_string().as_bytes()),
    }
}

/// Takes out what changes by itself as packets pass.
fn forget_counts(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(forget_counts),
        Value::Object(fields) => {
            for (kind, body) in fields.iter_mut() {
                match kind.as_str() {
                    "counter" | "last" | "quota" => *body = Value::Null,
                    _ => forget_counts(body),
                }
            }
        }
        _ => {}
    }
}

/// Devices of the chains of a table, from the text that `nft list chains FAMILY` prints: the JSON of nft 1.0.6 leaves
/// them out.
pub(super) fn devices(text: &str, table: &str) -> BTreeMap<String, String> {
    let (mut here, mut chain) = (false, "");
    let mut out = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["table", _, name, "{"] => here = name == table,
            ["chain", name, "{"] => chain = name,
            ["type", ..] if here => {
                let device = words.iter().skip_while(|w| !w.starts_with("device")).nth(1);
                if let Some(device) = device {
                    out.insert(chain.to_owned(), device.trim_matches(['"', ';']).to_owned());
                }
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_from_text() {
        let text = "table netdev other {\n\tchain steer {\n\t\ttype filter hook egress device \"x\" priority filter; \
                    policy accept;\n\t}\n}\ntable netdev t {\n\tchain plain {\n\t}\n\tchain steer {\n\t\ttype filter \
                    hook egress device \"spillway0\" priority filter; policy accept;\n\t}\n\tchain lost {\n\t\ttype \
                    filter hook egress priority filter; policy accept;\n\t}\n}\n";
        let found = devices(text, "t");
        assert_eq!(found, [("steer".to_owned(), "spillway0".to_owned())].into());
    }

    #[test]
    fn ports_and_hardware_addresses_are_read() {
        let json = r#"{"nftables": [
          {"set": {"family": "inet", "name": "out", "table": "t", "type": ["ether_addr", "mark", "ipv4_addr", "integer"],
            "flags": ["interval"], "elem": [{"concat": ["02:53:64:40:04:01", 7, "1.2.3.4", {"range": [1024, 2047]}]}]}},
          {"map": {"family": "netdev", "name": "peers", "table": "t", "type": "mark", "map": "ether_addr",
            "elem": [[1, "02:53:00:00:00:01"]]}}]}"#;
        let observed = parse(json).expect("readable");
        let out = &observed.sets["out"];
        assert_eq!(out.key, "ether_addr . mark . ipv4_addr . integer");
        let key = vec![
            Atom::Mac([2, 0x53, 0x64, 0x40, 4, 1]),
            Atom::Number(7),
            Atom::Ip("1.2.3.4".parse().expect("address")),
            Atom::Ports(1024, 2047),
        ];
        assert!(!out.odd && out.elements.contains_key(&key));
        let value = observed.sets["peers"].elements[&vec![Atom::Number(1)]].clone();
        assert_eq!(value, Some(Atom::Mac([2, 0x53, 0, 0, 0, 1])));
    }

    #[test]
    fn what_nft_prints_is_read() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
          {"table": {"family": "inet", "name": "t", "handle": 1}},
          {"set": {"family": "inet", "name": "c4", "table": "t", "type": ["ipv4_addr", "mark"], "handle": 7,
            "flags": ["interval"], "elem": [{"concat": [{"prefix": {"addr": "10.0.0.0", "len": 24}}, 5]}]}},
          {"map": {"family": "inet", "name": "v", "table": "t", "type": "ipv4_addr", "handle": 11,
            "map": "verdict", "flags": ["interval"],
            "elem": [[{"range": ["10.0.0.0", "10.0.0.7"]}, {"goto": {"target": "c"}}]]}},
          {"set": {"family": "inet", "name": "odd", "table": "t", "type": "ipv4_addr",
            "elem": [{"elem": {"val": "1.2.3.4", "comment": "x"}}]}},
          {"chain": {"family": "inet", "table": "t", "name": "p", "handle": 2, "type": "filter",
            "hook": "prerouting", "prio": -90, "policy": "accept"}},
          {"rule": {"family": "inet", "table": "t", "chain": "p", "handle": 13, "comment": "sw:abc",
            "expr": [{"counter": {"packets": 5, "bytes": 9}}, {"drop": null}]}},
          {"rule": {"family": "inet", "table": "t", "chain": "p", "handle": 14, "expr": [{"drop": null}]}},
          {"counter": {"name": "x"}}]}"#;
        let observed = parse(json).expect("readable");
        assert_eq!(observed.foreign, ["counter x"]);
        assert_eq!(observed.sets["c4"].key, "ipv4_addr . mark");
        assert!(observed.sets["c4"].interval && !observed.sets["c4"].odd);
        assert!(observed.sets["odd"].odd);
        let v = &observed.sets["v"];
        assert_eq!(v.value.as_deref(), Some("verdict"));
        let prefix = vec![Atom::Net("10.0.0.0/29".parse().expect("prefix"))];
        assert_eq!(v.elements[&prefix], Some(Atom::Goto("c".into())));
        let p = &observed.chains["p"];
        assert_eq!(p.hook.as_ref().map(|h| h.priority), Some(-90));
        assert_eq!(p.rules[0].stamp.as_deref(), Some("sw:abc"));
        assert_eq!(p.rules[1].stamp, None);

        let counted = parse(&json.replace("\"packets\": 5", "\"packets\": 6")).expect("readable");
        assert_eq!(counted, observed, "counting isn't changing");
    }
}

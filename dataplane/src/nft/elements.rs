//! Changes of sets' elements as one nfnetlink batch, for which no `nft` has to be run.
//!
//! A pod that comes or goes is one element of one map, and the most frequent change there is; a slice that grows is
//! some elements of concatenated sets with ranges. Interval sets of one field, chains and everything else are left to
//! `nft`, which knows their encodings for every kernel.
//! Constants are those of `linux/netfilter/nfnetlink.h` and `nf_tables.h`.

use std::net::IpAddr;

use spillway_core::node::nft::{Atom, Ruleset, Set};

/// More than this goes to nft: a batch must fit the socket's buffer.
const MOST: usize = 256;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u8 = 10;
const NEW_ELEMENT: u8 = 12;
const DELETE_ELEMENT: u8 = 14;
/// `NFPROTO_INET`, `NFPROTO_NETDEV`.
const FAMILIES: [(&str, u8); 2] = [("inet", 1), ("netdev", 5)];

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
/// The upper end of a concatenated element of ranges (Linux 5.6).
const ELEMENT_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const JUMP: i32 = -3;
const GOTO: i32 = -4;

type Element<'a> = (&'a Vec<Atom>, &'a Option<Atom>);

fn same_form(one: &Set, other: &Set) -> bool {
    (&one.key, &one.value, one.interval) == (&other.key, &other.value, other.interval)
}

/// A batch that leads from `held` to `desired` where nothing differs but elements of plain or concatenated sets, few
/// of them; `None` elsewhere. All messages carry `sequence`; the last change asks for the answer.
pub fn batch(held: &Ruleset, desired: &Ruleset, sequence: u32) -> Option<Vec<u8>> {
    if held.chains != desired.chains || held.sets.len() != desired.sets.len() {
        return None;
    }
    let (_, family) = FAMILIES.iter().find(|(name, _)| *name == desired.family)?;
    let mut removals = Vec::new();
    let mut additions = Vec::new();
    for (name, wanted) in &desired.sets {
        let old = held.sets.get(name)?;
        if old == wanted {
            continue;
        }
        // One field's intervals are kept as the places where one begins or ends.
        let plain = !wanted.interval || wanted.key.contains(" . ");
        if !plain || !same_form(old, wanted) {
            return None;
        }
        removals.extend(apart(old, wanted).map(|element| (name, wanted, element)));
        additions.extend(apart(wanted, old).map(|element| (name, wanted, element)));
    }
    let count = removals.len() + additions.len();
    if count == 0 || count > MOST {
        return None;
    }
    let mut out = message(BATCH_BEGIN, REQUEST, sequence, [0, 0, 0, NFTABLES], &[]);
    let steps = removals
        .into_iter()
        .map(|step| (DELETE_ELEMENT, 0, step))
        .chain(additions.into_iter().map(|step| (NEW_ELEMENT, CREATE, step)));
    for (index, (kind, flags, (name, set, (key, value)))) in steps.enumerate() {
        let (first, last) = bounds(set, key)?;
        let mut element = attribute(ELEMENT_KEY | NESTED, &data(&first));
        if set.interval {
            element.extend(attribute(ELEMENT_KEY_END | NESTED, &data(&last)));
        } else if first != last {
            return None;
        }
        if let Some(value) = value.as_ref().filter(|_| kind == NEW_ELEMENT) {
            let form = set.value.as_ref()?;
            element.extend(attribute(ELEMENT_DATA | NESTED, &value_of(form, value)?));
        }
        let only = attribute(LIST_ELEMENT | NESTED, &element);
        let body = [
            attribute(LIST_TABLE, &text(&desired.table)),
            attribute(LIST_SET, &text(name)),
            attribute(LIST_ELEMENTS | NESTED, &only),
        ]
        .concat();
        let answer = if index + 1 == count { ACK } else { 0 };
        let kind = u16::from_be_bytes([NFTABLES, kind]);
        out.extend(message(
            kind,
            REQUEST | flags | answer,
            sequence,
            [*family, 0, 0, 0],
            &body,
        ));
    }
    out.extend(message(BATCH_END, REQUEST, sequence, [0, 0, 0, NFTABLES], &[]));
    Some(out)
}

/// Elements of `one` that `other` hasn't or has otherwise.
fn apart<'a>(one: &'a Set, other: &'a Set) -> impl Iterator<Item = Element<'a>> {
    one.elements
        .iter()
        .filter(|(key, value)| other.elements.get(*key) != Some(*value))
}

/// Both ends of a key. A concatenation's fields fill registers of four bytes.
fn bounds(set: &Set, key: &[Atom]) -> Option<(Vec<u8>, Vec<u8>)> {
    let forms: Vec<&str> = set.key.split(" . ").collect();
    if forms.len() != key.len() {
        return None;
    }
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for (form, atom) in forms.iter().zip(key) {
        let ends = match (*form, atom) {
            // Ranges are compared byte by byte, so that nft turns round what the host keeps the other way.
            ("mark", Atom::Number(number)) if set.interval => [(); 2].map(|()| number.to_be_bytes().to_vec()),
            _ => field(form, atom)?,
        };
        for (side, end) in [&mut first, &mut last].into_iter().zip(ends) {
            side.extend(end);
            if forms.len() > 1 {
                side.resize(side.len().next_multiple_of(4), 0);
            }
        }
    }
    Some((first, last))
}

/// Both ends of a field of the given type: what packets hold in their byte order, marks in the host's.
fn field(form: &str, atom: &Atom) -> Option<[Vec<u8>; 2]> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let same = |bytes: Vec<u8>| [bytes.clone(), bytes];
    match (form, atom) {
        ("ipv4_addr" | "ipv6_addr", Atom::Ip(ip)) => Some(same(octets(*ip))),
        ("ipv4_addr" | "ipv6_addr", Atom::Net(net)) => Some([octets(net.network()), octets(net.broadcast())]),
        ("ipv4_addr" | "ipv6_addr", Atom::Range(first, last)) => Some([octets(*first), octets(*last)]),
        ("mark", Atom::Number(number)) => Some(same(number.to_ne_bytes().to_vec())),
        ("ether_addr", Atom::Mac(mac)) => Some(same(mac.to_vec())),
        // Of the fields that we declare by an expression, ports and ICMP identifiers have 16 bits and all others 32.
        ("integer", Atom::Number(number)) => Some(same(number.to_be_bytes().to_vec())),
        ("inet_service" | "integer", Atom::Ports(first, last)) => {
            Some([first, last].map(|port| port.to_be_bytes().to_vec()))
        }
        _ => None,
    }
}

fn value_of(form: &str, value: &Atom) -> Option<Vec<u8>> {
    let (code, chain) = match value {
        Atom::Jump(chain) => (JUMP, chain),
        Atom::Goto(chain) => (GOTO, chain),
        other => {
            let [first, last] = field(form, other)?;
            return (first == last).then(|| data(&first));
        }
    };
    let verdict = [
        attribute(VERDICT_CODE, &code.to_be_bytes()),
        attribute(VERDICT_CHAIN, &text(chain)),
    ];
    Some(attribute(DATA_VERDICT | NESTED, &verdict.concat()))
}

fn data(bytes: &[u8]) -> Vec<u8> {
    attribute(DATA_VALUE, bytes)
}

fn text(words: &str) -> Vec<u8> {
    [words.as_bytes(), &[0]].concat()
}

/// One attribute, padded.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 4).unwrap_or(u16::MAX);
    let mut out = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// One message with `nlmsghdr` and `nfgenmsg`.
fn message(kind: u16, flags: u16, sequence: u32, family: [u8; 4], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend(family);
    out.extend(body);
    out
}

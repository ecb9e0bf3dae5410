//! Addresses and prefixes as users wrote them, parsed; and pools, which are never listed out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use spillway_crds::address::AddressPair;
use spillway_crds::hub::AddressPool;

/// At most one address of each family, parsed.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Addresses {
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Reads both fields. The error names the field within the pair (`ipv4`, `ipv6`).
    pub fn parse(pair: &AddressPair) -> Result<Self, (&'static str, BadAddress)> {
        let bad = |field, text: &str| (field, BadAddress::new(text, Problem::NotAnAddress));
        Ok(Self {
            v4: match &pair.ipv4 {
                None => None,
                Some(text) => Some(text.parse().map_err(|_| bad("ipv4", text))?),
            },
            v6: match &pair.ipv6 {
                None => None,
                Some(text) => Some(text.parse().map_err(|_| bad("ipv6", text))?),
            },
        })
    }

    /// Both, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v6 = self.v6.map(IpAddr::V6);
        self.v4.map(IpAddr::V4).into_iter().chain(v6)
    }

    /// True where neither family is present.
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// Without those of which `is` is true.
    #[must_use]
    pub fn without(&self, is: impl Fn(IpAddr) -> bool) -> Self {
        self.iter().filter(|a| !is(*a)).collect()
    }
}

impl FromIterator<IpAddr> for Addresses {
    /// The last address of each family.
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut out = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(a) => out.v4 = Some(a),
                IpAddr::V6(a) => out.v6 = Some(a),
            }
        }
        out
    }
}

impl From<Addresses> for AddressPair {
    fn from(a: Addresses) -> Self {
        Self {
            ipv4: a.v4.map(|v| v.to_string()),
            ipv6: a.v6.map(|v| v.to_string()),
        }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(a), Some(b)) => write!(f, "{a} and {b}"),
            (Some(a), None) => write!(f, "{a}"),
            (None, Some(b)) => write!(f, "{b}"),
            (None, None) => f.write_str("no address"),
        }
    }
}

/// What is wrong with an address, range or prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Problem {
    /// It isn't an address.
    NotAnAddress,
    /// It isn't a prefix in CIDR notation.
    NotAPrefix,
    /// Bits below the prefix length are set; the network meant is probably this one.
    HostBits(IpNet),
    /// The range's last address comes before its first.
    Backwards,
    /// It belongs to the other family.
    WrongFamily,
    /// It is of a kind that can't be the source of traffic between networks (loopback, link-local,
    /// multicast, unspecified; RFC 6890).
    NotRoutable,
    /// An earlier entry of the same list covers part of it.
    Duplicate,
}

/// An entry that can't be used. Its text says what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub struct BadAddress {
    /// The entry, shortened.
    pub text: String,
    /// What is wrong.
    pub problem: Problem,
}

impl BadAddress {
    fn new(text: &str, problem: Problem) -> Self {
        Self {
            text: text.chars().take(100).collect(),
            problem,
        }
    }
}

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        match self.problem {
            Problem::NotAnAddress => write!(
                f,
                "{text:?} is not an address; write one such as 203.0.113.10 or 2001:db8::10"
            ),
            Problem::NotAPrefix => write!(f, "{text:?} is not a CIDR; write one such as 198.51.100.0/24"),
            Problem::HostBits(net) => write!(f, "{text} has host bits set; write {net}"),
            Problem::Backwards => write!(f, "{text} ends before it begins; swap the two addresses"),
            Problem::WrongFamily => write!(f, "{text} is of the other family; move it to that family's list"),
            Problem::NotRoutable => write!(
                f,
                "{text} contains addresses that no other network can answer to; choose routable ones"
            ),
            Problem::Duplicate => write!(
                f,
                "{text} repeats addresses of an earlier entry; remove one of the two"
            ),
        }
    }
}

/// Reads a prefix without host bits.
pub fn parse_prefix(text: &str) -> Result<IpNet, BadAddress> {
    let net: IpNet = text
        .parse()
        .map_err(|_| BadAddress::new(text, Problem::NotAPrefix))?;
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(BadAddress::new(text, Problem::HostBits(net.trunc())))
    }
}

/// Inclusive ranges of one family, sorted and disjoint. IPv4 addresses are their 32-bit value.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Spans(Vec<(u128, u128)>);

impl Spans {
    fn overlap(&self, first: u128, last: u128) -> Option<u128> {
        let at = self.0.partition_point(|(_, end)| *end < first);
        self.0
            .get(at)
            .filter(|(start, _)| *start <= last)
            .map(|(start, _)| (*start).max(first))
    }

    /// Adds a range that overlaps none that is present.
    fn insert(&mut self, first: u128, last: u128) {
        let at = self.0.partition_point(|(start, _)| *start < first);
        self.0.insert(at, (first, last));
    }
}

/// A parsed pool of addresses.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pool {
    v4: Spans,
    v6: Spans,
    first: Addresses,
}

/// An entry of a pool that was left out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BadEntry {
    /// The entry's place, such as `ipv4[1]`.
    pub field: String,
    /// What is wrong with it.
    pub error: BadAddress,
}

impl Pool {
    /// Reads every entry. Entries that can't be used are left out and returned beside the pool.
    pub fn parse(pool: &AddressPool) -> (Self, Vec<BadEntry>) {
        let mut out = Self::default();
        let mut bad = Vec::new();
        for (list, v6, entries) in [("ipv4", false, &pool.ipv4), ("ipv6", true, &pool.ipv6)] {
            for (i, text) in entries.iter().enumerate() {
                if let Err(error) = out.add(text, v6) {
                    bad.push(BadEntry {
                        field: format!("{list}[{i}]"),
                        error,
                    });
                }
            }
        }
        (out, bad)
    }

    fn add(&mut self, text: &str, v6: bool) -> Result<(), BadAddress> {
        let bad = |problem| BadAddress::new(text, problem);
        let (first, last) = bounds(text)?;
        if first.is_ipv6() != v6 || last.is_ipv6() != v6 {
            return Err(bad(Problem::WrongFamily));
        }
        let (from, to) = (number(first), number(last));
        if from > to {
            return Err(bad(Problem::Backwards));
        }
        if unroutable(v6).iter().any(|(a, b)| from <= *b && *a <= to) {
            return Err(bad(Problem::NotRoutable));
        }
        let spans = if v6 { &mut self.v6 } else { &mut self.v4 };
        if spans.overlap(from, to).is_some() {
            return Err(bad(Problem::Duplicate));
        }
        spans.insert(from, to);
        match first {
            IpAddr::V4(a) => self.first.v4 = self.first.v4.or(Some(a)),
            IpAddr::V6(a) => self.first.v6 = self.first.v6.or(Some(a)),
        }
        Ok(())
    }

    /// True where the pool holds `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        let n = number(address);
        self.spans(address.is_ipv6()).overlap(n, n).is_some()
    }

    /// The same with some addresses more.
    #[must_use]
    pub fn with(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        for address in addresses {
            if !self.contains(address) {
                let n = number(address);
                let spans = if address.is_ipv6() {
                    &mut self.v6
                } else {
                    &mut self.v4
                };
                spans.insert(n, n);
            }
        }
        self
    }

    /// How many addresses of one family there are; all of IPv6 would count one less.
    pub fn count(&self, v6: bool) -> u128 {
        let sizes = self
            .spans(v6)
            .0
            .iter()
            .map(|(first, last)| (last - first).saturating_add(1));
        sizes.fold(0, u128::saturating_add)
    }

    /// The address of one family that has this place in their order, from 0 on.
    pub fn nth(&self, v6: bool, place: u128) -> Option<IpAddr> {
        let mut left = place;
        for (first, last) in &self.spans(v6).0 {
            if left <= last - first {
                return Some(address(first + left, v6));
            }
            left -= (last - first).checked_add(1)?;
        }
        None
    }

    /// The place of an address among those of its family.
    pub fn place(&self, address: IpAddr) -> Option<u128> {
        let n = number(address);
        let mut before = 0_u128;
        for (first, last) in &self.spans(address.is_ipv6()).0 {
            if (first..=last).contains(&&n) {
                return before.checked_add(n - first);
            }
            before = before.saturating_add((last - first).saturating_add(1));
        }
        None
    }

    /// The lowest address that both pools hold, IPv4 before IPv6.
    pub fn overlap(&self, other: &Self) -> Option<IpAddr> {
        [false, true].into_iter().find_map(|v6| {
            self.spans(v6)
                .0
                .iter()
                .find_map(|(first, last)| other.spans(v6).overlap(*first, *last))
                .map(|n| address(n, v6))
        })
    }

    /// The lowest address of the pool that lies in `net`.
    pub fn overlap_with(&self, net: IpNet) -> Option<IpAddr> {
        let v6 = net.network().is_ipv6();
        self.spans(v6)
            .overlap(number(net.network()), number(net.broadcast()))
            .map(|n| address(n, v6))
    }

    /// For each family the first address of the first entry: what a policy gets that names none.
    pub const fn first(&self) -> Addresses {
        self.first
    }

    /// True where no entry could be used.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    const fn spans(&self, v6: bool) -> &Spans {
        if v6 { &self.v6 } else { &self.v4 }
    }
}

fn bounds(text: &str) -> Result<(IpAddr, IpAddr), BadAddress> {
    if text.contains('/') {
        let net = parse_prefix(text)?;
        return Ok((net.network(), net.broadcast()));
    }
    let one = |s: &str| {
        s.parse::<IpAddr>()
            .map_err(|_| BadAddress::new(text, Problem::NotAnAddress))
    };
    match text.split_once('-') {
        Some((first, last)) => Ok((one(first)?, one(last)?)),
        None => one(text).map(|a| (a, a)),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(n) if !v6 => IpAddr::V4(Ipv4Addr::from_bits(n)),
        _ => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// Ranges that can't be the source of traffic between networks.
const fn unroutable(v6: bool) -> &'static [(u128, u128)] {
    const V4: &[(u128, u128)] = &[
        (0, 0x00ff_ffff),
        (0x7f00_0000, 0x7fff_ffff),
        (0xa9fe_0000, 0xa9fe_ffff),
        (0xe000_0000, 0xffff_ffff),
    ];
    const V6: &[(u128, u128)] = &[
        (0, 1),
        (0xffff_0000_0000, 0xffff_ffff_ffff),
        (0xfe80 << 112, (0xfec0 << 112) - 1),
        (0xff00 << 112, u128::MAX),
    ];
    if v6 { V6 } else { V4 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(v4: &[&str], v6: &[&str]) -> (Pool, Vec<BadEntry>) {
        Pool::parse(&AddressPool {
            ipv4: v4.iter().map(|s| (*s).into()).collect(),
            ipv6: v6.iter().map(|s| (*s).into()).collect(),
            ..AddressPool::default()
        })
    }

    #[test]
    fn addresses_have_places_without_being_listed() {
        let (pool, _) = pool(
            &["203.0.113.8/30", "203.0.113.1", "203.0.113.20-203.0.113.21"],
            &["2001:db8::/32", "2001:db9::7"],
        );
        let v4: Vec<_> = (0..8)
            .map(|i| pool.nth(false, i).map(|a| a.to_string()))
            .collect();
        let named = ["1", "8", "9", "10", "11", "20", "21"].map(|n| Some(format!("203.0.113.{n}")));
        assert_eq!((&v4[..7], &v4[7]), (&named[..], &None));
        assert_eq!((pool.count(false), pool.count(true)), (7, (1 << 96) + 1));
        assert_eq!(pool.nth(true, 1 << 96), Some(ip("2001:db9::7")));
        for place in [0, 6] {
            assert_eq!(
                pool.place(pool.nth(false, place).expect("an address")),
                Some(place)
            );
        }
        assert_eq!(pool.place(ip("2001:db9::7")), Some(1 << 96));
        assert_eq!(pool.place(ip("203.0.113.2")), None);
        let more = pool.with([ip("203.0.113.2"), ip("203.0.113.9")]);
        assert_eq!((more.count(false), more.place(ip("203.0.113.2"))), (8, Some(1)));
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_pool_holds_single_addresses_ranges_and_blocks() {
        let (pool, bad) = pool(
            &["203.0.113.10-203.0.113.19", "203.0.113.1", "203.0.113.32/29"],
            &["2001:db8:1::/120"],
        );
        assert_eq!(bad, []);
        for inside in [
            "203.0.113.1",
            "203.0.113.10",
            "203.0.113.19",
            "203.0.113.39",
            "2001:db8:1::ff",
        ] {
            assert!(pool.contains(ip(inside)), "{inside}");
        }
        for outside in [
            "203.0.113.0",
            "203.0.113.9",
            "203.0.113.20",
            "203.0.113.40",
            "2001:db8:1::100",
        ] {
            assert!(!pool.contains(ip(outside)), "{outside}");
        }
        assert_eq!(
            pool.first().v4.map(IpAddr::V4),
            Some(ip("203.0.113.10")),
            "as written, not lowest"
        );
        assert_eq!(pool.first().v6.map(IpAddr::V6), Some(ip("2001:db8:1::")));
    }

    #[test]
    fn a_bad_entry_is_named_and_the_others_stay() {
        let (pool, bad) = pool(
            &[
                "203.0.113.1",
                "203.0.113.9/24",
                "203.0.113.5-203.0.113.2",
                "x",
                "2001:db8::1",
                "127.0.0.1",
                "203.0.113.0/30",
            ],
            &["fe80::1", "::ffff:1.2.3.4"],
        );
        let problems: Vec<_> = bad.iter().map(|b| (b.field.as_str(), b.error.problem)).collect();
        assert_eq!(
            problems,
            [
                (
                    "ipv4[1]",
                    Problem::HostBits("203.0.113.0/24".parse().expect("a prefix"))
                ),
                ("ipv4[2]", Problem::Backwards),
                ("ipv4[3]", Problem::NotAnAddress),
                ("ipv4[4]", Problem::WrongFamily),
                ("ipv4[5]", Problem::NotRoutable),
                ("ipv4[6]", Problem::Duplicate),
                ("ipv6[0]", Problem::NotRoutable),
                ("ipv6[1]", Problem::NotRoutable),
            ]
        );
        assert!(bad[0].error.to_string().contains("write 203.0.113.0/24"));
        assert!(pool.contains(ip("203.0.113.1")));
    }

    #[test]
    fn an_ipv4_address_is_not_in_an_ipv6_pool_of_the_same_number() {
        let (pool, _) = pool(&[], &["2001:db8::/64"]);
        assert!(!pool.contains(ip("0.0.0.1")));
        assert_eq!(
            pool.overlap_with("2001:db8::8000/113".parse().expect("a prefix")),
            Some(ip("2001:db8::8000"))
        );
    }

    proptest! {
        #[test]
        fn overlap_is_what_listing_out_would_find(
            a in prop::collection::vec((0u8..60, 0u8..6), 0..5),
            b in prop::collection::vec((0u8..60, 0u8..6), 0..5),
        ) {
            let make = |ranges: &[(u8, u8)]| {
                let text: Vec<_> = ranges
                    .iter()
                    .map(|(start, n)| format!("203.0.113.{start}-203.0.113.{}", start + n))
                    .collect();
                pool(&text.iter().map(String::as_str).collect::<Vec<_>>(), &[]).0
            };
            let (a, b) = (make(&a), make(&b));
            let both = (0..=255)
                .map(|i| IpAddr::V4(Ipv4Addr::new(203, 0, 113, i)))
                .find(|i| a.contains(*i) && b.contains(*i));
            prop_assert_eq!(a.overlap(&b), both);
            prop_assert_eq!(b.overlap(&a), both);
        }
    }
}

//! Address intervals, and their canonical form as elements of an nftables set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use super::nft::Atom;

/// An inclusive range of addresses of one family.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Interval {
    first: IpAddr,
    last: IpAddr,
}

/// Address families.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `address`.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Length of a host prefix: 32 or 128.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The prefix that contains every address.
    pub const fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
            Self::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
        }
    }

    /// The address with this number.
    pub(super) fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            Self::V6 => Ipv6Addr::from(number).into(),
        }
    }
}

/// The address as a number.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

impl Interval {
    /// The interval from `first` to `last`; `None` where they are of two families or out of order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// The lowest address.
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    pub const fn last(&self) -> IpAddr {
        self.last
    }

    /// The family.
    pub const fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// True where `address` is within.
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && self.first <= address && address <= self.last
    }

    /// The form in which nft itself prints the interval: an address, a prefix, or a range that is none.
    pub fn atom(&self) -> Atom {
        if self.first == self.last {
            return Atom::Ip(self.first);
        }
        let (first, last) = (number(self.first), number(self.last));
        let bits = self.family().bits();
        let span = last - first;
        // A span of 2^n - 1 that starts on a multiple of 2^n.
        if span & span.wrapping_add(1) == 0 && first & span == 0 {
            let host = u8::try_from(span.count_ones()).unwrap_or(bits);
            if let Ok(net) = IpNet::new(self.first, bits - host) {
                return Atom::Net(net);
            }
        }
        Atom::Range(self.first, self.last)
    }
}

impl From<IpNet> for Interval {
    fn from(net: IpNet) -> Self {
        Self {
            first: net.network(),
            last: net.broadcast(),
        }
    }
}

/// The union of `nets` as sorted, disjoint intervals that don't touch; IPv4 comes first.
pub fn union<I: Into<Interval>>(nets: impl IntoIterator<Item = I>) -> Vec<Interval> {
    let mut sorted: Vec<Interval> = nets.into_iter().map(Into::into).collect();
    sorted.sort_unstable();
    let mut out: Vec<Interval> = Vec::new();
    for next in sorted {
        match out.last_mut() {
            Some(top)
                if top.family() == next.family()
                    && number(next.first) <= number(top.last).saturating_add(1) =>
            {
                top.last = top.last.max(next.last);
            }
            _ => out.push(next),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn interval(first: &str, last: &str) -> Interval {
        Interval::new(first.parse().expect("address"), last.parse().expect("address")).expect("interval")
    }

    #[test]
    fn an_interval_takes_the_form_that_nft_prints() {
        let atom = |a, b| interval(a, b).atom();
        assert_eq!(
            atom("10.0.0.1", "10.0.0.1"),
            Atom::Ip("10.0.0.1".parse().expect("address"))
        );
        assert_eq!(
            atom("10.0.0.0", "10.0.0.255"),
            Atom::Net("10.0.0.0/24".parse().expect("net"))
        );
        assert_eq!(
            atom("0.0.0.0", "255.255.255.255"),
            Atom::Net("0.0.0.0/0".parse().expect("net"))
        );
        assert_eq!(
            atom("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            Atom::Net("::/0".parse().expect("net"))
        );
        assert!(matches!(atom("10.0.0.1", "10.0.0.2"), Atom::Range(..)));
        assert!(matches!(atom("0.0.0.0", "255.255.255.254"), Atom::Range(..)));
    }

    proptest! {
        #[test]
        fn a_union_holds_what_its_parts_hold(
            nets in prop::collection::vec((any::<u32>(), 0u8..=32), 0..12),
            probe in any::<u32>(),
            near in any::<prop::sample::Index>(),
            step in -1i64..=1,
        ) {
            let nets: Vec<IpNet> = nets
                .into_iter()
                .map(|(a, len)| IpNet::new(Ipv4Addr::from(a).into(), len).expect("length").trunc())
                .collect();
            let union = union(nets.clone());
            for pair in union.windows(2) {
                prop_assert!(number(pair[0].last()) + 1 < number(pair[1].first()), "disjoint and apart");
            }
            let edge = if nets.is_empty() { 0 } else { number(nets[near.index(nets.len())].broadcast()) };
            let edge = u32::try_from((i64::try_from(edge).expect("32 bits") + step).clamp(0, u32::MAX.into()));
            for probe in [probe, edge.expect("clamped")] {
                let probe = IpAddr::from(Ipv4Addr::from(probe));
                prop_assert_eq!(
                    union.iter().any(|i| i.contains(probe)),
                    nets.iter().any(|n| n.contains(&probe))
                );
            }
        }
    }
}

//! Overlay addresses of a member's nodes: a host number a node, the same in both families.
//!
//! The hub gives a member one prefix of each family; the member gives each of its nodes the n-th address
//! of them. A node keeps its number while it exists, because its connections at gateways carry it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use spillway_crds::address::{AddressPair, PrefixPair};

/// A field of a prefix pair that doesn't hold what it must.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadPrefix {
    /// Not CIDR notation of the field's family, or with host bits set.
    #[error("overlay.{field} is {value:?}, which is no prefix of that family without host bits")]
    Unreadable {
        /// `ipv4` or `ipv6`.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// Neither family is given.
    #[error("the member's overlay has no prefix of either family")]
    Empty,
}

/// The prefixes that one member hands out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemberPrefix {
    ipv4: Option<Ipv4Net>,
    ipv6: Option<Ipv6Net>,
}

impl TryFrom<&PrefixPair> for MemberPrefix {
    type Error = BadPrefix;

    fn try_from(pair: &PrefixPair) -> Result<Self, BadPrefix> {
        let bad = |field, value: &str| BadPrefix::Unreadable {
            field,
            value: value.chars().take(80).collect(),
        };
        let ipv4 = pair
            .ipv4
            .as_deref()
            .map(|s| match s.parse::<Ipv4Net>() {
                Ok(net) if net == net.trunc() => Ok(net),
                _ => Err(bad("ipv4", s)),
            })
            .transpose()?;
        let ipv6 = pair
            .ipv6
            .as_deref()
            .map(|s| match s.parse::<Ipv6Net>() {
                Ok(net) if net == net.trunc() => Ok(net),
                _ => Err(bad("ipv6", s)),
            })
            .transpose()?;
        if ipv4.is_none() && ipv6.is_none() {
            return Err(BadPrefix::Empty);
        }
        Ok(Self { ipv4, ipv6 })
    }
}

impl MemberPrefix {
    /// Highest host number. The all-zeros and all-ones addresses of the IPv4 prefix are left out: some
    /// stacks still take them for broadcasts. At most 2^16 - 1.
    pub fn capacity(&self) -> u32 {
        let of = |bits: u8| (1u64 << bits.min(16)).saturating_sub(2);
        let ipv4 = self.ipv4.map(|n| of(32 - n.prefix_len()));
        let ipv6 = self.ipv6.map(|n| of(128 - n.prefix_len()));
        let least = ipv4.into_iter().chain(ipv6).min().unwrap_or(0);
        u32::try_from(least).unwrap_or(u32::MAX)
    }

    /// The addresses with host number `host`, 1 to [`Self::capacity`].
    pub fn address(&self, host: u32) -> AddressPair {
        AddressPair {
            ipv4: self
                .ipv4
                .map(|n| Ipv4Addr::from(u32::from(n.network()) + host).to_string()),
            ipv6: self
                .ipv6
                .map(|n| Ipv6Addr::from(u128::from(n.network()) + u128::from(host)).to_string()),
        }
    }

    /// The host number of `pair` where it lies in the prefix, by its IPv4 address if the member has an
    /// IPv4 prefix and by its IPv6 address otherwise.
    pub fn host(&self, pair: &AddressPair) -> Option<u32> {
        let host = if let Some(net) = self.ipv4 {
            let address: Ipv4Addr = pair.ipv4.as_deref()?.parse().ok()?;
            net.contains(&address)
                .then(|| u32::from(address) - u32::from(net.network()))?
        } else {
            let net = self.ipv6?;
            let address: Ipv6Addr = pair.ipv6.as_deref()?.parse().ok()?;
            let host = net
                .contains(&address)
                .then(|| u128::from(address) - u128::from(net.network()))?;
            u32::try_from(host).ok()?
        };
        (1..=self.capacity()).contains(&host).then_some(host)
    }
}

/// Who has which address.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Assignment {
    /// Addresses by node.
    pub nodes: BTreeMap<String, AddressPair>,
    /// Nodes for which the prefix had no number left.
    pub without: BTreeSet<String>,
}

/// Gives every one of `nodes` addresses out of `prefix`. A node keeps what it has in `recorded` as long as
/// that lies in the prefix and no node before it (by name) has it too; the others get the lowest free
/// numbers in the order of their names.
pub fn assign<'a>(
    prefix: &MemberPrefix,
    recorded: &BTreeMap<String, AddressPair>,
    nodes: impl IntoIterator<Item = &'a str>,
) -> Assignment {
    let nodes: BTreeSet<&str> = nodes.into_iter().collect();
    let mut taken = BTreeSet::new();
    let mut hosts: BTreeMap<&str, u32> = BTreeMap::new();
    for node in &nodes {
        let host = recorded.get(*node).and_then(|pair| prefix.host(pair));
        if let Some(host) = host
            && taken.insert(host)
        {
            hosts.insert(node, host);
        }
    }
    let mut out = Assignment::default();
    let mut free = (1..=prefix.capacity()).filter(|h| !taken.contains(h));
    for node in nodes {
        match hosts.get(node).copied().or_else(|| free.next()) {
            Some(host) => {
                out.nodes.insert(node.to_owned(), prefix.address(host));
            }
            None => {
                out.without.insert(node.to_owned());
            }
        }
    }
    out
}

/// The first address of each family among `addresses`, in their order; what isn't an address is passed over.
pub fn first_of_each_family<'a>(addresses: impl IntoIterator<Item = &'a str>) -> AddressPair {
    let mut pair = AddressPair::default();
    for address in addresses {
        match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(a)) if pair.ipv4.is_none() => pair.ipv4 = Some(a.to_string()),
            Ok(IpAddr::V6(a)) if pair.ipv6.is_none() => pair.ipv6 = Some(a.to_string()),
            _ => {}
        }
    }
    pair
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(ipv4: &str, ipv6: &str) -> PrefixPair {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        PrefixPair {
            ipv4: some(ipv4),
            ipv6: some(ipv6),
        }
    }

    fn prefix(ipv4: &str, ipv6: &str) -> MemberPrefix {
        MemberPrefix::try_from(&pair(ipv4, ipv6)).expect("valid")
    }

    fn names() -> impl Strategy<Value = BTreeSet<String>> {
        prop::collection::btree_set("[a-z]{1,2}", 0..40)
    }

    fn assigned(prefix: &MemberPrefix, recorded: &Assignment, nodes: &BTreeSet<String>) -> Assignment {
        assign(prefix, &recorded.nodes, nodes.iter().map(String::as_str))
    }

    #[test]
    fn the_first_node_gets_host_number_one_in_both_families() {
        let prefix = prefix("100.64.4.0/22", "fd64:5711:0:1::/64");
        assert_eq!(prefix.capacity(), 1022);
        let got = assign(&prefix, &BTreeMap::new(), ["b", "a"]);
        assert_eq!(got.nodes["a"].ipv4.as_deref(), Some("100.64.4.1"));
        assert_eq!(got.nodes["a"].ipv6.as_deref(), Some("fd64:5711:0:1::1"));
        assert_eq!(got.nodes["b"].ipv4.as_deref(), Some("100.64.4.2"));
    }

    #[test]
    fn an_address_outside_the_prefix_is_replaced_and_a_wrong_second_family_corrected() {
        let prefix = prefix("100.64.4.0/22", "fd64:5711:0:1::/64");
        let had = |ipv4: &str, ipv6: &str| AddressPair {
            ipv4: Some(ipv4.into()),
            ipv6: Some(ipv6.into()),
        };
        let recorded = BTreeMap::from([
            ("moved".into(), had("100.64.8.1", "fd64:5711:0:2::1")),
            ("skewed".into(), had("100.64.4.7", "fd64:5711:0:1::9")),
        ]);
        let got = assign(&prefix, &recorded, ["moved", "skewed"]);
        assert_eq!(got.nodes["moved"], had("100.64.4.1", "fd64:5711:0:1::1"));
        assert_eq!(got.nodes["skewed"], had("100.64.4.7", "fd64:5711:0:1::7"));
    }

    #[test]
    fn prefixes_that_make_no_sense_name_their_field() {
        let read = |p: &PrefixPair| MemberPrefix::try_from(p).map_err(|e| e.to_string());
        assert!(read(&pair("100.64.4.1/22", "")).is_err_and(|e| e.contains("overlay.ipv4")));
        assert!(read(&pair("", "100.64.4.0/22")).is_err_and(|e| e.contains("overlay.ipv6")));
        assert!(read(&pair("", "")).is_err());
    }

    #[test]
    fn underlay_takes_the_first_address_of_each_family() {
        let got = first_of_each_family(["node-1", "192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        assert_eq!(got.ipv4.as_deref(), Some("192.0.2.1"));
        assert_eq!(got.ipv6.as_deref(), Some("2001:db8::1"));
    }

    proptest! {
        #[test]
        fn every_node_has_an_address_of_its_own_until_they_run_out(
            before in names(), after in names(), bits in 26u8..=30,
        ) {
            let prefix = prefix(&format!("100.64.4.0/{bits}"), "fd64:5711:0:1::/64");
            let first = assigned(&prefix, &Assignment::default(), &before);
            let second = assigned(&prefix, &first, &after);
            for (nodes, got) in [(&before, &first), (&after, &second)] {
                let distinct: BTreeSet<_> = got.nodes.values().collect();
                prop_assert_eq!(distinct.len(), got.nodes.len());
                prop_assert_eq!(got.nodes.len() + got.without.len(), nodes.len());
                let all = u32::try_from(nodes.len()).expect("few");
                prop_assert_eq!(got.nodes.len(), all.min(prefix.capacity()) as usize);
            }
        }

        #[test]
        fn a_node_keeps_its_address_whoever_comes_and_goes(before in names(), after in names()) {
            let prefix = prefix("100.64.4.0/22", "fd64:5711:0:1::/64");
            let first = assigned(&prefix, &Assignment::default(), &before);
            let second = assigned(&prefix, &first, &after);
            for node in before.intersection(&after) {
                prop_assert_eq!(&first.nodes[node], &second.nodes[node]);
            }
            prop_assert_eq!(assigned(&prefix, &second, &after), second);
        }

        #[test]
        fn a_single_family_counts_the_same_way(nodes in names()) {
            let only6 = prefix("", "fd64:5711:0:1::/64");
            let both = prefix("100.64.4.0/22", "fd64:5711:0:1::/64");
            let a = assigned(&only6, &Assignment::default(), &nodes);
            let b = assigned(&both, &Assignment::default(), &nodes);
            for node in &nodes {
                prop_assert_eq!(&a.nodes[node].ipv6, &b.nodes[node].ipv6);
            }
            prop_assert_eq!(assigned(&only6, &a, &nodes), a);
        }
    }
}

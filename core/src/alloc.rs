//! Numbers that the hub hands out and records: member ids, overlay prefixes, identities.
//!
//! Every function takes what is recorded already and returns the whole assignment; what is recorded
//! stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use sha2::{Digest as _, Sha256};
use spillway_crds::address::PrefixPair;

use crate::address::Addresses;

/// Largest member id: 12 bits, and as many prefixes in the smallest overlay range.
pub const MAX_MEMBER_ID: u16 = 4095;
/// Length of a member's IPv4 overlay prefix: 1,022 nodes.
const MEMBER_PREFIX_V4: u8 = 22;
/// Length of a member's IPv6 overlay prefix.
const MEMBER_PREFIX_V6: u8 = 64;

/// The federation's overlay range, large enough for every member id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OverlayRange {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

/// An overlay range that can't hold 4,095 members.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "an overlay range is an IPv4 prefix of /10 or shorter and an IPv6 prefix of /52 or shorter, without host bits; not {v4} and {v6}"
)]
pub struct RangeTooSmall {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

impl Default for OverlayRange {
    /// The shared address space of RFC 6598, and a ULA (RFC 4193).
    fn default() -> Self {
        Self {
            v4: Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
            v6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd64, 0x5711, 0, 0, 0, 0, 0, 0), 48),
        }
    }
}

impl OverlayRange {
    /// Checks that the two prefixes have room for every member id.
    pub fn new(v4: Ipv4Net, v6: Ipv6Net) -> Result<Self, RangeTooSmall> {
        let fits = v4.prefix_len() <= MEMBER_PREFIX_V4 - 12
            && v6.prefix_len() <= MEMBER_PREFIX_V6 - 12
            && v4.trunc() == v4
            && v6.trunc() == v6;
        fits.then_some(Self { v4, v6 }).ok_or(RangeTooSmall { v4, v6 })
    }

    /// The IPv4 range.
    pub const fn v4(&self) -> Ipv4Net {
        self.v4
    }

    /// The IPv6 range.
    pub const fn v6(&self) -> Ipv6Net {
        self.v6
    }

    /// Both ranges, as they stand in a plan.
    pub fn pair(&self) -> PrefixPair {
        PrefixPair {
            ipv4: Some(self.v4.to_string()),
            ipv6: Some(self.v6.to_string()),
        }
    }

    /// The prefixes of the member with this id: the id-th block of the range, counted from 0.
    pub fn member(&self, id: u16) -> MemberBlock {
        let v4 = self.v4.network().to_bits() + (u32::from(id) << (32 - MEMBER_PREFIX_V4));
        let v6 = self.v6.network().to_bits() + (u128::from(id) << (128 - MEMBER_PREFIX_V6));
        MemberBlock {
            v4: Ipv4Net::new_assert(Ipv4Addr::from_bits(v4), MEMBER_PREFIX_V4),
            v6: Ipv6Net::new_assert(Ipv6Addr::from_bits(v6), MEMBER_PREFIX_V6),
        }
    }
}

/// One member's part of the overlay range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemberBlock {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

impl MemberBlock {
    /// As recorded in status and as it stands in a plan.
    pub fn pair(&self) -> PrefixPair {
        PrefixPair {
            ipv4: Some(self.v4.to_string()),
            ipv6: Some(self.v6.to_string()),
        }
    }

    /// True where `addresses` isn't empty and lies within the prefix.
    pub fn holds(&self, addresses: &Addresses) -> bool {
        !addresses.is_empty()
            && addresses.v4.is_none_or(|a| self.v4.contains(&a))
            && addresses.v6.is_none_or(|a| self.v6.contains(&a))
    }
}

/// Numbers that stood for something before, as far as is known: who comes back gets its own again, and
/// nobody else gets it while there are others. A record that was wiped, or an object that was deleted and
/// made again, so leads to the numbers that nodes still have in their kernels.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    members: Owners<String>,
    identities: Owners<Egress>,
}

impl Memory {
    /// The member has this id.
    pub fn member(&mut self, id: u16, name: &str) {
        self.members.learn(id, &name.to_owned());
    }

    /// The identity stands for this.
    pub fn identity(&mut self, id: u16, egress: &Egress) {
        self.identities.learn(id, egress);
    }

    /// True where nothing would be learnt by [`Self::member`].
    pub fn knows_member(&self, id: u16, name: &str) -> bool {
        self.members.owner.get(&id).is_some_and(|n| n == name)
    }

    /// True where nothing would be learnt by [`Self::identity`].
    pub fn knows_identity(&self, id: u16, egress: &Egress) -> bool {
        self.identities.owner.get(&id) == Some(egress)
    }
}

/// Whose each number was last, and the last number of each. A number has one owner and the other way
/// round, so there are never more than numbers.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Owners<T> {
    owner: BTreeMap<u16, T>,
    number: BTreeMap<T, u16>,
}

impl<T> Default for Owners<T> {
    fn default() -> Self {
        Self {
            owner: BTreeMap::new(),
            number: BTreeMap::new(),
        }
    }
}

impl<T: Clone + Ord> Owners<T> {
    fn learn(&mut self, id: u16, owner: &T) {
        if let Some(before) = self.owner.insert(id, owner.clone()) {
            self.number.remove(&before);
        }
        if let Some(other) = self.number.insert(owner.clone(), id).filter(|other| *other != id) {
            self.owner.remove(&other);
        }
    }

    /// The number that `owner` had, else the first of `order` that nobody had, else the first that is free.
    fn choose(
        &self,
        owner: &T,
        order: &(impl Iterator<Item = u16> + Clone),
        free: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let own = self.number.get(owner).copied().filter(|id| free(*id));
        own.or_else(|| order.clone().find(|id| free(*id) && !self.owner.contains_key(id)))
            .or_else(|| order.clone().find(|id| free(*id)))
    }
}

/// Assigns member ids. `members` come oldest first: of two with the same recorded id the first keeps it,
/// and new ids, the lowest free ones that nobody had before, are given in that order. A member is absent
/// from the result where all ids are taken.
pub fn member_ids<'a>(
    members: impl IntoIterator<Item = (&'a str, Option<u16>)>,
    memory: &Memory,
) -> BTreeMap<&'a str, u16> {
    let mut taken = BTreeSet::new();
    let mut out = BTreeMap::new();
    let mut without = Vec::new();
    for (name, recorded) in members {
        match recorded {
            Some(id) if (1..=MAX_MEMBER_ID).contains(&id) && taken.insert(id) => {
                out.insert(name, id);
            }
            _ => without.push(name),
        }
    }
    for name in without {
        let free = |id: u16| (1..=MAX_MEMBER_ID).contains(&id) && !taken.contains(&id);
        let Some(id) = memory
            .members
            .choose(&name.to_owned(), &(1..=MAX_MEMBER_ID), free)
        else {
            break;
        };
        taken.insert(id);
        out.insert(name, id);
    }
    out
}

/// What an identity stands for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Egress {
    /// Name of the gateway.
    pub gateway: String,
    /// The egress IPs.
    pub addresses: Addresses,
}

/// Assigns an identity to each of `wanted`. `recorded` comes oldest gateway first: of two with the same
/// number the first keeps it. Something is absent from the result where all numbers are taken.
///
/// A new number is the one that `memory` has for it; else it comes from a hash of what it stands for, then
/// the next one that nobody had: a source that hasn't heard of a number's end must not leave with the egress
/// IP of something else. The hash does what it can where memory was lost.
pub fn identities<'a>(
    recorded: impl IntoIterator<Item = (&'a Egress, u16)>,
    wanted: &BTreeSet<Egress>,
    memory: &Memory,
) -> BTreeMap<Egress, u16> {
    let mut taken = vec![false; usize::from(u16::MAX) + 1];
    taken[0] = true;
    let mut out = BTreeMap::new();
    for (egress, id) in recorded {
        if !taken[usize::from(id)] && wanted.contains(egress) && !out.contains_key(egress) {
            taken[usize::from(id)] = true;
            out.insert(egress.clone(), id);
        }
    }
    for egress in wanted {
        if out.contains_key(egress) {
            continue;
        }
        let start = preferred(egress);
        let order = (start..=u16::MAX).chain(1..start);
        let free = |id: u16| !taken[usize::from(id)];
        let Some(id) = memory.identities.choose(egress, &order, free) else {
            break;
        };
        taken[usize::from(id)] = true;
        out.insert(egress.clone(), id);
    }
    out
}

fn preferred(egress: &Egress) -> u16 {
    let hash = Sha256::digest(format!("{}/{}", egress.gateway, egress.addresses));
    let number = u64::from_be_bytes(hash[..8].try_into().unwrap_or_default());
    u16::try_from(number % u64::from(u16::MAX) + 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn egress(gateway: &str, last: u8) -> Egress {
        Egress {
            gateway: gateway.into(),
            addresses: Addresses {
                v4: Some(Ipv4Addr::new(203, 0, 113, last)),
                v6: None,
            },
        }
    }

    #[test]
    fn a_member_gets_the_block_of_its_number() {
        let range = OverlayRange::default();
        assert_eq!(range.member(1).v4.to_string(), "100.64.4.0/22");
        assert_eq!(range.member(1).v6.to_string(), "fd64:5711:0:1::/64");
        assert_eq!(range.member(4095).v4.to_string(), "100.127.252.0/22");
        assert!(range.v4.contains(&range.member(4095).v4));
        assert!(range.v6.contains(&range.member(4095).v6));
    }

    #[test]
    fn a_range_without_room_for_every_member_is_refused() {
        let range = |v4: &str, v6: &str| {
            OverlayRange::new(v4.parse().expect("a prefix"), v6.parse().expect("a prefix"))
        };
        assert!(range("10.0.0.0/8", "fd00::/52").is_ok());
        assert!(range("10.0.0.0/11", "fd00::/48").is_err());
        assert!(range("10.0.0.0/8", "fd00::/53").is_err());
        assert!(range("10.0.0.1/8", "fd00::/48").is_err());
    }

    #[test]
    fn recorded_ids_stay_and_gaps_are_filled() {
        let ids = member_ids(
            [
                ("a", None),
                ("b", Some(1)),
                ("c", Some(3)),
                ("d", None),
                ("e", Some(3)),
            ],
            &Memory::default(),
        );
        assert_eq!(
            ids,
            BTreeMap::from([("a", 2), ("b", 1), ("c", 3), ("d", 4), ("e", 5)])
        );
        assert_eq!(
            member_ids([("a", Some(0)), ("b", Some(4096))], &Memory::default())["a"],
            1
        );
    }

    #[test]
    fn a_federation_that_is_full_leaves_the_youngest_without() {
        let names: Vec<_> = (0..4096).map(|i| format!("m{i:04}")).collect();
        let ids = member_ids(names.iter().map(|n| (n.as_str(), None)), &Memory::default());
        assert_eq!(ids.len(), 4095);
        assert!(!ids.contains_key("m4095"));
    }

    #[test]
    fn an_identity_that_is_no_longer_wanted_is_freed() {
        let (a, b) = (egress("g", 1), egress("g", 2));
        let both = identities([], &BTreeSet::from([a.clone(), b.clone()]), &Memory::default());
        let one = identities(
            both.iter().map(|(e, i)| (e, *i)),
            &BTreeSet::from([b.clone()]),
            &Memory::default(),
        );
        assert_eq!(one, BTreeMap::from([(b.clone(), both[&b])]));
        let again = identities(
            one.iter().map(|(e, i)| (e, *i)),
            &BTreeSet::from([a, b]),
            &Memory::default(),
        );
        assert_eq!(again, both, "made again, it has its old number");
    }

    #[test]
    fn who_comes_back_gets_its_own_number_and_nobody_else_does() {
        let mut memory = Memory::default();
        memory.member(1, "gone");
        memory.member(4, "back");
        memory.member(2, "back");
        assert!(memory.knows_member(2, "back") && !memory.knows_member(4, "back"));
        let ids = member_ids([("new", None), ("back", None)], &memory);
        assert_eq!(ids, BTreeMap::from([("new", 3), ("back", 2)]));
        let full: Vec<_> = (0..4095).map(|i| format!("m{i:04}")).collect();
        let ids = member_ids(full.iter().map(|n| (n.as_str(), None)), &memory);
        assert_eq!(ids.len(), 4095, "the last ones get what others had");

        // Both would like the same number by their hash if it weren't for what is remembered.
        let (freed, back, new) = (egress("g", 1), egress("g", 2), egress("g", 3));
        memory.identity(preferred(&new), &freed);
        memory.identity(77, &back);
        let ids = identities([], &BTreeSet::from([back.clone(), new.clone()]), &memory);
        assert_eq!(ids[&back], 77);
        assert_ne!(
            ids[&new],
            preferred(&new),
            "a source may still use it for something else"
        );
    }

    #[test]
    fn all_65535_identities_can_be_given() {
        let wanted: BTreeSet<_> = (0..=65_535u32)
            .map(|i| Egress {
                gateway: "g".into(),
                addresses: Addresses {
                    v4: Some(Ipv4Addr::from_bits(i)),
                    v6: None,
                },
            })
            .collect();
        let ids = identities([], &wanted, &Memory::default());
        assert_eq!(ids.len(), 65_535);
        assert_eq!(ids.values().collect::<BTreeSet<_>>().len(), 65_535);
        assert!(!ids.values().any(|id| *id == 0));
    }

    proptest! {
        #[test]
        fn no_identity_is_given_twice_and_records_stay(
            first in prop::collection::btree_set(("[ab]", 0u8..20), 0..20),
            second in prop::collection::btree_set(("[ab]", 0u8..20), 0..20),
        ) {
            let set = |s: &BTreeSet<(String, u8)>| s.iter().map(|(g, n)| egress(g, *n)).collect::<BTreeSet<_>>();
            let before = identities([], &set(&first), &Memory::default());
            let after = identities(before.iter().map(|(e, i)| (e, *i)), &set(&second), &Memory::default());
            prop_assert_eq!(after.keys().cloned().collect::<BTreeSet<_>>(), set(&second));
            prop_assert_eq!(after.values().collect::<BTreeSet<_>>().len(), after.len());
            for (e, id) in &after {
                if let Some(old) = before.get(e) {
                    prop_assert_eq!(old, id);
                }
            }
        }
    }
}

//! Numbers of gateways on one node, which its routing marks and tables are made of.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

/// Gives each gateway of `wanted` a number from 1 to `most`. One that has a number in `previous` keeps it,
/// so that no flow changes its table when other gateways come and go. The others get the first free
/// number from a place that their name decides. Without a free number a gateway is left out.
pub fn assign(previous: &BTreeMap<String, u8>, wanted: &BTreeSet<&str>, most: u8) -> BTreeMap<String, u8> {
    let mut taken = BTreeSet::new();
    let mut out = BTreeMap::new();
    for name in wanted {
        if let Some(index) = previous.get(*name).filter(|i| (1..=most).contains(i))
            && taken.insert(*index)
        {
            out.insert((*name).to_owned(), *index);
        }
    }
    for name in wanted {
        if out.contains_key(*name) || most == 0 {
            continue;
        }
        let start = Sha256::digest(name.as_bytes())[0] % most;
        let free = (0..most)
            .map(|step| 1 + u8::try_from((u16::from(start) + u16::from(step)) % u16::from(most)).unwrap_or(0))
            .find(|i| !taken.contains(i));
        if let Some(index) = free {
            taken.insert(index);
            out.insert((*name).to_owned(), index);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_gateway_keeps_its_number_and_no_two_share_one(
            first in prop::collection::btree_set("[a-h]{1,2}", 0..12),
            second in prop::collection::btree_set("[a-h]{1,2}", 0..12),
            most in 1u8..=20,
        ) {
            let names = |s: &'_ BTreeSet<String>| s.iter().cloned().collect::<Vec<_>>();
            let (first, second) = (names(&first), names(&second));
            let before = assign(&BTreeMap::new(), &first.iter().map(String::as_str).collect(), most);
            let after = assign(&before, &second.iter().map(String::as_str).collect(), most);
            for (name, index) in &after {
                prop_assert!((1..=most).contains(index));
                if let Some(old) = before.get(name) {
                    prop_assert_eq!(old, index);
                }
            }
            let distinct: BTreeSet<_> = after.values().collect();
            prop_assert_eq!(distinct.len(), after.len());
            prop_assert_eq!(after.len(), second.len().min(most.into()));
        }
    }
}

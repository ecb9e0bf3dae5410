//! Which egress IPs of a gateway each policy leaves with.
//!
//! ```text
//! egressIP given       that one, if it is the pool's
//! allocation: Default  the gateway's default, the same for all such policies
//! allocation: Pool     what the policy has; else the least used of some addresses, from one on that follows from its name
//! exclusive            that nobody else has, and that nobody else gets as long
//! ```
//!
//! [`allocate`] is a pure function of what users wrote and of what each policy has already, which is recorded in the policy's
//! own status. So nothing moves without a reason: neither another policy nor a pool that grows takes an address away from who
//! has it, and one that was taken out of the pool stays with whoever leaves with it, who is told of. Without any record a
//! policy's address follows from its name and from older policies alone, so that it comes out as it did.
//!
//! Both families go together: policies that get the same IPv4 address from the pool get the same IPv6 address with it.
//! Pools are never listed out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sha2::{Digest as _, Sha256};
use spillway_crds::hub::Allocation;
use spillway_crds::member::PolicyRef;

use crate::address::{Addresses, Pool};

/// Of so many addresses the least used is taken.
const CHOICE: usize = 64;

/// What a gateway has.
#[derive(Clone, Debug, Default)]
pub struct Supply {
    /// The pool.
    pub pool: Pool,
    /// What policies get that name no address and don't ask for one of their own.
    pub default: Addresses,
}

/// What a policy asks of a gateway.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The policy; no two requests are of one.
    pub policy: &'a PolicyRef,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// Addresses that it names.
    pub fixed: Addresses,
    /// Where the others come from.
    pub allocation: Allocation,
    /// Nobody else is to have them.
    pub exclusive: bool,
    /// What is recorded that it has.
    pub held: Held,
}

/// What a policy has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Held {
    /// Egress IPs.
    pub addresses: Addresses,
    /// Nobody else has them.
    pub exclusive: bool,
}

/// What a policy gets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Grant {
    /// Egress IPs.
    pub addresses: Addresses,
    /// Those of them that the pool doesn't hold any more.
    pub removed: Addresses,
    /// It has to be recorded before it counts.
    pub fresh: bool,
}

/// Why a policy gets nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Denial<'a> {
    /// It names an address that isn't the gateway's.
    NotInPool(IpAddr),
    /// Another policy has the address to itself.
    Reserved(IpAddr, &'a PolicyRef),
    /// It wants an address to itself that another one leaves with.
    InUse(IpAddr, &'a PolicyRef),
    /// No address is left of the pool.
    Exhausted,
}

/// What each of `requests`, all on one gateway, comes to, in their order. The order in which they come doesn't matter.
pub fn allocate<'a>(supply: &Supply, requests: &[Request<'a>]) -> Vec<Result<Grant, Denial<'a>>> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|i| (requests[*i].created, requests[*i].policy));
    let requests: Vec<&Request<'a>> = order.iter().map(|i| &requests[*i]).collect();
    let mut desk = Desk {
        supply,
        requests: &requests,
        owners: BTreeMap::new(),
        users: BTreeMap::new(),
        pairs: BTreeMap::new(),
        out: vec![None; requests.len()],
    };
    desk.run();
    let mut out: Vec<Option<Result<Grant, Denial<'a>>>> = vec![None; order.len()];
    for (place, result) in order.into_iter().zip(desk.out) {
        out[place] = result;
    }
    out.into_iter()
        .map(|r| r.unwrap_or(Err(Denial::Exhausted)))
        .collect()
}

/// Hands out one gateway's addresses. Requests are named by their place in the order of age.
struct Desk<'a, 'r> {
    supply: &'r Supply,
    requests: &'r [&'r Request<'a>],
    /// Who has an address to itself.
    owners: BTreeMap<IpAddr, usize>,
    /// Who leaves with an address.
    users: BTreeMap<IpAddr, BTreeSet<usize>>,
    /// What the pool's addresses go together with, by who got both of them.
    pairs: BTreeMap<IpAddr, BTreeMap<usize, Addresses>>,
    out: Vec<Option<Result<Grant, Denial<'a>>>>,
}

impl<'a> Desk<'a, '_> {
    fn run(&mut self) {
        let known: Vec<Result<Addresses, Denial<'a>>> = self.requests.iter().map(|r| self.known(r)).collect();
        let mut rounds: [Vec<usize>; 3] = Default::default();
        // Who has an address to itself already, then everybody who shares one that can be told, then who is to have one to
        // itself, so that no edit takes an address from those who leave with it.
        for (i, known) in known.iter().enumerate() {
            match known {
                Err(denial) => self.out[i] = Some(Err(denial.clone())),
                Ok(addresses) => {
                    let request = self.requests[i];
                    let has = request.held.exclusive && *addresses == request.held.addresses;
                    let round = match request.exclusive {
                        true if has && !addresses.is_empty() => 0,
                        false => 1,
                        true => 2,
                    };
                    rounds[round].push(i);
                }
            }
        }
        let [own, shared, new] = rounds;
        let (mut fresh, mut choosing) = (Vec::new(), Vec::new());
        for (round, places) in [own, shared, new].into_iter().enumerate() {
            for i in places {
                let addresses = *known[i].as_ref().unwrap_or(&Addresses::default());
                if addresses.is_empty() {
                    let later = if round == 1 { &mut choosing } else { &mut fresh };
                    later.push(i);
                } else {
                    self.give(i, addresses);
                }
            }
        }
        for i in fresh.into_iter().chain(choosing) {
            match self.choose(i) {
                Some(addresses) => self.give(i, addresses),
                None => self.out[i] = Some(Err(Denial::Exhausted)),
            }
        }
    }

    /// What can be told without a choice; empty where there is one.
    fn known(&self, request: &Request<'a>) -> Result<Addresses, Denial<'a>> {
        let Supply { pool, default, .. } = self.supply;
        let held = request.held.addresses;
        for address in request.fixed.iter() {
            // Who leaves with it goes on.
            if !pool.contains(address) && !held.iter().any(|h| h == address) {
                return Err(Denial::NotInPool(address));
            }
        }
        let rest = match request.allocation {
            Allocation::Pool => held,
            Allocation::Default => {
                let gone = held.without(|a| pool.contains(a));
                Addresses {
                    v4: gone.v4.or(default.v4),
                    v6: gone.v6.or(default.v6),
                }
            }
        };
        let known = Addresses {
            v4: request.fixed.v4.or(rest.v4),
            v6: request.fixed.v6.or(rest.v6),
        };
        Ok(match request.allocation {
            Allocation::Pool => self.completed(known, 0),
            Allocation::Default => known,
        })
    }

    /// Adds the other family's address to one: that which a policy before `i` got with it, else the one at its place in the
    /// pool.
    fn completed(&self, known: Addresses, i: usize) -> Addresses {
        let pool = &self.supply.pool;
        let partner = |own: IpAddr| {
            let other = !own.is_ipv6();
            let older = self.pairs.get(&own).and_then(|of| of.range(..i).next());
            let used = older.and_then(|(_, pair)| pair.iter().find(|a| a.is_ipv6() == other));
            let place = || pool.nth(other, pool.place(own)?.checked_rem(pool.count(other))?);
            used.filter(|a| pool.contains(*a)).or_else(place)
        };
        match (known.v4, known.v6) {
            (Some(v4), None) => Addresses {
                v4: Some(v4),
                v6: match partner(v4.into()) {
                    Some(IpAddr::V6(v6)) => Some(v6),
                    _ => None,
                },
            },
            (None, Some(v6)) => Addresses {
                v4: match partner(v6.into()) {
                    Some(IpAddr::V4(v4)) => Some(v4),
                    _ => None,
                },
                v6: Some(v6),
            },
            _ => known,
        }
    }

    /// A pair of the pool for a policy that has none.
    fn choose(&self, i: usize) -> Option<Addresses> {
        let pool = &self.supply.pool;
        // IPv4 addresses are the scarce ones, and each has its IPv6 address.
        let v6 = pool.count(false) == 0;
        let count = pool.count(v6);
        let request = self.requests[i];
        let start = start(request.policy).checked_rem(count)?;
        let most = if request.exclusive {
            self.requests.len() + 1
        } else {
            CHOICE
        };
        let mut best: Option<(usize, Addresses)> = None;
        for step in 0..u128::try_from(most).unwrap_or(u128::MAX).min(count) {
            let address = pool.nth(v6, (start + step) % count)?;
            let one = Addresses::from_iter([address]);
            let pair = self.completed(one, i);
            let owned = pair.iter().any(|a| self.owners.get(&a).is_some_and(|o| *o != i));
            let users = |a: IpAddr| self.users.get(&a);
            let used = pair
                .iter()
                .any(|a| users(a).is_some_and(|u| u.iter().any(|u| *u != i)));
            if owned || (request.exclusive && used) {
                continue;
            }
            // Those of younger policies don't count, so that each follows from the older ones alone.
            let older = users(address).map_or(0, |users| users.range(..i).count());
            if best.is_none_or(|(least, _)| older < least) {
                best = Some((older, pair));
            }
            if older == 0 {
                break;
            }
        }
        best.map(|(_, pair)| pair)
    }

    /// Gives what is nobody else's.
    fn give(&mut self, i: usize, addresses: Addresses) {
        let request = self.requests[i];
        let others = |of: Option<&usize>| of.filter(|other| **other != i).copied();
        let owned = addresses
            .iter()
            .find_map(|a| Some((a, others(self.owners.get(&a))?)));
        let shared = addresses
            .iter()
            .find_map(|a| Some((a, self.users.get(&a)?.iter().find_map(|u| others(Some(u)))?)))
            .filter(|_| request.exclusive);
        let result = if let Some((address, who)) = owned {
            Err(Denial::Reserved(address, self.requests[who].policy))
        } else if let Some((address, who)) = shared {
            Err(Denial::InUse(address, self.requests[who].policy))
        } else {
            for address in addresses.iter() {
                if request.exclusive {
                    self.owners.insert(address, i);
                }
                self.users.entry(address).or_default().insert(i);
                if request.allocation == Allocation::Pool && request.fixed.is_empty() {
                    self.pairs.entry(address).or_default().insert(i, addresses);
                }
            }
            let record = request.exclusive || request.allocation == Allocation::Pool;
            let held = request.held.addresses == addresses && request.held.exclusive == request.exclusive;
            Ok(Grant {
                addresses,
                removed: addresses.without(|a| self.supply.pool.contains(a)),
                fresh: record && !held,
            })
        };
        self.out[i] = Some(result);
    }
}

/// Where a policy begins to look.
fn start(policy: &PolicyRef) -> u128 {
    let namespace = policy.namespace.as_deref().unwrap_or_default();
    let hash = Sha256::digest(format!("{namespace}/{}", policy.name));
    u128::from_be_bytes(hash[..16].try_into().unwrap_or_default()) >> 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spillway_crds::hub::AddressPool;

    use super::*;

    fn supply(v4: &[&str], v6: &[&str]) -> Supply {
        let (pool, bad) = Pool::parse(&AddressPool {
            ipv4: v4.iter().map(|s| (*s).into()).collect(),
            ipv6: v6.iter().map(|s| (*s).into()).collect(),
            ..AddressPool::default()
        });
        assert_eq!(bad, []);
        Supply {
            default: pool.first(),
            pool,
        }
    }

    fn ten() -> Supply {
        supply(&["203.0.113.10-203.0.113.19"], &["2001:db8::10-2001:db8::19"])
    }

    /// Policies by name, with what each asks for; a policy's number is its age.
    #[derive(Clone, Debug)]
    struct Asked {
        names: Vec<PolicyRef>,
        asks: Vec<(Addresses, Allocation, bool)>,
        held: Vec<Held>,
    }

    impl Asked {
        fn new(asks: Vec<(Addresses, Allocation, bool)>) -> Self {
            let name = |i| PolicyRef {
                namespace: Some("shop".into()),
                name: format!("p{i}"),
            };
            Self {
                names: (0..asks.len()).map(name).collect(),
                held: vec![Held::default(); asks.len()],
                asks,
            }
        }

        fn requests(&self) -> Vec<Request<'_>> {
            let all = self.names.iter().zip(&self.asks).zip(&self.held).zip(0..);
            all.map(
                |(((policy, (fixed, allocation, exclusive)), held), created)| Request {
                    policy,
                    created,
                    fixed: *fixed,
                    allocation: *allocation,
                    exclusive: *exclusive,
                    held: *held,
                },
            )
            .collect()
        }

        /// What comes out, recorded as hubs do.
        fn record(&mut self, supply: &Supply) -> Vec<Option<Grant>> {
            let grants: Vec<Option<Grant>> = allocate(supply, &self.requests())
                .into_iter()
                .map(Result::ok)
                .collect();
            for (i, grant) in grants.iter().enumerate() {
                self.held[i] = grant.map_or_else(Held::default, |grant| Held {
                    addresses: grant.addresses,
                    exclusive: self.asks[i].2,
                });
            }
            grants
        }
    }

    fn addresses(text: &[&str]) -> Addresses {
        text.iter()
            .map(|a| a.parse::<IpAddr>().expect("address"))
            .collect()
    }

    use Allocation::{Default as Usual, Pool as Own};

    const NONE: Addresses = Addresses { v4: None, v6: None };

    #[test]
    fn the_default_is_everybodys_and_pool_addresses_are_spread() {
        let supply = ten();
        let mut asked = Asked::new(
            (0..14)
                .map(|i| (NONE, if i < 4 { Usual } else { Own }, false))
                .collect(),
        );
        let grants = asked.record(&supply);
        let default = addresses(&["203.0.113.10", "2001:db8::10"]);
        assert!(grants[..4].iter().all(|g| g.expect("given").addresses == default));
        let own: BTreeSet<String> = grants[4..]
            .iter()
            .map(|g| g.expect("given").addresses.to_string())
            .collect();
        assert_eq!(
            own.len(),
            9,
            "nine that nobody had, then the tenth policy shares one: {own:?}"
        );
        assert!(own.iter().all(|pair| {
            let last = |text: &str| text.rsplit(['.', ':']).next().map(str::to_owned);
            let (v4, v6) = pair.split_once(" and ").expect("a pair");
            last(v4) == last(v6)
        }));
        assert!(grants[4..].iter().all(|g| g.expect("given").fresh));
        assert!(asked.record(&supply).iter().all(|g| !g.expect("given").fresh));
    }

    #[test]
    fn an_address_to_itself_is_nobody_elses_and_taken_from_nobody() {
        let supply = ten();
        let eleven = addresses(&["203.0.113.11"]);
        let own = (eleven, Usual, true);
        let mut asked = Asked::new(vec![own, (NONE, Usual, false), (eleven, Usual, false)]);
        // Nothing is recorded, and one leaves with it: the older one isn't to take it away.
        let denied = |asked: &Asked, supply: &Supply, i: usize| {
            allocate(supply, &asked.requests())[i]
                .as_ref()
                .err()
                .map(|d| format!("{d:?}"))
        };
        assert!(
            denied(&asked, &supply, 0)
                .expect("denied")
                .starts_with("InUse(203.0.113.11")
        );
        asked.asks[2].0 = NONE;
        // Its IPv6 address is the default one, which others have.
        assert!(
            denied(&asked, &supply, 0)
                .expect("denied")
                .starts_with("InUse(2001:db8::10")
        );
        asked.asks[0].1 = Own;
        assert!(asked.record(&supply)[0].expect("given").fresh);
        assert_eq!(
            asked.held[0].addresses,
            addresses(&["203.0.113.11", "2001:db8::11"])
        );
        asked.asks[2].0 = eleven;
        assert!(
            denied(&asked, &supply, 2)
                .expect("denied")
                .starts_with("Reserved(203.0.113.11")
        );
        assert!(denied(&asked, &supply, 0).is_none());
    }

    #[test]
    fn one_that_shares_an_address_cant_make_it_its_own() {
        let supply = ten();
        let eleven = addresses(&["203.0.113.11", "2001:db8::11"]);
        let mut asked = Asked::new(vec![(eleven, Usual, false), (eleven, Usual, false)]);
        asked.record(&supply);
        asked.asks[0].2 = true;
        let results = allocate(&supply, &asked.requests());
        assert!(matches!(results[0], Err(Denial::InUse(..))), "{results:?}");
        assert!(results[1].is_ok());
    }

    #[test]
    fn what_is_taken_out_of_the_pool_stays_with_whoever_leaves_with_it() {
        let before = ten();
        let twelve = addresses(&["203.0.113.12", "2001:db8::12"]);
        let mut asked = Asked::new(vec![
            (twelve, Usual, false),
            (NONE, Usual, false),
            (NONE, Own, false),
        ]);
        let grants = asked.record(&before);
        let after = supply(&["203.0.113.30-203.0.113.39"], &["2001:db8::10-2001:db8::19"]);
        let kept = asked.record(&after);
        for (grant, kept) in grants.iter().zip(&kept) {
            let (grant, kept) = (grant.expect("given"), kept.expect("given"));
            assert_eq!(grant.addresses, kept.addresses);
            assert_eq!(
                kept.removed,
                Addresses {
                    v6: None,
                    ..grant.addresses
                }
            );
        }
        let mut new = Asked::new(vec![(twelve, Usual, false)]);
        assert_eq!(new.record(&after), [None]);
        // Who asks for another one moves.
        asked.asks[0].0 = addresses(&["203.0.113.30"]);
        let moved = asked.record(&after)[0].expect("given");
        assert_eq!(moved.addresses, addresses(&["203.0.113.30", "2001:db8::10"]));
    }

    #[test]
    fn who_gets_an_ipv4_address_gets_the_ipv6_address_that_is_in_use_with_it() {
        let mut asked = Asked::new(vec![(NONE, Own, false); 2]);
        let one = supply(&["203.0.113.10"], &["2001:db8::10"]);
        asked.record(&one);
        asked.held[1] = Held::default();
        // The IPv6 pool grew in front.
        let grown = supply(&["203.0.113.10"], &["2001:db8::1-2001:db8::10"]);
        let grants = asked.record(&grown);
        assert_eq!(grants[0].map(|g| g.addresses), grants[1].map(|g| g.addresses));
        assert_eq!(
            asked.held[0].addresses,
            addresses(&["203.0.113.10", "2001:db8::10"])
        );
    }

    #[test]
    fn a_pool_that_has_none_left_says_so_and_a_large_one_is_never_listed() {
        let small = supply(&["203.0.113.1-203.0.113.2"], &[]);
        let mut asked = Asked::new(vec![(NONE, Own, true); 3]);
        let grants = asked.record(&small);
        assert_eq!(grants.iter().flatten().count(), 2);
        let results = allocate(&small, &asked.requests());
        assert_eq!(
            results.iter().filter(|r| **r == Err(Denial::Exhausted)).count(),
            1
        );
        let large = supply(&["10.0.0.0/8"], &["2001:db8::/32"]);
        let mut asked = Asked::new(vec![(NONE, Own, true); 300]);
        let grants = asked.record(&large);
        let different: BTreeSet<_> = grants.iter().flatten().map(|g| g.addresses).collect();
        assert_eq!(different.len(), 300);
        assert!(different.iter().all(|a| a.v4.is_some() && a.v6.is_some()));
    }

    fn asks() -> impl Strategy<Value = Vec<(Addresses, Allocation, bool)>> {
        let fixed = prop::option::weighted(0.4, (0u8..7, any::<bool>()));
        let ask = (fixed, any::<bool>(), prop::bool::weighted(0.3));
        let ask = ask.prop_map(|(fixed, pool, exclusive)| {
            let fixed = fixed.map_or(NONE, |(last, both)| {
                let v4 = format!("203.0.113.{}", 10 + last);
                let v6 = format!("2001:db8::{}", 10 + last);
                if both {
                    addresses(&[&v4, &v6])
                } else {
                    addresses(&[&v4])
                }
            });
            (fixed, if pool { Own } else { Usual }, exclusive)
        });
        prop::collection::vec(ask, 0..9)
    }

    fn six() -> Supply {
        supply(&["203.0.113.10-203.0.113.15"], &["2001:db8::10-2001:db8::15"])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn nobody_shares_what_is_somebodys_own(asks in asks()) {
            let asked = Asked::new(asks);
            let results = allocate(&six(), &asked.requests());
            for (i, one) in results.iter().enumerate() {
                let Ok(one) = one else { continue };
                prop_assert!(!one.addresses.is_empty() && one.removed.is_empty());
                prop_assert!(asked.asks[i].0.iter().all(|a| one.addresses.iter().any(|b| a == b)));
                for (j, other) in results.iter().enumerate().filter(|(j, _)| *j != i && asked.asks[i].2) {
                    let Ok(other) = other else { continue };
                    let common = one.addresses.iter().any(|a| other.addresses.iter().any(|b| a == b));
                    prop_assert!(!common, "{i} and {j}: {results:?}");
                }
            }
        }

        #[test]
        fn what_is_recorded_stays_whoever_comes_and_whatever_grows(asks in asks(), more in asks()) {
            let supply = six();
            let mut asked = Asked::new(asks);
            let first = asked.record(&supply);
            let again = asked.record(&supply);
            for (one, two) in first.iter().zip(&again) {
                prop_assert_eq!(one.map(|g| g.addresses), two.map(|g| g.addresses));
                prop_assert!(two.is_none_or(|g| !g.fresh), "once recorded nothing is to be recorded");
            }
            // Others come, the pool grows at both ends.
            let grown = self::supply(
                &["203.0.113.10", "203.0.113.1-203.0.113.9", "203.0.113.11-203.0.113.25"],
                &["2001:db8::10", "2001:db8::1-2001:db8::9", "2001:db8::11-2001:db8::25"],
            );
            let before = asked.asks.len();
            let mut all = Asked::new([asked.asks.clone(), more].concat());
            all.held[..before].copy_from_slice(&asked.held);
            let later = all.record(&grown);
            for (i, grant) in first.iter().enumerate() {
                if let Some(grant) = grant {
                    prop_assert_eq!(Some(grant.addresses), later[i].map(|g| g.addresses), "{}", i);
                }
            }
        }

        /// One after the other with everything recorded, or all at once with every record lost.
        #[test]
        fn without_records_it_comes_out_as_it_did(asks in asks()) {
            let asks: Vec<_> = asks.into_iter().map(|(fixed, allocation, _)| (fixed, allocation, false)).collect();
            let supply = six();
            let mut one_by_one = Asked::new(Vec::new());
            for i in 0..asks.len() {
                let mut next = Asked::new(asks[..=i].to_vec());
                next.held[..i].copy_from_slice(&one_by_one.held);
                one_by_one = next;
                one_by_one.record(&supply);
            }
            let mut lost = Asked::new(asks);
            let bare = six();
            lost.record(&bare);
            prop_assert_eq!(lost.held, one_by_one.held);
        }

        #[test]
        fn the_order_of_requests_doesnt_matter(asks in asks()) {
            let asked = Asked::new(asks);
            let mut requests = asked.requests();
            let mut first = allocate(&six(), &requests);
            requests.reverse();
            first.reverse();
            prop_assert_eq!(first, allocate(&six(), &requests));
        }
    }
}

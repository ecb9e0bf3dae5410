//! Overlapping destinations of several policies, flattened to disjoint intervals with one verdict each.
//!
//! The order: of all policies that claim an address, the one whose prefix around it is longest wins; of
//! those with prefixes of one length, the first in the order given. An exception is a hole in its own
//! policy only.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::interval::{Family, Interval, number};

/// One policy's claim on destinations.
#[derive(Clone, Debug)]
pub struct Claim<V> {
    /// What it claims.
    pub cidrs: Vec<IpNet>,
    /// What it leaves alone.
    pub except: Vec<IpNet>,
    /// What becomes of the packets; `None` leaves them alone, in spite of later claims.
    pub verdict: Option<V>,
}

/// Flattens `claims`, the first one first in order, within one family. The result is sorted, disjoint, and
/// neighbours of one verdict are merged.
pub fn flatten<V: Copy + Eq>(claims: &[Claim<V>], family: Family) -> Vec<(Interval, V)> {
    let mut sweep = Sweep::new(claims, family);
    let mut out: Vec<(Interval, V)> = Vec::new();
    while let Some((first, last)) = sweep.next_segment() {
        let Some(verdict) = sweep.winner().and_then(|policy| claims[policy].verdict) else {
            continue;
        };
        let start = match out.last() {
            Some((top, v)) if *v == verdict && number(top.last()).checked_add(1) == Some(first) => {
                let start = top.first();
                out.pop();
                start
            }
            _ => family.address(first),
        };
        out.extend(Interval::new(start, family.address(last)).map(|i| (i, verdict)));
    }
    out
}

/// Where something begins or, one past its last address, ends.
struct Event {
    at: u128,
    starts: bool,
    /// Prefix length of a claim; `None` for an exception.
    length: Option<u8>,
    policy: usize,
    /// Tells equal prefixes of one policy apart.
    serial: usize,
}

/// Walks the boundaries in order and keeps what is open.
struct Sweep {
    events: Vec<Event>,
    next: usize,
    end: u128,
    /// Open claims, the winner first: (inverted prefix length, policy, serial).
    open: BTreeSet<(u8, usize, usize)>,
    /// How many exceptions are open, by policy.
    excepted: Vec<usize>,
}

impl Sweep {
    fn new<V>(claims: &[Claim<V>], family: Family) -> Self {
        let mut events = Vec::new();
        let mut add = |policy, net: &IpNet, length| {
            let interval = Interval::from(*net);
            if interval.family() != family {
                return;
            }
            let serial = events.len();
            let event = |at, starts| Event {
                at,
                starts,
                length,
                policy,
                serial,
            };
            events.push(event(number(interval.first()), true));
            // What reaches to the last address of all never ends.
            if let Some(after) = number(interval.last()).checked_add(1) {
                events.push(event(after, false));
            }
        };
        for (policy, claim) in claims.iter().enumerate() {
            for net in &claim.cidrs {
                add(policy, net, Some(net.prefix_len()));
            }
            for net in &claim.except {
                add(policy, net, None);
            }
        }
        events.sort_by_key(|e| e.at);
        Self {
            events,
            next: 0,
            end: u128::MAX >> (128 - u32::from(family.bits())),
            open: BTreeSet::new(),
            excepted: vec![0; claims.len()],
        }
    }

    /// Goes on to the next boundary; answers the first and last address up to the one after.
    fn next_segment(&mut self) -> Option<(u128, u128)> {
        let at = self.events.get(self.next)?.at;
        if at > self.end {
            return None;
        }
        while let Some(event) = self.events.get(self.next).filter(|e| e.at == at) {
            match event.length {
                Some(length) => {
                    let key = (u8::MAX - length, event.policy, event.serial);
                    if event.starts {
                        self.open.insert(key);
                    } else {
                        self.open.remove(&key);
                    }
                }
                None if event.starts => self.excepted[event.policy] += 1,
                None => self.excepted[event.policy] -= 1,
            }
            self.next += 1;
        }
        let last = self.events.get(self.next).map_or(self.end, |e| e.at - 1);
        Some((at, last.min(self.end)))
    }

    fn winner(&self) -> Option<usize> {
        self.open
            .iter()
            .map(|(_, policy, _)| *policy)
            .find(|policy| self.excepted[*policy] == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// The order as documented, for one address, without any cleverness.
    fn oracle(claims: &[Claim<u8>], address: IpAddr) -> Option<u8> {
        claims
            .iter()
            .enumerate()
            .filter(|(_, c)| !c.except.iter().any(|e| e.contains(&address)))
            .filter_map(|(rank, c)| {
                let longest = c
                    .cidrs
                    .iter()
                    .filter(|n| n.contains(&address))
                    .map(IpNet::prefix_len)
                    .max()?;
                Some((u8::MAX - longest, rank, c.verdict))
            })
            .min_by_key(|(length, rank, _)| (*length, *rank))
            .and_then(|(_, _, verdict)| verdict)
    }

    /// Prefixes crowd into few addresses, at the bottom and at the top of the space, so that they overlap.
    fn net(v6: bool) -> impl Strategy<Value = IpNet> {
        (any::<bool>(), 0u8..=6, 0u8..64).prop_map(move |(top, short, low)| {
            let (bits, all) = if v6 {
                (128, u128::MAX)
            } else {
                (32, u128::from(u32::MAX))
            };
            let address = if top {
                all - u128::from(low)
            } else {
                u128::from(low)
            };
            let address: IpAddr = if v6 {
                Ipv6Addr::from(address).into()
            } else {
                Ipv4Addr::from(u32::try_from(address).expect("32 bits")).into()
            };
            let length = if short == 6 && low % 4 == 0 {
                0
            } else {
                bits - short
            };
            IpNet::new(address, length).expect("length").trunc()
        })
    }

    fn claims(v6: bool) -> impl Strategy<Value = Vec<Claim<u8>>> {
        let nets = move || prop::collection::vec(net(v6), 0..5);
        let claim = (nets(), nets(), prop::option::weighted(0.8, 0u8..3));
        prop::collection::vec(
            claim.prop_map(|(cidrs, except, verdict)| Claim {
                cidrs,
                except,
                verdict,
            }),
            0..6,
        )
    }

    fn agree(
        claims: &[Claim<u8>],
        family: Family,
        probes: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), TestCaseError> {
        let flat = flatten(claims, family);
        for pair in flat.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            prop_assert!(a.0.last() < b.0.first(), "disjoint and sorted");
            prop_assert!(
                a.1 != b.1 || number(a.0.last()) + 1 < number(b.0.first()),
                "neighbours of one verdict are merged"
            );
        }
        for probe in probes {
            let found = flat.iter().find(|(i, _)| i.contains(probe)).map(|(_, v)| *v);
            prop_assert_eq!(found, oracle(claims, probe), "{}", probe);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn flattening_decides_as_the_order_says_v4(claims in claims(false), far in any::<u32>()) {
            let near = (0..80u32).flat_map(|i| [i, u32::MAX - i]).chain([far]);
            agree(&claims, Family::V4, near.map(|a| Ipv4Addr::from(a).into()))?;
        }

        #[test]
        fn flattening_decides_as_the_order_says_v6(claims in claims(true), far in any::<u128>()) {
            let near = (0..80u128).flat_map(|i| [i, u128::MAX - i]).chain([far]);
            agree(&claims, Family::V6, near.map(|a| Ipv6Addr::from(a).into()))?;
        }
    }

    #[test]
    fn an_exception_is_a_hole_in_its_own_policy_only() {
        let net = |s: &str| s.parse().expect("net");
        let claims = [
            Claim {
                cidrs: vec![net("198.51.100.0/24")],
                except: vec![net("198.51.100.9/32")],
                verdict: Some('a'),
            },
            Claim {
                cidrs: vec![net("0.0.0.0/0")],
                except: vec![],
                verdict: Some('b'),
            },
        ];
        let flat = flatten(&claims, Family::V4);
        let at = |s: &str| {
            let a: IpAddr = s.parse().expect("address");
            flat.iter().find(|(i, _)| i.contains(a)).map(|(_, v)| *v)
        };
        assert_eq!(at("198.51.100.8"), Some('a'));
        assert_eq!(at("198.51.100.9"), Some('b'));
        assert_eq!(at("203.0.113.1"), Some('b'));
        assert_eq!(flat.len(), 5);
    }
}

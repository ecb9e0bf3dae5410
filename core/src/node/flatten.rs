//! Overlapping destinations of several policies, flattened to disjoint intervals with one outcome each.
//!
//! The order: of all policies that claim a packet, the one whose prefix around its address is longest wins; of those with
//! prefixes of one length the one that claims the fewest ports with its port, all of them where it names none; of those
//! the first in the order given. An exception is a hole in its own policy only.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;

use super::interval::{Family, Interval, number};
use super::outcome::{Contender, Outcome};
use crate::ports::PortClaim;

/// Beginnings and ends of port ranges that one flattening may go through. Policies whose destinations are nested in each
/// other multiply them, each with all ports of all that it lies in.
pub(super) const MOST: usize = 16_384;

/// One policy's claim on destinations.
#[derive(Clone, Debug)]
pub struct Claim<V> {
    /// What it claims.
    pub cidrs: Vec<IpNet>,
    /// What it leaves alone.
    pub except: Vec<IpNet>,
    /// Ports of these that it claims; empty: all of them, and protocols that have none.
    pub ports: Vec<PortClaim>,
    /// What becomes of the packets; `None` leaves them alone, in spite of later claims.
    pub verdict: Option<V>,
}

/// Claims on ports that come to too many different outcomes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("policies with ports and with destinations that overlap come to too many cases")]
pub struct TooFine;

/// What `flat` gives for either family, IPv4 first.
///
/// # Errors
/// Where it fails for one of them.
pub(super) fn both<T: Clone>(flat: impl Fn(Family) -> Result<Vec<T>, TooFine>) -> Result<Vec<T>, TooFine> {
    let [v4, v6] = Family::BOTH.map(flat);
    Ok([v4?, v6?].concat())
}

/// Flattens `claims`, the first one first in order, within one family. The result is sorted, disjoint, and
/// neighbours of one outcome are merged.
///
/// # Errors
/// Where it would take more than all that is reasonable. Without ports that never happens.
pub fn flatten<V: Copy + Eq>(
    claims: &[Claim<V>],
    family: Family,
) -> Result<Vec<(Interval, Outcome<V>)>, TooFine> {
    let mut sweep = Sweep::new(claims, family);
    let mut judge = Judge::new(claims, family);
    let mut out: Vec<(Interval, Outcome<V>)> = Vec::new();
    while let Some((first, last)) = sweep.next_segment() {
        let Some(outcome) = judge.outcome(&sweep)? else {
            continue;
        };
        let start = match out.last() {
            Some((top, o)) if *o == outcome && number(top.last()).checked_add(1) == Some(first) => {
                let start = top.first();
                out.pop();
                start
            }
            _ => family.address(first),
        };
        out.extend(Interval::new(start, family.address(last)).map(|i| (i, outcome)));
    }
    Ok(out)
}

/// Policies that may win some port, each with the shortness of its prefix, and the first of those that claim all ports.
type Rivals = (Vec<(u8, usize)>, Option<usize>);

/// Finds the outcome of what is open.
struct Judge<'c, V> {
    claims: &'c [Claim<V>],
    family: Family,
    /// Some claim names ports.
    by_port: bool,
    /// Many addresses have the same rivals.
    known: HashMap<Rivals, Option<Outcome<V>>>,
    left: usize,
}

impl<'c, V: Copy + Eq> Judge<'c, V> {
    fn new(claims: &'c [Claim<V>], family: Family) -> Self {
        Self {
            claims,
            family,
            by_port: claims.iter().any(|c| !c.ports.is_empty()),
            known: HashMap::new(),
            left: MOST,
        }
    }

    fn outcome(&mut self, sweep: &Sweep) -> Result<Option<Outcome<V>>, TooFine> {
        let claims = self.claims;
        if !self.by_port {
            let winner = sweep.open().next();
            return Ok(winner
                .and_then(|(_, policy)| claims[policy].verdict)
                .map(Outcome::Any));
        }
        let rivals = self.rivals(sweep);
        if let Some(known) = self.known.get(&rivals) {
            return Ok(known.clone());
        }
        let (named, rest) = &rivals;
        let contenders: Vec<Contender<'_, V>> = named
            .iter()
            .map(|(shortness, policy)| Contender {
                shortness: *shortness,
                rank: *policy,
                ports: &claims[*policy].ports,
                verdict: claims[*policy].verdict,
            })
            .collect();
        let events = contenders.iter().map(|c| 2 * c.ports.len()).sum();
        self.left = self.left.checked_sub(events).ok_or(TooFine)?;
        let rest = rest.and_then(|policy| claims[policy].verdict);
        let outcome = Outcome::of(&contenders, rest, self.family);
        self.known.insert(rivals, outcome.clone());
        Ok(outcome)
    }

    fn rivals(&self, sweep: &Sweep) -> Rivals {
        let mut named = Vec::new();
        let mut rest = None;
        for (shortness, policy) in sweep.open() {
            // Nothing with a shorter prefix has a say in what a policy claims all ports of.
            if rest.is_some_and(|(decided, _)| decided != shortness) {
                break;
            }
            if self.claims[policy].ports.is_empty() {
                rest = rest.or(Some((shortness, policy)));
            } else if named.last() != Some(&(shortness, policy)) {
                named.push((shortness, policy));
            }
        }
        (named, rest.map(|(_, policy)| policy))
    }
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

    /// Open claims but those with an exception, the longest prefix first and then in order: how short the prefix is, and
    /// whose.
    fn open(&self) -> impl Iterator<Item = (u8, usize)> {
        let open = self
            .open
            .iter()
            .map(|(shortness, policy, _)| (*shortness, *policy));
        open.filter(|(_, policy)| self.excepted[*policy] == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use spillway_crds::hub::Protocol;

    use super::*;
    use crate::ports::{PROTOCOLS, number as number_of};

    /// The order as documented, for one packet, without any cleverness.
    fn oracle(claims: &[Claim<u8>], address: IpAddr, packet: Option<(Protocol, u16)>) -> Option<u8> {
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
                let fewest = if c.ports.is_empty() {
                    u32::MAX
                } else {
                    let (protocol, port) = packet?;
                    let around = c.ports.iter().filter(|p| p.contains(protocol, port));
                    around.map(PortClaim::width).min()?
                };
                Some((u8::MAX - longest, fewest, rank, c.verdict))
            })
            .min_by_key(|(length, fewest, rank, _)| (*length, *fewest, *rank))
            .and_then(|(_, _, _, verdict)| verdict)
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

    /// Ports crowd as well, at both ends of their space.
    fn port() -> impl Strategy<Value = PortClaim> {
        let protocol = prop::sample::select(PROTOCOLS.to_vec());
        (protocol, any::<bool>(), 0u16..6, 0u16..8).prop_map(|(protocol, top, first, more)| {
            let (first, last) = match more {
                _ if protocol == Protocol::Icmp => (0, u16::MAX),
                7 => (0, u16::MAX),
                more if top => (u16::MAX - first - more, u16::MAX - first),
                more => (1 + first, 1 + first + more),
            };
            PortClaim {
                protocol,
                first,
                last,
            }
        })
    }

    fn claims(v6: bool) -> impl Strategy<Value = Vec<Claim<u8>>> {
        let nets = move || prop::collection::vec(net(v6), 0..5);
        let ports = prop::option::of(prop::collection::vec(port(), 1..4));
        let claim = (nets(), nets(), ports, prop::option::weighted(0.8, 0u8..3));
        prop::collection::vec(
            claim.prop_map(|(cidrs, except, ports, verdict)| Claim {
                cidrs,
                except,
                ports: ports.unwrap_or_default(),
                verdict,
            }),
            0..6,
        )
    }

    /// One packet of each kind that claims could tell apart.
    fn packets() -> Vec<Option<(Protocol, u16)>> {
        let ports = (0..16).chain(u16::MAX - 15..=u16::MAX).chain([4_444]);
        let ports: Vec<u16> = ports.collect();
        let all = PROTOCOLS
            .iter()
            .flat_map(|protocol| ports.iter().map(|port| Some((*protocol, *port))));
        all.chain([None]).collect()
    }

    fn agree(
        claims: &[Claim<u8>],
        family: Family,
        probes: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), TestCaseError> {
        let flat = flatten(claims, family).expect("few");
        for pair in flat.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            prop_assert!(a.0.last() < b.0.first(), "disjoint and sorted");
            prop_assert!(
                a.1 != b.1 || number(a.0.last()) + 1 < number(b.0.first()),
                "neighbours of one outcome are merged"
            );
        }
        let packets = packets();
        for probe in probes {
            let outcome = flat.iter().find(|(i, _)| i.contains(probe)).map(|(_, o)| o);
            for packet in &packets {
                // A protocol that nobody can name.
                let (protocol, port) = packet.map_or((47, 0), |(p, port)| (number_of(p, family), port));
                let found = outcome.and_then(|o| o.on(protocol, port));
                prop_assert_eq!(found, oracle(claims, probe, *packet), "{} {:?}", probe, packet);
            }
            if let Some(Outcome::ByPort(by_port)) = outcome {
                prop_assert!(!by_port.ports.is_empty());
                for pair in by_port.ports.windows(2) {
                    let ((a, v), (b, w)) = (pair[0], pair[1]);
                    let apart = a.protocol < b.protocol || u32::from(a.last) + 1 < u32::from(b.first);
                    prop_assert!(a < b && (apart || (v != w && a.last < b.first)), "{:?}", pair);
                }
                prop_assert!(by_port.ports.iter().all(|(_, verdict)| *verdict != by_port.rest));
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

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
                ports: vec![],
                verdict: Some('a'),
            },
            Claim {
                cidrs: vec![net("0.0.0.0/0")],
                except: vec![],
                ports: vec![],
                verdict: Some('b'),
            },
        ];
        let flat = flatten(&claims, Family::V4).expect("no ports");
        let at = |s: &str| {
            let a: IpAddr = s.parse().expect("address");
            let found = flat.iter().find(|(i, _)| i.contains(a));
            found.and_then(|(_, outcome)| outcome.on(6, 443))
        };
        assert_eq!(at("198.51.100.8"), Some('a'));
        assert_eq!(at("198.51.100.9"), Some('b'));
        assert_eq!(at("203.0.113.1"), Some('b'));
        assert_eq!(flat.len(), 5);
    }

    /// Destinations of `layers` policies, each within the one before, `each` of them with ports of its own.
    fn nested(layers: u8, each: u16) -> Vec<Claim<u8>> {
        (0..layers)
            .map(|layer| {
                let port = |n| PortClaim {
                    protocol: Protocol::Tcp,
                    first: 1 + u16::from(layer) * 500 + n * 2,
                    last: 1 + u16::from(layer) * 500 + n * 2,
                };
                let net = IpNet::new(Ipv4Addr::new(198, 51, 100, 0).into(), layer).expect("length");
                Claim {
                    cidrs: vec![net.trunc()],
                    except: vec![],
                    ports: (0..each).map(port).collect(),
                    verdict: Some(layer),
                }
            })
            .collect()
    }

    #[test]
    fn what_would_multiply_without_end_is_given_up() {
        assert!(flatten(&nested(3, 64), Family::V4).is_ok());
        assert_eq!(flatten(&nested(32, 200), Family::V4), Err(TooFine));
        // The same ports at many places are one table.
        let mut wide = nested(1, 64);
        wide[0].cidrs = (0..=255)
            .map(|n| IpNet::new(Ipv4Addr::new(198, 51, n, 0).into(), 25).expect("length"))
            .collect();
        assert_eq!(flatten(&wide, Family::V4).expect("one table").len(), 256);
    }
}

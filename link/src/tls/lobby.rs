//! Connections of one kind, bounded, and shared out among those who make them: where one more would be too many, the oldest
//! of whoever has most has to go. So a flood from somewhere displaces itself first, and who is quick gets through.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::hub::Crowd;

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// In all.
    pub(crate) total: usize,
    /// Of one maker.
    pub(crate) each: usize,
}

/// Told of every connection that had to go.
pub(crate) type Displaced = Arc<dyn Fn(Crowd) + Send + Sync>;

/// The connections of one kind, by who made them.
pub(crate) struct Lobby<K> {
    crowd: Crowd,
    limits: Limits,
    displaced: Displaced,
    held: Mutex<Held<K>>,
}

struct Held<K> {
    next: u64,
    total: usize,
    by_maker: HashMap<K, BTreeMap<u64, CancellationToken>>,
}

impl<K: Clone + Eq + Hash> Held<K> {
    /// Takes the oldest of this maker out.
    fn oldest_of(&mut self, maker: &K) -> Option<CancellationToken> {
        let own = self.by_maker.get_mut(maker)?;
        let (_, token) = own.pop_first()?;
        self.total -= 1;
        if own.is_empty() {
            self.by_maker.remove(maker);
        }
        Some(token)
    }

    /// Who has to give one up for `maker` to have one more.
    fn gives_way(&self, maker: &K, limits: Limits) -> Option<K> {
        if self
            .by_maker
            .get(maker)
            .is_some_and(|own| own.len() >= limits.each)
        {
            return Some(maker.clone());
        }
        if self.total < limits.total {
            return None;
        }
        let most = self.by_maker.iter().max_by_key(|(_, own)| own.len());
        most.map(|(maker, _)| maker.clone())
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Lobby<K> {
    pub(crate) fn new(crowd: Crowd, limits: Limits, displaced: Displaced) -> Arc<Self> {
        Arc::new(Self {
            crowd,
            limits,
            displaced,
            held: Mutex::new(Held {
                next: 0,
                total: 0,
                by_maker: HashMap::new(),
            }),
        })
    }

    /// A place for one more; somebody else's may end for it.
    pub(crate) fn enter(self: &Arc<Self>, maker: K) -> Place {
        let token = CancellationToken::new();
        let (number, gone) = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            let gone = held
                .gives_way(&maker, self.limits)
                .and_then(|m| held.oldest_of(&m));
            let number = held.next;
            held.next += 1;
            held.total += 1;
            held.by_maker
                .entry(maker.clone())
                .or_default()
                .insert(number, token.clone());
            (number, gone)
        };
        if let Some(gone) = gone {
            gone.cancel();
            (self.displaced)(self.crowd);
        }
        let lobby = self.clone();
        Place {
            ended: token,
            leave: Some(Box::new(move || lobby.leave(&maker, number))),
        }
    }

    fn leave(&self, maker: &K, number: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.by_maker.get_mut(maker)
            && own.remove(&number).is_some()
        {
            if own.is_empty() {
                held.by_maker.remove(maker);
            }
            held.total -= 1;
        }
    }
}

/// A connection's right to be there. Given back when it is dropped.
pub(crate) struct Place {
    /// Cancelled when the connection has to go.
    pub(crate) ended: CancellationToken,
    leave: Option<Box<dyn FnOnce() + Send>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            leave();
        }
    }
}

/// Where a stranger comes from, as far as it can't choose that freely: a host has a whole /64 of IPv6.
pub(crate) fn source(peer: Option<SocketAddr>) -> IpAddr {
    match peer.map(|p| p.ip().to_canonical()) {
        Some(IpAddr::V6(ip)) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) >> 64 << 64)),
        Some(ip) => ip,
        None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn lobby(total: usize, each: usize) -> (Arc<Lobby<u8>>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let displaced = count.clone();
        let lobby = Lobby::new(
            Crowd::Handshake,
            Limits { total, each },
            Arc::new(move |_| _ = displaced.fetch_add(1, Ordering::Relaxed)),
        );
        (lobby, count)
    }

    proptest! {
        #[test]
        fn never_too_many_and_who_has_least_loses_none(
            total in 1usize..12, each in 1usize..12, events in prop::collection::vec((0u8..4, any::<bool>()), 0..80),
        ) {
            let (lobby, displaced) = lobby(total, each);
            let mut places: Vec<(u8, Place)> = Vec::new();
            let mut gone = 0;
            for (maker, enters) in events {
                if !enters {
                    if let Some(at) = places.iter().position(|(m, _)| *m == maker) {
                        drop(places.remove(at));
                    }
                    continue;
                }
                let count = |m: u8, places: &[(u8, Place)]| places.iter().filter(|(o, _)| *o == m).count();
                let most = (0..4).map(|m| count(m, &places)).max().unwrap_or(0);
                let place = lobby.enter(maker);
                prop_assert!(!place.ended.is_cancelled(), "the newest is never the one to go");
                let before = places.len();
                let mut loser = None;
                let counts: Vec<_> = (0..4).map(|m| count(m, &places)).collect();
                places.retain(|(m, p)| {
                    if p.ended.is_cancelled() {
                        loser = Some(*m);
                    }
                    !p.ended.is_cancelled()
                });
                gone += before - places.len();
                if let Some(loser) = loser {
                    let own = loser == maker && counts[usize::from(maker)] >= each;
                    prop_assert!(own || counts[usize::from(loser)] == most);
                }
                places.push((maker, place));
                prop_assert!(places.len() <= total);
                prop_assert!((0..4).all(|m| count(m, &places) <= each));
                prop_assert_eq!(displaced.load(Ordering::Relaxed), gone);
            }
            drop(places);
            let held = lobby.held.lock().expect("no panic");
            prop_assert!(held.total == 0 && held.by_maker.is_empty());
        }
    }

    #[test]
    fn a_host_cannot_choose_many_sources() {
        let of = |text: &str| source(Some(text.parse().expect("an address")));
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff:1]:2"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:2"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
    }
}

//! Which connection-tracking entries agree with the desired state.
//!
//! NAT is decided by a connection's first packet and then kept. A flow that began before its pod was
//! selected, or under another identity, would be carried on past the new rules (or be dropped by their
//! guards for ever), so its entry is deleted: the next packet starts the connection anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use spillway_crds::hub::PortRange;
use spillway_crds::member::PolicyRef;

use super::interval::Interval;
use super::outcome::Outcome;

/// What becomes of a selected packet.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Verdict {
    /// It leaves with this identity.
    Identity(u16),
    /// It leaves with this identity if its flow begins now. A flow that began under another of the same policy whose
    /// gateway is there as well goes on as it began.
    Prefer(u16, Others),
    /// The same, as far as what its policy's pods may send isn't used up; else it is dropped.
    Metered(Meter, u16, Others),
    /// It is dropped.
    Block,
    /// It is dropped until one of these identities' gateways is back. Their flows' entries stay, so that they can go
    /// on then.
    Wait(Others),
}

/// Which limit a packet counts against: one a policy.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Meter([u8; 6]);

impl Meter {
    /// The limit of `policy`. Named by the policy alone, so that an edit of anything else leaves it and what it has saved up.
    pub fn of(policy: &PolicyRef) -> Self {
        let namespace = policy.namespace.as_deref().unwrap_or_default();
        let digest = Sha256::digest(format!("{namespace}/{}", policy.name));
        let mut name = [0; 6];
        name.copy_from_slice(&digest[..6]);
        Self(name)
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Further identities of a policy, at most as many as a policy has gateways.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Others([u16; 8]);

impl Others {
    /// The identities.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.0.into_iter().filter(|id| *id != 0)
    }
}

impl FromIterator<u16> for Others {
    fn from_iter<I: IntoIterator<Item = u16>>(identities: I) -> Self {
        let mut out = Self::default();
        for (slot, id) in out.0.iter_mut().zip(identities) {
            *slot = id;
        }
        out
    }
}

impl Verdict {
    /// Identities that packets leave with under this verdict, that of new flows first.
    pub fn identities(self) -> impl Iterator<Item = u16> {
        let (first, others) = match self {
            Self::Identity(id) => (Some(id), Others::default()),
            Self::Prefer(id, others) | Self::Metered(_, id, others) => (Some(id), others),
            Self::Block | Self::Wait(_) => (None, Others::default()),
        };
        first.into_iter().chain(others.iter())
    }

    /// The identity of new flows.
    pub fn identity(self) -> Option<u16> {
        self.identities().next()
    }

    /// Whether a flow of `identity` agrees with this verdict.
    fn spares(self, identity: u16) -> bool {
        let waits = match self {
            Self::Wait(others) => others.iter().any(|id| id == identity),
            _ => false,
        };
        waits || self.identities().any(|id| id == identity)
    }
}

/// One connection-tracking entry, as far as it matters here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    /// Source of the original direction.
    pub source: IpAddr,
    /// Source of the reply direction: where the flow really goes, after any DNAT.
    pub destination: IpAddr,
    /// Destination of the reply direction: the address the flow leaves with, after any SNAT.
    pub translated: IpAddr,
    /// The port that it leaves with, or its ICMP identifier; 0 for protocols that have neither.
    pub port: u16,
    /// The protocol's number.
    pub protocol: u8,
    /// The port that it really goes to; anything for protocols without ports.
    pub to_port: u16,
    /// The entry's mark.
    pub mark: u32,
}

/// Addresses that flows of one identity leave with, each with this node's ports of it unless all are.
pub type Ways = BTreeMap<IpAddr, Option<Vec<PortRange>>>;

/// What entries must look like.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Flows {
    /// Selected pods' addresses, with their class.
    pub pods: BTreeMap<IpAddr, String>,
    /// Destinations by class, sorted and disjoint.
    pub classes: BTreeMap<String, Vec<(Interval, Outcome<Verdict>)>>,
    /// Destinations that no policy takes, sorted and disjoint.
    pub local: Vec<Interval>,
    /// For each identity of the plan, what its flows leave this node with: an address, and where that isn't this
    /// node's alone, its ports of it, sorted.
    pub leaves_with: BTreeMap<u16, Ways>,
    /// For each identity that this node accepts from the tunnel, the egress IPs by the overlay prefixes that may
    /// use it.
    pub granted: BTreeMap<u16, BTreeMap<IpNet, BTreeSet<IpAddr>>>,
    /// Addresses that only our own NAT translates to: this node's overlay addresses, the egress IPs it carries and
    /// those of whose ports it has a share.
    pub ours: BTreeSet<IpAddr>,
    /// The federation's overlay ranges.
    pub overlay: Vec<IpNet>,
    /// Addresses that were in `ours` before, see [`Flows::after`].
    pub abandoned: BTreeSet<IpAddr>,
    /// Addresses of selected pods that ended and whose addresses no other pod has. What their network namespaces
    /// still have to send must meet the guards under the identity it began with; without its entry it would leave
    /// like anybody's. Filled by the caller.
    pub departed: BTreeSet<IpAddr>,
    /// Where only flows from these sources can disagree, since all others were judged alike before; see
    /// [`Flows::narrowed`].
    pub only: Option<BTreeSet<IpAddr>>,
}

/// The identity in a connection mark that is ours.
pub const IDENTITY_MASK: u32 = 0x0000_ffff;

/// Bits of a connection mark by which an identity is told from what others keep in the same low bits, such as the
/// AWS VPC CNI's 0x80: without the tag a connection isn't ours, whatever else its mark says.
pub const TAG_MASK: u32 = 0xff00_0000;

/// What those bits hold in a connection of ours.
pub const TAG: u32 = 0x5300_0000;

/// The connection mark of an identity, without the bits that are others'.
pub const fn connection_mark(identity: u16) -> u32 {
    TAG | identity as u32
}

/// The identity in a connection mark; `None` where the connection isn't ours.
pub fn identity_of(mark: u32) -> Option<u16> {
    let identity = u16::try_from(mark & IDENTITY_MASK).ok()?;
    (mark & TAG_MASK == TAG && identity != 0).then_some(identity)
}

impl Flows {
    /// True where nothing of ours is in any flow's way, so that no dump is needed.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.granted.is_empty() && self.ours.is_empty() && self.abandoned.is_empty()
    }

    /// The same, with what `previous` had and this hasn't marked as abandoned: flows that our NAT gave such
    /// an address would keep it until they end.
    #[must_use]
    pub fn after(&self, previous: &Self) -> Self {
        Self {
            abandoned: previous.ours.difference(&self.ours).copied().collect(),
            ..self.clone()
        }
    }

    /// The same, to be held only against flows from sources that `previous`, which all flows agreed with, judged
    /// otherwise, where these can be told.
    #[must_use]
    pub fn narrowed(self, previous: &Self) -> Self {
        // What was right stays right where ports were only added.
        let same_leaves = |(id, now): (&u16, &Ways)| {
            previous.leaves_with.get(id).is_none_or(|before| {
                before
                    .iter()
                    .all(|(address, ports)| match (ports, now.get(address)) {
                        (Some(ports), Some(Some(now))) => ports
                            .iter()
                            .all(|p| now.iter().any(|n| n.first <= p.first && p.last <= n.last)),
                        (ports, now) => now == Some(ports),
                    })
            })
        };
        let comparable = self.abandoned.is_empty()
            && self.local == previous.local
            && self.granted == previous.granted
            && self.ours == previous.ours
            && self.overlay == previous.overlay
            && self.leaves_with.iter().all(same_leaves);
        let only = comparable.then(|| {
            // Classes are many pods' and compared once.
            let differ: BTreeSet<&String> = self
                .classes
                .iter()
                .filter(|(name, class)| previous.classes.get(*name) != Some(*class))
                .map(|(name, _)| name)
                .collect();
            let other = |(address, class): &(&IpAddr, &String)| {
                previous.pods.get(*address) != Some(*class) || differ.contains(*class)
            };
            let gone = previous.pods.keys().filter(|a| !self.pods.contains_key(*a));
            let changed = self.pods.iter().filter(other).map(|(address, _)| address);
            gone.chain(changed).copied().collect()
        });
        Self { only, ..self }
    }

    /// True where the entry must go.
    pub fn cut(&self, flow: &Flow) -> bool {
        let identity = identity_of(flow.mark);
        if self.overlay.iter().any(|p| p.contains(&flow.source)) && !self.ours.contains(&flow.source) {
            let granted = identity.and_then(|id| self.granted.get(&id));
            return !granted
                .into_iter()
                .flatten()
                .any(|(prefix, leaves)| prefix.contains(&flow.source) && leaves.contains(&flow.translated));
        }
        match self.verdict(flow) {
            Some(verdict) => !identity.is_some_and(|id| verdict.spares(id) && self.leaves(id, flow)),
            None => {
                !self.departed.contains(&flow.source)
                    && flow.translated != flow.source
                    && identity.is_some()
                    && (self.ours.contains(&flow.translated)
                        || self.abandoned.contains(&flow.translated)
                        || self.overlay.iter().any(|p| p.contains(&flow.translated)))
            }
        }
    }

    /// Whether `flow` was translated as its identity demands.
    fn leaves(&self, identity: u16, flow: &Flow) -> bool {
        let ways = self.leaves_with.get(&identity);
        ways.and_then(|w| w.get(&flow.translated))
            .is_some_and(|ports| match ports {
                None => true,
                Some(ranges) => ranges.iter().any(|r| r.first <= flow.port && flow.port <= r.last),
            })
    }

    fn verdict(&self, flow: &Flow) -> Option<Verdict> {
        self.judge(flow.source, flow.destination, (flow.protocol, flow.to_port))
    }

    /// What becomes of a pod's packets to a destination, by their protocol's number and port, 0 where it has none.
    /// `None`: no policy takes them.
    pub fn judge(&self, pod: IpAddr, destination: IpAddr, (protocol, port): (u8, u16)) -> Option<Verdict> {
        let class = self.classes.get(self.pods.get(&pod)?)?;
        if find(&self.local, destination, |i| i).is_some() {
            return None;
        }
        let (_, outcome) = find(class, destination, |(i, _)| i)?;
        outcome.on(protocol, port)
    }
}

fn find<T>(sorted: &[T], address: IpAddr, interval: impl Fn(&T) -> &Interval) -> Option<&T> {
    let after = sorted.partition_point(|t| interval(t).first() <= address);
    sorted[..after].last().filter(|t| interval(t).contains(address))
}

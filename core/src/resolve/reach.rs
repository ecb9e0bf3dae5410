//! How nodes of different partitions reach each other: each calls the other, one side calls, relays pass packets on between
//! them, or not at all.
//!
//! ```text
//!  gateways and their users ─► pairs of nodes ─► way ─┬─► Member.status.paths
//!                                                     └─ neither can call ─► relays, ports ─► plans
//! ```
//!
//! A relay is a gateway's node of a third member that both can call. It is told which pairs of nodes it is for, and the
//! ends are told through which relays: both sides' plans come out of one [`Reach`], so that they agree.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use spillway_crds::hub::{MemberNode, MemberPath, PathKind, Reachability};
use spillway_crds::member::{GatewayNodeState, NodeRef};

use super::gateway::Gateways;
use super::paths::Encrypted;
use super::{Federation, MemberInput};
use crate::plan::Digest;

/// Most relays of one pair of members.
const MOST_RELAYS: usize = 4;
/// Most nodes that a status names.
const MOST_NAMES: usize = 16;
/// Ports that stand for nodes at relays.
const PORTS: std::ops::RangeInclusive<u16> = 32_768..=65_535;

/// A node: its member and its name.
pub(super) type Node<'a> = (&'a str, &'a str);

/// Which of two nodes can begin to talk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// Either.
    Both,
    /// The first alone, since nobody can call it.
    First,
    /// The second alone.
    Second,
    /// Neither can call the other.
    Neither,
}

/// The way between two nodes, given each one's partition and whether other partitions can call it.
pub(super) fn way(a: (&str, bool), b: (&str, bool)) -> Way {
    match (a.0 == b.0, a.1, b.1) {
        (true, ..) | (false, true, true) => Way::Both,
        (false, false, true) => Way::First,
        (false, true, false) => Way::Second,
        (false, false, false) => Way::Neither,
    }
}

/// The address and port at which other partitions reach a node's WireGuard, where what it reported is one.
pub(super) fn endpoint(node: &MemberNode) -> Option<SocketAddr> {
    node.endpoint.as_ref()?.parse().ok()
}

fn callable(member: &MemberInput, node: &MemberNode) -> bool {
    member.reachability == Reachability::Routed || endpoint(node).is_some()
}

/// A gateway's node that other partitions can call.
struct Candidate {
    node: NodeRef,
    state: GatewayNodeState,
}

/// Nodes of two members between which paths are needed: each of the first with each of the second.
type Product<'a> = (BTreeSet<&'a str>, BTreeSet<&'a str>);

/// How members of different partitions reach each other.
#[derive(Default)]
pub(super) struct Reach<'a> {
    /// For statuses, by member.
    paths: BTreeMap<&'a str, Vec<MemberPath>>,
    /// By pair of members, the first by name first.
    relays: BTreeMap<(&'a str, &'a str), Vec<NodeRef>>,
    /// Nodes that nobody can call, of those that need a path, by member.
    uncallable: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// Members and the nodes that they reach through relays.
    through: BTreeSet<(&'a str, Node<'a>)>,
    /// By member whose nodes are relays: pairs of nodes between which they pass packets on, each at its first by name.
    passed: BTreeMap<String, BTreeMap<Node<'a>, BTreeSet<Node<'a>>>>,
    /// Of every node that needs a relay.
    ports: BTreeMap<Node<'a>, u16>,
}

impl<'a> Reach<'a> {
    /// `users` are each gateway's.
    pub(super) fn new(
        federation: &Federation<'a>,
        gateways: &'a Gateways<'a>,
        users: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        encrypted: &Encrypted<'a>,
    ) -> Self {
        let needed = needed(federation, gateways, users);
        let candidates = candidates(federation, gateways);
        let mut reach = Self::default();
        for ((a, b), products) in needed {
            let pair = Pair::new(federation, (a, b), &products);
            let relays = if pair.has(false, false) {
                relays((a, b), &candidates)
            } else {
                Vec::new()
            };
            let encrypted = encrypted.between(a, b);
            for (member, nodes) in [a, b]
                .into_iter()
                .zip(&pair.cannot)
                .filter(|(_, n)| encrypted && !n.is_empty())
            {
                reach.uncallable.entry(member).or_default().extend(nodes);
            }
            for ways in [(true, true), (true, false), (false, true), (false, false)] {
                if pair.has(ways.0, ways.1) {
                    let (of_a, of_b) = pair.describe(ways, encrypted, &relays);
                    reach.paths.entry(a).or_default().push(of_a);
                    reach.paths.entry(b).or_default().push(of_b);
                }
            }
            if encrypted && !relays.is_empty() {
                for (xs, ys) in &products {
                    for x in xs.iter().filter(|x| pair.cannot[0].contains(*x)) {
                        for y in ys.iter().filter(|y| pair.cannot[1].contains(*y)) {
                            reach.relay((a, *x), (b, *y), &relays);
                        }
                    }
                }
                reach.relays.insert((a, b), relays);
            }
        }
        reach.number();
        for paths in reach.paths.values_mut() {
            paths.sort_by(|x, y| (&x.member, x.kind, &x.nodes).cmp(&(&y.member, y.kind, &y.nodes)));
        }
        reach
    }

    fn relay(&mut self, x: Node<'a>, y: Node<'a>, relays: &[NodeRef]) {
        self.through.extend([(x.0, y), (y.0, x)]);
        self.ports.extend([(x, 0), (y, 0)]);
        for relay in relays {
            let passed = self.passed.entry(relay.member.clone()).or_default();
            passed.entry(x).or_default().insert(y);
        }
    }

    /// Gives each node that needs a relay a port of its own. By hash, so that nodes that come and go hardly ever change
    /// others'; a node whose port is another's for a moment reaches nobody, since its keys don't fit.
    fn number(&mut self) {
        let count = PORTS.end() - PORTS.start();
        let mut taken = BTreeSet::new();
        for ((member, node), given) in &mut self.ports {
            let digest = Digest::of(format!("relay/{member}/{node}").as_bytes());
            let [high, low, ..] = *digest.as_bytes();
            let first = u16::from_be_bytes([high, low]) & count;
            let free = (0..=count)
                .map(|step| PORTS.start() + (first.wrapping_add(step) & count))
                .find(|port| taken.insert(*port));
            *given = free.unwrap_or(0);
        }
    }

    /// How `member` reaches others.
    pub(super) fn paths(&self, member: &str) -> &[MemberPath] {
        self.paths.get(member).map_or(&[], Vec::as_slice)
    }

    /// Pairs of members of which one relays for the other: both need keys of each other.
    pub(super) fn hops<'b>(
        &'b self,
        federation: &'b Federation<'a>,
    ) -> impl Iterator<Item = (&'a str, &'a str)> + 'b {
        let hop = move |end: &'a str, relay: &NodeRef| {
            Some((end, *federation.members.get_key_value(relay.member.as_str())?.0))
        };
        self.relays.iter().flat_map(move |((a, b), relays)| {
            let both = relays.iter().flat_map(move |r| [hop(a, r), hop(b, r)]);
            both.flatten()
        })
    }

    /// Nodes of `member` that need paths to other partitions and that none of these can call.
    pub(super) fn uncallable(&self, member: &str) -> impl Iterator<Item = &'a str> {
        self.uncallable.get(member).into_iter().flatten().copied()
    }

    /// Relays through which nodes of `member` that can't be called reach `peer`; none where they reach it otherwise.
    pub(super) fn through(&self, member: &str, peer: Node<'_>) -> Vec<NodeRef> {
        let pair = (member.min(peer.0), member.max(peer.0));
        let needed = self.through.contains(&(member, peer));
        let relays = self.relays.get(&pair).filter(|_| needed);
        relays.cloned().unwrap_or_default()
    }

    /// The port of `node` at relays; 0 where it needs none.
    pub(super) fn port(&self, node: Node<'_>) -> u16 {
        self.ports.get(&node).copied().unwrap_or(0)
    }

    /// Nodes that `member`'s nodes need as peers for relaying: relays, and the ends between which they are ones.
    pub(super) fn peers(&self, member: &str) -> BTreeSet<Node<'_>> {
        let relays = self
            .relays
            .iter()
            .filter(|((a, b), _)| *a == member || *b == member);
        let relays = relays.flat_map(|(_, relays)| relays);
        let ends = self.passed.get(member).into_iter().flatten();
        let ends = ends.flat_map(|(a, with)| with.iter().chain([a]).copied());
        relays
            .map(|r| (r.member.as_str(), r.node.as_str()))
            .chain(ends)
            .collect()
    }

    /// Nodes between which and `peer` the nodes of `member` pass packets on, each pair at its first node.
    pub(super) fn relayed(&self, member: &str, peer: Node<'_>) -> Vec<NodeRef> {
        let with = self.passed.get(member).and_then(|p| p.get(&peer));
        with.into_iter()
            .flatten()
            .map(|(member, node)| NodeRef::new(*member, *node))
            .collect()
    }
}

/// Who needs a path to whom across partitions: gateways' nodes to all nodes of users, and to each other.
fn needed<'a>(
    federation: &Federation<'a>,
    gateways: &'a Gateways<'a>,
    users: &BTreeMap<&'a str, BTreeSet<&'a str>>,
) -> BTreeMap<(&'a str, &'a str), Vec<Product<'a>>> {
    let mut needed: BTreeMap<_, Vec<Product<'a>>> = BTreeMap::new();
    for gateway in gateways.iter().filter(|g| g.usable) {
        let users = users.get(gateway.input.name.as_str());
        let hosts = |m: &str| -> Option<BTreeSet<&'a str>> {
            Some(gateway.hosts.get(m)?.iter().map(|n| n.name.as_str()).collect())
        };
        let ends: BTreeSet<&'a str> = gateway
            .hosts
            .keys()
            .chain(users.into_iter().flatten())
            .copied()
            .collect();
        for host in gateway.hosts.keys().copied() {
            for end in ends.iter().copied().filter(|end| *end != host) {
                if partition(federation, host) == partition(federation, end) {
                    continue;
                }
                let user = users.is_some_and(|u| u.contains(end));
                let all = || federation.nodes.get(end).map(|n| n.keys().copied().collect());
                let (Some(of_host), Some(of_end)) = (hosts(host), if user { all() } else { hosts(end) })
                else {
                    continue;
                };
                let (pair, product) = if host < end {
                    ((host, end), (of_host, of_end))
                } else {
                    ((end, host), (of_end, of_host))
                };
                let products = needed.entry(pair).or_default();
                if !products.contains(&product) {
                    products.push(product);
                }
            }
        }
    }
    needed
}

fn partition<'a>(federation: &Federation<'a>, member: &str) -> &'a str {
    federation
        .members
        .get(member)
        .map_or("", |m| m.partition.as_str())
}

fn candidates(federation: &Federation<'_>, gateways: &Gateways<'_>) -> Vec<Candidate> {
    let mut found: BTreeMap<&NodeRef, GatewayNodeState> = BTreeMap::new();
    for gateway in gateways.iter().filter(|g| g.usable) {
        found.extend(gateway.order.iter().map(|n| (&n.node, n.state)));
    }
    let can = |node: &NodeRef| {
        let member = federation.members.get(node.member.as_str());
        let found = federation
            .nodes
            .get(node.member.as_str())
            .and_then(|n| n.get(node.node.as_str()));
        member.zip(found).is_some_and(|(m, n)| callable(m, n))
    };
    let all = found.into_iter().filter(|(node, _)| can(node));
    all.map(|(node, state)| Candidate {
        node: node.clone(),
        state,
    })
    .collect()
}

/// Nodes that can be called from everywhere, of other members than these two: ready ones first, then by rendezvous hash, so
/// that pairs spread over relays.
fn relays((a, b): (&str, &str), candidates: &[Candidate]) -> Vec<NodeRef> {
    let third = candidates
        .iter()
        .filter(|c| c.node.member != a && c.node.member != b);
    let mut ranked: Vec<_> = third
        .map(|c| {
            let weight = Digest::of(format!("{a}/{b}/{}", c.node).as_bytes());
            (c.state, Reverse(weight), &c.node)
        })
        .collect();
    ranked.sort();
    ranked
        .into_iter()
        .take(MOST_RELAYS)
        .map(|(_, _, node)| node.clone())
        .collect()
}

/// Two members with those of their nodes that need paths to the other's.
struct Pair<'a> {
    names: (&'a str, &'a str),
    /// Nodes of each that other partitions can call, and those that they can't.
    can: [BTreeSet<&'a str>; 2],
    cannot: [BTreeSet<&'a str>; 2],
}

impl<'a> Pair<'a> {
    fn new(federation: &Federation<'a>, names: (&'a str, &'a str), products: &[Product<'a>]) -> Self {
        let mut pair = Self {
            names,
            can: Default::default(),
            cannot: Default::default(),
        };
        for (side, member) in [names.0, names.1].into_iter().enumerate() {
            let Some((input, nodes)) = federation.members.get(member).zip(federation.nodes.get(member))
            else {
                continue;
            };
            let all = products.iter().flat_map(|(a, b)| if side == 0 { a } else { b });
            for name in all.copied() {
                let can = nodes.get(name).is_some_and(|n| callable(input, n));
                let set = if can { &mut pair.can } else { &mut pair.cannot };
                set[side].insert(name);
            }
        }
        pair
    }

    fn side(&self, can: bool, side: usize) -> &BTreeSet<&'a str> {
        if can { &self.can[side] } else { &self.cannot[side] }
    }

    /// Whether there are nodes of the first that can be called, or can't, and of the second likewise.
    fn has(&self, a: bool, b: bool) -> bool {
        !self.side(a, 0).is_empty() && !self.side(b, 1).is_empty()
    }

    /// What to say of paths between nodes of the first that can be called, or can't, and of the second likewise, to either.
    fn describe(&self, can: (bool, bool), encrypted: bool, relays: &[NodeRef]) -> (MemberPath, MemberPath) {
        let (a, b) = self.names;
        let (kind, reason) = match way(("", can.0), ("other", can.1)) {
            Way::Both => (PathKind::Direct, format!("{a} and {b} can call each other")),
            _ if !encrypted => (
                PathKind::None,
                "behind a NAT or a firewall only encrypted paths are possible, and the encryption of the gateways that they \
                 share is Never: make it CrossPartition"
                    .into(),
            ),
            Way::First => (PathKind::Nat, calls(a, b)),
            Way::Second => (PathKind::Nat, calls(b, a)),
            Way::Neither if relays.is_empty() => (
                PathKind::None,
                format!(
                    "no other partition can call {a} or {b}, and no gateway of a third member has a node that both could call: \
                     give a node of either an endpoint (annotation spillway.io/endpoint), or a gateway to a member that can \
                     be called"
                ),
            ),
            Way::Neither => (
                PathKind::Relay,
                format!("no other partition can call {a} or {b}; both can call these nodes of gateways"),
            ),
        };
        let through: Vec<String> = match kind {
            PathKind::Relay => relays.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        let names = |side: usize, can: bool| -> Vec<String> {
            let whole = self.side(!can, side).is_empty();
            let some = self.side(can, side).iter().filter(|_| !whole);
            some.take(MOST_NAMES).map(|n| (*n).to_owned()).collect()
        };
        let (of_a, of_b) = (names(0, can.0), names(1, can.1));
        let path = |member: &str, nodes: &[String], peers: &[String]| MemberPath {
            member: member.into(),
            kind,
            nodes: nodes.to_vec(),
            peers: peers.to_vec(),
            through: through.clone(),
            reason: reason.clone(),
        };
        (path(b, &of_a, &of_b), path(a, &of_b, &of_a))
    }
}

fn calls(caller: &str, other: &str) -> String {
    format!(
        "no other partition can call {caller} (spec.reachability: Endpoints, and no endpoint), so it calls {other}"
    )
}

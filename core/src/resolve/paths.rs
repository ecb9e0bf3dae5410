//! Which paths must be encrypted.

use std::collections::{BTreeMap, BTreeSet};

use super::Federation;
use super::gateway::Gateways;

/// Pairs of members between whose nodes every path must be encrypted. Decided for members, not nodes: two nodes have
/// one path, whichever gateway it is used for, and both ends must decide alike.
pub(super) struct Encrypted<'a>(BTreeSet<(&'a str, &'a str)>);

fn pair<'a>(a: &'a str, b: &'a str) -> (&'a str, &'a str) {
    (a.min(b), a.max(b))
}

impl<'a> Encrypted<'a> {
    /// `users` are each gateway's. Of several gateways that need a path, one that demands is enough.
    pub(super) fn new(
        federation: &Federation<'a>,
        gateways: &'a Gateways<'a>,
        users: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    ) -> Self {
        let partition = |member: &str| {
            let member = federation.members.get(member);
            member.map_or("", |m| m.partition.as_str())
        };
        let mut out = BTreeSet::new();
        for gateway in gateways.iter().filter(|g| g.usable) {
            let encryption = gateway.input.spec.encryption;
            let encryption = encryption.unwrap_or(federation.state.encryption);
            let users = users.get(gateway.input.name.as_str()).into_iter().flatten();
            let ends: BTreeSet<&str> = gateway.hosts.keys().chain(users).copied().collect();
            for host in gateway.hosts.keys() {
                let demanded = |end: &&&str| encryption.demanded(partition(host), partition(end));
                out.extend(ends.iter().filter(demanded).map(|end| pair(host, end)));
            }
        }
        Self(out)
    }

    /// Paths between nodes of these pairs of members must be encrypted, too.
    pub(super) fn extend(&mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.0.extend(pairs.into_iter().map(|(a, b)| pair(a, b)));
    }

    /// Whether paths between nodes of `a` and nodes of `b` must be encrypted.
    pub(super) fn between(&self, a: &str, b: &str) -> bool {
        self.0.contains(&pair(a, b))
    }
}

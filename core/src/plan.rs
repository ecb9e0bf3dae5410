//! A member's plan: resources, each with the digest of its content, and one digest over all of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use spillway_crds::member::{
    PlannedGatewaySpec, PlannedMemberSpec, PlannedPeerSpec, PlannedPolicySpec, PolicyRef,
};

/// SHA-256 digest, printed as 64 lower-case hex digits.
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The raw 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// First 12 hex digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// A string that isn't 64 hex digits.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a digest is 64 hex digits, not {0:?}")]
pub struct NotADigest(String);

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut out = [0; 32];
        hex::decode_to_slice(s, &mut out).map_err(|_| NotADigest(s.chars().take(80).collect()))?;
        Ok(Self(out))
    }
}

/// Kinds of resources, in the order in which a node can make sense of them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum ResourceKind {
    /// The member itself.
    Member,
    /// Another member's nodes.
    Peer,
    /// A gateway.
    Gateway,
    /// A policy.
    Policy,
}

impl ResourceKind {
    /// Name on the wire and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Peer => "peer",
            Self::Gateway => "gateway",
            Self::Policy => "policy",
        }
    }

    /// Reads a name that [`Self::as_str`] wrote; `None` for a kind this build doesn't know.
    pub fn parse(s: &str) -> Option<Self> {
        [Self::Member, Self::Peer, Self::Gateway, Self::Policy]
            .into_iter()
            .find(|k| k.as_str() == s)
    }
}

/// Names a resource within a plan. The name is also the name of the object that holds it in the member.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ResourceKey {
    /// Kind.
    pub kind: ResourceKind,
    /// A valid object name: lower-case, at most 253 characters.
    pub name: String,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

impl ResourceKey {
    /// Key of a policy: readable, and unique even where `namespace` and `name` could be split otherwise.
    pub fn policy(policy: &PolicyRef) -> Self {
        let namespace = policy.namespace.as_deref().unwrap_or("");
        let unique = Digest::of(format!("{namespace}/{}", policy.name).as_bytes()).short();
        let readable: String = if namespace.is_empty() {
            policy.name.chars().take(200).collect()
        } else {
            format!("{namespace}.{}", policy.name).chars().take(200).collect()
        };
        let readable = readable.trim_end_matches(['.', '-']);
        Self {
            kind: ResourceKind::Policy,
            name: format!("{readable}.{unique}"),
        }
    }
}

/// One resource of a plan.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Resource {
    /// The member's own place.
    Member(PlannedMemberSpec),
    /// Another member's nodes.
    Peer(PlannedPeerSpec),
    /// A gateway.
    Gateway(PlannedGatewaySpec),
    /// A policy.
    Policy(PlannedPolicySpec),
}

/// A payload that this build can't read.
#[derive(Debug, thiserror::Error)]
#[error("resource {key} can't be read: {source}")]
pub struct Unreadable {
    /// The resource.
    pub key: ResourceKey,
    /// What the decoder said.
    pub source: serde_json::Error,
}

impl Resource {
    /// The resource's key.
    pub fn key(&self) -> ResourceKey {
        match self {
            Self::Member(_) => ResourceKey {
                kind: ResourceKind::Member,
                name: spillway_crds::SINGLETON.into(),
            },
            Self::Peer(p) => ResourceKey {
                kind: ResourceKind::Peer,
                name: p.member.clone(),
            },
            Self::Gateway(g) => ResourceKey {
                kind: ResourceKind::Gateway,
                name: g.gateway.clone(),
            },
            Self::Policy(p) => ResourceKey::policy(&p.source),
        }
    }

    /// The bytes that travel and that the digest is taken of: compact JSON with fields in declaration
    /// order. Whoever receives them takes the digest of the bytes as received, so a field that an older
    /// build doesn't know doesn't break it.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = match self {
            Self::Member(s) => serde_json::to_vec(s),
            Self::Peer(s) => serde_json::to_vec(s),
            Self::Gateway(s) => serde_json::to_vec(s),
            Self::Policy(s) => serde_json::to_vec(s),
        };
        bytes.expect("plain structs with string keys always encode")
    }

    /// Reads bytes that [`Self::encode`] wrote.
    pub fn decode(key: &ResourceKey, bytes: &[u8]) -> Result<Self, Unreadable> {
        let read = match key.kind {
            ResourceKind::Member => serde_json::from_slice(bytes).map(Self::Member),
            ResourceKind::Peer => serde_json::from_slice(bytes).map(Self::Peer),
            ResourceKind::Gateway => serde_json::from_slice(bytes).map(Self::Gateway),
            ResourceKind::Policy => serde_json::from_slice(bytes).map(Self::Policy),
        };
        read.map_err(|source| Unreadable {
            key: key.clone(),
            source,
        })
    }
}

/// A plan's digest: over the sorted list of (key, digest of content). The empty plan has one too.
pub fn digest_of<'a>(entries: impl IntoIterator<Item = (&'a ResourceKey, &'a Digest)>) -> Digest {
    let sorted: BTreeMap<_, _> = entries.into_iter().collect();
    let mut hash = Sha256::new();
    for (key, digest) in sorted {
        hash.update(key.kind.as_str().as_bytes());
        hash.update([0]);
        hash.update(key.name.as_bytes());
        hash.update([0]);
        hash.update(digest.as_bytes());
    }
    Digest(hash.finalize().into())
}

/// A resource with its key and digest, shared by the plans of all members that get the same one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prepared {
    key: ResourceKey,
    content: Arc<(Resource, Digest)>,
}

impl From<Resource> for Prepared {
    fn from(resource: Resource) -> Self {
        let digest = Digest::of(&resource.encode());
        Self {
            key: resource.key(),
            content: Arc::new((resource, digest)),
        }
    }
}

/// Everything one member must realise.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    resources: BTreeMap<ResourceKey, Arc<(Resource, Digest)>>,
}

impl FromIterator<Prepared> for Plan {
    /// Of two resources with the same key the later one stays.
    fn from_iter<I: IntoIterator<Item = Prepared>>(resources: I) -> Self {
        Self {
            resources: resources.into_iter().map(|p| (p.key, p.content)).collect(),
        }
    }
}

impl Plan {
    /// A plan of these resources; of two with the same key the later one stays.
    pub fn new(resources: impl IntoIterator<Item = Resource>) -> Self {
        resources.into_iter().map(Prepared::from).collect()
    }

    /// The plan's digest.
    pub fn digest(&self) -> Digest {
        digest_of(self.resources.iter().map(|(k, c)| (k, &c.1)))
    }

    /// Resources with their content digests, sorted by key.
    pub fn resources(&self) -> impl Iterator<Item = (&ResourceKey, &Resource, &Digest)> {
        self.resources.iter().map(|(k, c)| (k, &c.0, &c.1))
    }

    /// Content digests by key: what a member remembers of a plan to resume from it.
    pub fn digests(&self) -> BTreeMap<ResourceKey, Digest> {
        self.resources.iter().map(|(k, c)| (k.clone(), c.1)).collect()
    }

    /// Looks a resource up.
    pub fn get(&self, key: &ResourceKey) -> Option<&Resource> {
        self.resources.get(key).map(|c| &c.0)
    }

    /// Digest of one resource's content.
    pub fn content(&self, key: &ResourceKey) -> Option<Digest> {
        self.resources.get(key).map(|c| c.1)
    }

    /// Number of resources.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// True for a plan without resources.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }
}

/// What turns one plan into another.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Delta {
    /// Resources that are new or whose content changed, as they travel.
    pub upserts: BTreeMap<ResourceKey, Vec<u8>>,
    /// Resources that are no longer part of the plan.
    pub removes: Vec<ResourceKey>,
}

impl Delta {
    /// The delta from a plan of which only the digests are known to `to`.
    pub fn between(from: &BTreeMap<ResourceKey, Digest>, to: &Plan) -> Self {
        let upserts = to
            .resources
            .iter()
            .filter(|(k, c)| from.get(*k) != Some(&c.1))
            .map(|(k, c)| (k.clone(), c.0.encode()))
            .collect();
        let removes = from
            .keys()
            .filter(|k| !to.resources.contains_key(*k))
            .cloned()
            .collect();
        Self { upserts, removes }
    }

    /// The digests after the delta was applied to a plan with the digests `base`.
    pub fn apply_to(&self, base: &BTreeMap<ResourceKey, Digest>) -> BTreeMap<ResourceKey, Digest> {
        let mut out = base.clone();
        for key in &self.removes {
            out.remove(key);
        }
        for (key, bytes) in &self.upserts {
            out.insert(key.clone(), Digest::of(bytes));
        }
        out
    }

    /// True where nothing changes.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spillway_crds::member::PeerNode;

    use super::*;

    fn peer(member: &str, nodes: usize) -> Resource {
        Resource::Peer(PlannedPeerSpec {
            member: member.into(),
            partition: "default".into(),
            encrypted: false,
            nodes: (0..nodes)
                .map(|i| PeerNode {
                    name: format!("n{i}"),
                    ..PeerNode::default()
                })
                .collect(),
        })
    }

    fn plans() -> impl Strategy<Value = Plan> {
        prop::collection::btree_map("[a-e]", 0usize..4, 0..6)
            .prop_map(|m| Plan::new(m.into_iter().map(|(name, nodes)| peer(&name, nodes))))
    }

    #[test]
    fn a_policys_key_is_unique_where_its_parts_could_be_split_otherwise() {
        let policy = |ns: &str, name: &str| {
            ResourceKey::policy(&PolicyRef {
                namespace: Some(ns.into()),
                name: name.into(),
            })
        };
        assert_ne!(policy("a.b", "c"), policy("a", "b.c"));
        assert!(policy(&"n".repeat(63), &"p".repeat(253)).name.len() <= 253);
    }

    #[test]
    fn a_digest_reads_back_what_it_prints() {
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("xyz".parse::<Digest>().is_err());
    }

    proptest! {
        #[test]
        fn a_delta_leads_from_any_plan_to_any_other(from in plans(), to in plans()) {
            let delta = Delta::between(&from.digests(), &to);
            let after = delta.apply_to(&from.digests());
            prop_assert_eq!(digest_of(&after), to.digest());
            prop_assert_eq!(delta.is_empty(), from == to);
        }

        #[test]
        fn resources_survive_their_encoding(plan in plans()) {
            for (key, resource, digest) in plan.resources() {
                let bytes = resource.encode();
                prop_assert_eq!(&Digest::of(&bytes), digest);
                prop_assert_eq!(&Resource::decode(key, &bytes).expect("readable"), resource);
            }
        }
    }
}

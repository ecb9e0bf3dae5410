//! Plan updates in pieces: the hub splits, the member puts together and checks. Pure.

mod split;
mod staging;
#[cfg(test)]
mod tests;

pub(crate) use split::split;
pub(crate) use staging::{Hub, Staging, Step};

use spillway_core::plan::{Digest, ResourceKey, ResourceKind};

use crate::proto;

/// Size that a message never exceeds, either way.
pub(crate) const MESSAGE_LIMIT: usize = 4 << 20;
/// Size at which a sender begins the next piece.
pub(crate) const PIECE: usize = 512 << 10;
/// Largest content of one resource. etcd takes no object above 1.5 MiB anyway.
pub(crate) const RESOURCE_LIMIT: usize = 3 << 20;
/// Largest update, all pieces together.
pub(crate) const UPDATE_LIMIT: usize = 64 << 20;
/// Most resources of a plan.
pub(crate) const RESOURCES_LIMIT: usize = 100_000;

/// Reads a digest of the wire.
pub(crate) fn digest(bytes: &[u8]) -> Option<Digest> {
    (bytes.len() == 32).then(|| hex::encode(bytes).parse().ok())?
}

/// Writes a key for the wire.
pub(crate) fn wire_key(key: &ResourceKey) -> proto::Key {
    proto::Key {
        kind: key.kind.as_str().into(),
        name: key.name.clone(),
    }
}

/// Why a key of the wire can't be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BadKey {
    #[error("this agent doesn't know resources of the kind {0:?}: upgrade the member")]
    UnknownKind(String),
    #[error("{0:?} is no name for an object")]
    Name(String),
}

/// Reads a key of the wire. Names become names of objects, so they must be DNS subdomains (RFC 1123).
pub(crate) fn key(kind: &str, name: &str) -> Result<ResourceKey, BadKey> {
    let short = |s: &str| s.chars().take(80).collect();
    let kind = ResourceKind::parse(kind).ok_or_else(|| BadKey::UnknownKind(short(kind)))?;
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |l: &str| {
        l.starts_with(alphanumeric)
            && l.ends_with(alphanumeric)
            && l.chars().all(|c| alphanumeric(c) || c == '-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(BadKey::Name(short(name)));
    }
    Ok(ResourceKey {
        kind,
        name: name.into(),
    })
}

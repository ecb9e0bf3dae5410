//! The hub's half: a delta as a sequence of bounded pieces.

use std::collections::BTreeMap;

use spillway_core::plan::{Delta, Digest, Plan, ResourceKey, digest_of};

use super::{RESOURCE_LIMIT, RESOURCES_LIMIT, UPDATE_LIMIT, wire_key};
use crate::proto;

/// A plan that no member would take.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct TooLarge {
    pub(crate) resource: Option<ResourceKey>,
    pub(crate) reason: String,
}

/// Pieces of the update with this nonce that leads from `base` (`None`: from anything) to `plan`.
/// A piece is closed once it holds `piece` bytes of content.
pub(crate) fn split(
    nonce: u64,
    base: Option<&BTreeMap<ResourceKey, Digest>>,
    plan: &Plan,
    removal_intended: bool,
    piece: usize,
) -> Result<Vec<proto::PlanFrame>, TooLarge> {
    let nothing = BTreeMap::new();
    let delta = Delta::between(base.unwrap_or(&nothing), plan);
    check(plan, &delta)?;
    let head = proto::PlanFrame {
        nonce,
        base_digest: base.map(|b| digest_of(b).as_bytes().to_vec()).unwrap_or_default(),
        target_digest: plan.digest().as_bytes().to_vec(),
        removal_intended,
        ..proto::PlanFrame::default()
    };
    let mut frames = vec![head.clone()];
    let mut size = 0;
    let mut room = |frames: &mut Vec<proto::PlanFrame>, more: usize| {
        if size > 0 && size + more > piece {
            frames.push(head.clone());
            size = 0;
        }
        size += more;
    };
    for key in &delta.removes {
        room(&mut frames, key.name.len() + 32);
        if let Some(frame) = frames.last_mut() {
            frame.removes.push(wire_key(key));
        }
    }
    for (key, content) in delta.upserts {
        room(&mut frames, key.name.len() + content.len() + 32);
        if let Some(frame) = frames.last_mut() {
            frame.upserts.push(proto::Upsert {
                key: Some(wire_key(&key)),
                content,
            });
        }
    }
    let last = frames.len() - 1;
    for (index, frame) in (0u32..).zip(&mut frames) {
        frame.index = index;
        frame.last = index as usize == last;
    }
    Ok(frames)
}

fn check(plan: &Plan, delta: &Delta) -> Result<(), TooLarge> {
    if plan.len() > RESOURCES_LIMIT {
        return Err(TooLarge {
            resource: None,
            reason: format!(
                "the plan has {} resources, the limit is {RESOURCES_LIMIT}",
                plan.len()
            ),
        });
    }
    if let Some((key, content)) = delta.upserts.iter().find(|(_, c)| c.len() > RESOURCE_LIMIT) {
        return Err(TooLarge {
            resource: Some(key.clone()),
            reason: format!("it has {} bytes, the limit is {RESOURCE_LIMIT}", content.len()),
        });
    }
    let total: usize = delta.upserts.values().map(Vec::len).sum();
    if total > UPDATE_LIMIT {
        return Err(TooLarge {
            resource: None,
            reason: format!("the plan has {total} bytes, the limit is {UPDATE_LIMIT}"),
        });
    }
    Ok(())
}

//! The member's half: pieces are collected aside and count only once they are complete and lead to
//! exactly the digest that the hub announced.

use std::collections::{BTreeMap, BTreeSet};

use spillway_core::plan::{Digest, Resource, ResourceKey, digest_of};

use super::{RESOURCES_LIMIT, UPDATE_LIMIT, digest, key};
use crate::member::{Held, RefusedUpdate, VerifiedUpdate};
use crate::proto::PlanFrame;

/// Losing more than half of the resources needs the hub's word if it is more than this many.
const MASS: usize = 10;

/// Who sends, and to whom.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    pub(crate) id: String,
    pub(crate) epoch: u64,
    /// Name of the receiving member.
    pub(crate) member: String,
}

/// What a piece led to.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// More pieces are to come.
    Wait,
    /// A duplicate, or a piece of an update that is over.
    Ignored,
    /// The update can't be used; the hub is to send the whole plan.
    Resync { nonce: u64, reason: String },
    /// The update is complete and must not be applied.
    Refused {
        nonce: u64,
        target: Digest,
        why: RefusedUpdate,
    },
    /// The update is complete and right.
    Ready { nonce: u64, update: VerifiedUpdate },
}

/// Collects the pieces of one update at a time.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    /// Updates up to this nonce are over.
    done: u64,
    open: Option<Open>,
}

/// An update that isn't complete.
#[derive(Debug)]
struct Open {
    head: Head,
    next: u32,
    size: usize,
    upserts: BTreeMap<ResourceKey, Vec<u8>>,
    removes: BTreeSet<ResourceKey>,
}

/// What all pieces of an update have in common.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Head {
    nonce: u64,
    base: Option<Digest>,
    target: Digest,
    removal_intended: bool,
}

/// How an update fails before anything is known about its contents' meaning.
enum Fault {
    Resync(String),
    Refused(RefusedUpdate),
}

impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        Self::Resync(why.into())
    }
}

fn refused(resource: Option<ResourceKey>, reason: impl Into<String>) -> Fault {
    Fault::Refused(RefusedUpdate {
        resource,
        reason: reason.into(),
    })
}

impl Staging {
    /// Takes the next piece. `held` is what the member holds at this moment.
    pub(crate) fn accept(&mut self, frame: PlanFrame, held: &Held, hub: &Hub) -> Step {
        let nonce = frame.nonce;
        if self.is_over(nonce) || self.open.as_ref().is_some_and(|o| nonce < o.head.nonce) {
            return Step::Ignored;
        }
        let target = digest(&frame.target_digest).unwrap_or_default();
        let fault = match self.collect(frame) {
            Ok(None) => return Step::Wait,
            Ok(Some(Collected::Duplicate)) => return Step::Ignored,
            Ok(Some(Collected::Whole(open))) => match open.verify(held, hub) {
                Ok(update) => {
                    self.close(nonce);
                    return Step::Ready { nonce, update };
                }
                Err(fault) => fault,
            },
            Err(fault) => fault,
        };
        self.close(nonce);
        match fault {
            Fault::Resync(reason) => Step::Resync { nonce, reason },
            Fault::Refused(why) => Step::Refused { nonce, target, why },
        }
    }

    /// True for updates that were decided, so that their pieces mean nothing any more.
    pub(crate) const fn is_over(&self, nonce: u64) -> bool {
        nonce <= self.done
    }

    fn close(&mut self, nonce: u64) {
        self.done = nonce;
        self.open = None;
    }

    fn collect(&mut self, frame: PlanFrame) -> Result<Option<Collected>, Fault> {
        let head = Head::read(&frame)?;
        let mut open = match self.open.take() {
            Some(open) if open.head.nonce == head.nonce => open,
            _ => Open::new(head.clone()),
        };
        if open.head != head {
            return Err("pieces of one update contradict each other".into());
        }
        if frame.index < open.next {
            self.open = Some(open);
            return Ok(Some(Collected::Duplicate));
        }
        if frame.index > open.next {
            return Err("a piece of the update is missing".into());
        }
        let last = frame.last;
        open.add(frame)?;
        if last {
            return Ok(Some(Collected::Whole(open)));
        }
        self.open = Some(open);
        Ok(None)
    }
}

enum Collected {
    Duplicate,
    Whole(Open),
}

impl Head {
    fn read(frame: &PlanFrame) -> Result<Self, Fault> {
        let base = if frame.base_digest.is_empty() {
            None
        } else {
            Some(digest(&frame.base_digest).ok_or("the base digest isn't one")?)
        };
        Ok(Self {
            nonce: frame.nonce,
            base,
            target: digest(&frame.target_digest).ok_or("the target digest isn't one")?,
            removal_intended: frame.removal_intended,
        })
    }
}

impl Open {
    fn new(head: Head) -> Self {
        Self {
            head,
            next: 0,
            size: 0,
            upserts: BTreeMap::new(),
            removes: BTreeSet::new(),
        }
    }

    fn add(&mut self, frame: PlanFrame) -> Result<(), Fault> {
        self.next += 1;
        let read = |k: &crate::proto::Key| key(&k.kind, &k.name).map_err(|e| refused(None, e.to_string()));
        for wire in &frame.removes {
            self.removes.insert(read(wire)?);
        }
        for upsert in frame.upserts {
            let key = read(&upsert.key.unwrap_or_default())?;
            self.size += key.name.len() + upsert.content.len();
            self.upserts.insert(key, upsert.content);
        }
        let too_many = self.upserts.len().max(self.removes.len()) > RESOURCES_LIMIT;
        if self.size > UPDATE_LIMIT || too_many {
            return Err(refused(
                None,
                format!("the plan is over {UPDATE_LIMIT} bytes or {RESOURCES_LIMIT} resources"),
            ));
        }
        Ok(())
    }

    fn verify(self, held: &Held, hub: &Hub) -> Result<VerifiedUpdate, Fault> {
        let full = self.head.base.is_none();
        if !full {
            if held.hub_id != hub.id || held.epoch != hub.epoch {
                return Err("the plan held is of another hub or epoch".into());
            }
            if self.head.base != held.digest() {
                return Err("the plan held isn't the one that the update builds on".into());
            }
        }
        let digests: BTreeMap<_, _> = self
            .upserts
            .iter()
            .map(|(k, bytes)| (k.clone(), Digest::of(bytes)))
            .collect();
        let mut after = if full {
            BTreeMap::new()
        } else {
            held.digests.clone()
        };
        after.retain(|k, _| !self.removes.contains(k));
        after.extend(digests.clone());
        if digest_of(&after) != self.head.target {
            return Err("the update doesn't lead to the digest it announces".into());
        }
        let removes: Vec<_> = held
            .digests
            .keys()
            .filter(|k| !after.contains_key(*k))
            .cloned()
            .collect();
        if !self.head.removal_intended {
            check_removal(held.digests.len(), removes.len())?;
        }
        let mut upserts = BTreeMap::new();
        for (key, bytes) in self.upserts {
            let resource = Resource::decode(&key, &bytes)
                .map_err(|e| refused(Some(key.clone()), format!("it can't be read: {}", e.source)))?;
            check_resource(&key, &resource, &hub.member)?;
            let digest = digests[&key];
            upserts.insert(key, (resource, digest));
        }
        Ok(VerifiedUpdate {
            hub_id: hub.id.clone(),
            epoch: hub.epoch,
            target: self.head.target,
            upserts,
            removes,
            full,
        })
    }
}

fn check_removal(held: usize, removed: usize) -> Result<(), Fault> {
    let all = held > 0 && removed == held;
    let mass = removed > MASS && removed * 2 > held;
    if all || mass {
        return Err(refused(
            None,
            format!("it would remove {removed} of {held} resources and the hub hasn't said that it means it"),
        ));
    }
    Ok(())
}

fn check_resource(key: &ResourceKey, resource: &Resource, member: &str) -> Result<(), Fault> {
    if resource.key() != *key {
        let why = format!("its content is that of {}", resource.key());
        return Err(refused(Some(key.clone()), why));
    }
    match resource {
        Resource::Member(own) if own.member != member => {
            let why = format!("the plan is for the member {:?}, this is {member:?}", own.member);
            Err(refused(Some(key.clone()), why))
        }
        _ => Ok(()),
    }
}

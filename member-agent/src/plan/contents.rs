//! What the plan's objects hold, as values, and what an update would change about them.

use std::collections::{BTreeMap, BTreeSet};

use spillway_core::plan::{Digest, Resource, ResourceKey, ResourceKind, digest_of};
use spillway_crds::SINGLETON;
use spillway_crds::member::{EgressPlanSpec, Grants, PlannedMemberSpec};

/// One object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    /// Digest of the content as the hub computed it.
    pub(crate) digest: Digest,
    /// The content; `None` where this build can't read the object.
    pub(crate) resource: Option<Resource>,
}

/// All objects of the plan, and its head.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Contents {
    /// The resources.
    pub(crate) entries: BTreeMap<ResourceKey, Entry>,
    /// The head; `None` before the first plan.
    pub(crate) head: Option<EgressPlanSpec>,
}

/// A plan from the hub whose bytes were checked against their digests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Update {
    /// The hub.
    pub(crate) hub_id: String,
    /// Its epoch.
    pub(crate) epoch: u64,
    /// Digest of the plan after the update.
    pub(crate) target: Digest,
    /// New and changed resources.
    pub(crate) upserts: BTreeMap<ResourceKey, (Resource, Digest)>,
    /// Resources that are no longer part of it.
    pub(crate) removes: BTreeSet<ResourceKey>,
    /// `upserts` is the whole plan: what isn't in it goes.
    pub(crate) full: bool,
}

/// The writes that an update takes, in the order in which they are made.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Changes {
    /// Objects to apply.
    pub(crate) writes: BTreeMap<ResourceKey, (Resource, Digest)>,
    /// Head to apply after them, where it changes.
    pub(crate) head: Option<EgressPlanSpec>,
    /// Objects to delete last.
    pub(crate) removes: BTreeSet<ResourceKey>,
}

/// Why an update can't be applied to these contents.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unfit {
    /// The hub was set back to an older state than the one this plan came from.
    #[error(
        "the plan is of epoch {offered} of hub {hub_id}, and this cluster already has one of epoch {held}"
    )]
    OlderEpoch {
        /// The hub.
        hub_id: String,
        /// Epoch of the update.
        offered: u64,
        /// Epoch of the plan in place.
        held: u64,
    },
    /// The resources would not add up to the digest that was announced.
    #[error("the resources add up to {found}, not to the announced {announced}")]
    WrongSum {
        /// Announced digest.
        announced: Digest,
        /// Digest of what the update would leave.
        found: Digest,
    },
}

/// What this cluster adds to the head of whatever plan it has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Local {
    /// The plan is being torn down.
    pub(crate) teardown: bool,
    /// What the owner lets the hub do.
    pub(crate) grants: Grants,
}

impl Local {
    /// What a head says of it.
    pub(crate) fn of(head: Option<&EgressPlanSpec>) -> Self {
        head.map_or_else(Self::default, |h| Self {
            teardown: h.teardown,
            grants: h.grants.clone(),
        })
    }
}

impl Contents {
    /// What the plan asks for and the owner doesn't grant, in words. Of policies for all namespaces nothing can be said:
    /// they select whom they may.
    pub(crate) fn withheld(&self) -> Vec<String> {
        let Some(grants) = self.head.as_ref().map(|h| &h.grants) else {
            return Vec::new();
        };
        let own = self.member().map(|m| m.member.as_str());
        let resources = self.entries.values().filter_map(|e| e.resource.as_ref());
        let asked = resources.filter_map(|resource| match resource {
            Resource::Policy(policy) => {
                let namespace = policy.source.namespace.as_deref()?;
                let name = &policy.source.name;
                (!grants.namespace(namespace)).then(|| format!("policy {namespace}/{name}"))
            }
            Resource::Gateway(gateway) => {
                let here = gateway.nodes.iter().any(|n| Some(n.node.member.as_str()) == own);
                (here && !grants.gateway(&gateway.gateway)).then(|| format!("gateway {}", gateway.gateway))
            }
            _ => None,
        });
        asked.collect()
    }

    /// Content digests by key.
    pub(crate) fn digests(&self) -> BTreeMap<ResourceKey, Digest> {
        self.entries.iter().map(|(k, e)| (k.clone(), e.digest)).collect()
    }

    /// Digest of the plan as its head says it.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.head.as_ref().and_then(|h| h.digest.parse().ok())
    }

    /// The member's own place.
    pub(crate) fn member(&self) -> Option<&PlannedMemberSpec> {
        let key = ResourceKey {
            kind: ResourceKind::Member,
            name: SINGLETON.into(),
        };
        match self.entries.get(&key)?.resource.as_ref()? {
            Resource::Member(member) => Some(member),
            _ => None,
        }
    }

    /// What must be written for `update`; nothing at all where everything is as it says already.
    pub(crate) fn changes(&self, update: &Update, local: &Local) -> Result<Changes, Unfit> {
        if let Some(head) = &self.head
            && head.hub_id == update.hub_id
            && update.epoch < head.epoch
        {
            return Err(Unfit::OlderEpoch {
                hub_id: update.hub_id.clone(),
                offered: update.epoch,
                held: head.epoch,
            });
        }
        let removes: BTreeSet<ResourceKey> = self
            .entries
            .keys()
            .filter(|k| !update.upserts.contains_key(*k) && (update.full || update.removes.contains(*k)))
            .cloned()
            .collect();
        let mut after = self.digests();
        after.retain(|k, _| !removes.contains(k));
        after.extend(update.upserts.iter().map(|(k, (_, d))| (k.clone(), *d)));
        let found = digest_of(&after);
        if found != update.target {
            return Err(Unfit::WrongSum {
                announced: update.target,
                found,
            });
        }
        let writes = update
            .upserts
            .iter()
            .filter(|(key, (resource, digest))| {
                self.entries
                    .get(*key)
                    .is_none_or(|e| e.digest != *digest || e.resource.as_ref() != Some(resource))
            })
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let head = EgressPlanSpec {
            digest: update.target.to_string(),
            hub_id: update.hub_id.clone(),
            epoch: update.epoch,
            teardown: local.teardown,
            grants: local.grants.clone(),
        };
        let head = (self.head.as_ref() != Some(&head)).then_some(head);
        Ok(Changes {
            writes,
            head,
            removes,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spillway_core::plan::{Delta, Plan};
    use spillway_crds::member::PlannedPeerSpec;

    use super::*;

    fn plans() -> impl Strategy<Value = Plan> {
        prop::collection::btree_map("[a-e]", "[xy]", 0..6).prop_map(|m| {
            Plan::new(m.into_iter().map(|(member, partition)| {
                Resource::Peer(PlannedPeerSpec {
                    member,
                    partition,
                    encrypted: false,
                    nodes: Vec::new(),
                })
            }))
        })
    }

    fn full(plan: &Plan) -> Update {
        Update {
            hub_id: "h".into(),
            epoch: 1,
            target: plan.digest(),
            upserts: plan
                .resources()
                .map(|(k, r, d)| (k.clone(), (r.clone(), *d)))
                .collect(),
            removes: BTreeSet::new(),
            full: true,
        }
    }

    fn delta(from: &Plan, to: &Plan) -> Update {
        let delta = Delta::between(&from.digests(), to);
        let mut update = full(to);
        update.upserts.retain(|k, _| delta.upserts.contains_key(k));
        update.removes = delta.removes.into_iter().collect();
        update.full = false;
        update
    }

    fn after(mut contents: Contents, changes: Changes) -> Contents {
        for (key, (resource, digest)) in changes.writes {
            let resource = Some(resource);
            contents.entries.insert(key, Entry { digest, resource });
        }
        contents.head = changes.head.or(contents.head);
        for key in changes.removes {
            contents.entries.remove(&key);
        }
        contents
    }

    fn holding(plan: &Plan) -> Contents {
        let none = Contents::default();
        let changes = none.changes(&full(plan), &Local::default()).expect("fits");
        after(none, changes)
    }

    proptest! {
        #[test]
        fn an_update_leads_to_the_hubs_plan_and_a_second_one_writes_nothing(
            from in plans(), to in plans(), whole in any::<bool>(),
        ) {
            let held = holding(&from);
            let update = if whole { full(&to) } else { delta(&from, &to) };
            let changes = held.changes(&update, &Local::default()).expect("fits");
            let now = after(held, changes);
            prop_assert_eq!(now.digests(), to.digests());
            prop_assert_eq!(now.digest(), Some(to.digest()));
            prop_assert_eq!(now.changes(&update, &Local::default()), Ok(Changes::default()));
        }

        #[test]
        fn only_what_differs_is_written(from in plans(), to in plans()) {
            let held = holding(&from);
            let changes = held.changes(&full(&to), &Local::default()).expect("fits");
            let expected = Delta::between(&from.digests(), &to);
            prop_assert!(changes.writes.keys().eq(expected.upserts.keys()));
            prop_assert!(changes.removes.iter().eq(expected.removes.iter()));
        }

        #[test]
        fn a_delta_on_another_base_is_refused(a in plans(), b in plans(), to in plans()) {
            let update = delta(&a, &to);
            match holding(&b).changes(&update, &Local::default()) {
                Ok(changes) => prop_assert_eq!(after(holding(&b), changes).digests(), to.digests()),
                Err(e) => prop_assert!(matches!(e, Unfit::WrongSum { .. }), "{e:?}"),
            }
        }
    }

    #[test]
    fn an_older_epoch_of_the_same_hub_is_refused_and_another_hub_is_not() {
        let plan = Plan::default();
        let mut held = holding(&plan);
        held.head.as_mut().expect("a head").epoch = 7;
        let mut update = full(&plan);
        update.epoch = 6;
        assert!(matches!(
            held.changes(&update, &Local::default()),
            Err(Unfit::OlderEpoch {
                offered: 6,
                held: 7,
                ..
            })
        ));
        update.hub_id = "another".into();
        assert!(held.changes(&update, &Local::default()).is_ok());
    }
}

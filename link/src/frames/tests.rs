//! Any sequence of pieces either leads to exactly a plan that the hub sent, or leaves the old one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use spillway_core::plan::{Digest, Plan, Resource, ResourceKey};
use spillway_crds::member::{PeerNode, PlannedMemberSpec, PlannedPeerSpec};

use super::*;
use crate::member::{Held, VerifiedUpdate};
use crate::proto::PlanFrame;

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
    prop::collection::btree_map("[a-f]", 0usize..4, 0..7)
        .prop_map(|m| Plan::new(m.into_iter().map(|(name, nodes)| peer(&name, nodes))))
}

fn hub() -> Hub {
    Hub {
        id: "h".into(),
        epoch: 3,
        member: "me".into(),
    }
}

fn held(plan: &Plan) -> Held {
    Held {
        hub_id: "h".into(),
        epoch: 3,
        digests: plan.digests(),
    }
}

/// A store that believes whatever it is told to apply.
#[derive(Clone)]
struct Store {
    held: Held,
    contents: BTreeMap<ResourceKey, Resource>,
}

impl Store {
    fn of(plan: &Plan) -> Self {
        Self {
            held: held(plan),
            contents: plan.resources().map(|(k, r, _)| (k.clone(), r.clone())).collect(),
        }
    }

    fn apply(&mut self, update: VerifiedUpdate) {
        if update.full {
            self.held.digests.clear();
            self.contents.clear();
        }
        for key in &update.removes {
            self.held.digests.remove(key);
            self.contents.remove(key);
        }
        for (key, (resource, digest)) in update.upserts {
            self.held.digests.insert(key.clone(), digest);
            self.contents.insert(key, resource);
        }
        self.held.hub_id = update.hub_id;
        self.held.epoch = update.epoch;
    }
}

/// What may happen to pieces on the way, seeded by indices.
#[derive(Clone, Debug)]
enum Mishap {
    Drop(usize),
    Repeat(usize, usize),
    Swap(usize, usize),
    Flip(usize, usize),
    Cut(usize),
    Relabel(usize, u64),
    Lie(usize),
}

fn mishaps() -> impl Strategy<Value = Vec<Mishap>> {
    let i = || 0usize..64;
    prop::collection::vec(
        prop_oneof![
            i().prop_map(Mishap::Drop),
            (i(), i()).prop_map(|(a, b)| Mishap::Repeat(a, b)),
            (i(), i()).prop_map(|(a, b)| Mishap::Swap(a, b)),
            (i(), 0usize..4096).prop_map(|(a, b)| Mishap::Flip(a, b)),
            i().prop_map(Mishap::Cut),
            (i(), 0u64..5).prop_map(|(a, n)| Mishap::Relabel(a, n)),
            i().prop_map(Mishap::Lie),
        ],
        0..4,
    )
}

fn befall(frames: &mut Vec<PlanFrame>, mishap: &Mishap) {
    if frames.is_empty() {
        return;
    }
    let n = frames.len();
    match *mishap {
        Mishap::Drop(i) => drop(frames.remove(i % n)),
        Mishap::Repeat(i, at) => frames.insert(at % n, frames[i % n].clone()),
        Mishap::Swap(a, b) => frames.swap(a % n, b % n),
        Mishap::Flip(i, byte) => {
            if let Some(upsert) = frames[i % n].upserts.first_mut() {
                let len = upsert.content.len();
                upsert.content[byte % len] ^= 1;
            }
        }
        Mishap::Cut(i) => frames[i % n].last = true,
        Mishap::Relabel(i, nonce) => frames[i % n].nonce = nonce,
        Mishap::Lie(i) => frames[i % n].target_digest = Digest::of(b"lie").as_bytes().to_vec(),
    }
}

proptest! {
    #[test]
    fn undisturbed_pieces_lead_to_the_plan(
        from in plans(), to in plans(), full in any::<bool>(), piece in 1usize..600,
    ) {
        let base = from.digests();
        let frames = split(1, (!full).then_some(&base), &to, true, piece).expect("small");
        let mut store = Store::of(&from);
        let mut staging = Staging::default();
        let count = frames.len();
        for (i, frame) in frames.into_iter().enumerate() {
            match staging.accept(frame, &store.held, &hub()) {
                Step::Ready { nonce: 1, update } if i + 1 == count => store.apply(update),
                Step::Wait if i + 1 < count => {}
                other => return Err(TestCaseError::fail(format!("{other:?} at {i}"))),
            }
        }
        prop_assert_eq!(store.held.digest(), Some(to.digest()));
        prop_assert_eq!(store.contents, Store::of(&to).contents);
    }

    #[test]
    fn disturbed_pieces_lead_to_a_plan_that_was_sent_or_change_nothing(
        from in plans(), one in plans(), two in plans(), mishaps in mishaps(), piece in 1usize..300,
    ) {
        let mut frames = split(1, Some(&from.digests()), &one, true, piece).expect("small");
        frames.extend(split(2, Some(&one.digests()), &two, true, piece).expect("small"));
        for mishap in &mishaps {
            befall(&mut frames, mishap);
        }
        let mut store = Store::of(&from);
        let mut staging = Staging::default();
        let mut last = 0;
        for frame in frames {
            if let Step::Ready { nonce, update } = staging.accept(frame, &store.held, &hub()) {
                prop_assert!(nonce > last, "nonces only rise");
                last = nonce;
                let target = update.target;
                store.apply(update);
                prop_assert_eq!(store.held.digest(), Some(target));
            }
            let whole = [&from, &one, &two].into_iter().any(|p| store.contents == Store::of(p).contents);
            prop_assert!(whole, "neither the old plan nor one that was sent");
        }
    }
}

fn only(from: &Plan, to: &Plan, intended: bool) -> Step {
    let frames = split(1, Some(&from.digests()), to, intended, usize::MAX).expect("small");
    Staging::default().accept(frames[0].clone(), &held(from), &hub())
}

fn peers(n: usize) -> Plan {
    Plan::new((0..n).map(|i| peer(&format!("m{i}"), 0)))
}

#[test]
fn losing_all_or_most_needs_the_hubs_word() {
    for (from, to, harmless) in [
        (1, 0, false),
        (40, 0, false),
        (40, 19, false),
        (40, 20, true),
        (20, 10, true),
        (12, 2, true),
        (12, 1, false),
        (0, 0, true),
    ] {
        let step = only(&peers(from), &peers(to), false);
        assert_eq!(
            matches!(step, Step::Ready { .. }),
            harmless,
            "{from} to {to}: {step:?}"
        );
        assert!(matches!(only(&peers(from), &peers(to), true), Step::Ready { .. }));
    }
}

#[test]
fn a_delta_on_anothers_plan_asks_for_the_whole_one() {
    let frames = split(1, Some(&peers(2).digests()), &peers(3), false, usize::MAX).expect("small");
    for wrong in [
        held(&peers(1)),
        Held {
            epoch: 2,
            ..held(&peers(2))
        },
        Held {
            hub_id: "other".into(),
            ..held(&peers(2))
        },
        Held::default(),
    ] {
        let step = Staging::default().accept(frames[0].clone(), &wrong, &hub());
        assert!(matches!(step, Step::Resync { nonce: 1, .. }), "{step:?}");
    }
}

#[test]
fn anothers_plan_and_contents_under_a_false_name_are_refused() {
    let mine = |member: &str| {
        Resource::Member(PlannedMemberSpec {
            member: member.into(),
            member_id: 1,
            ..PlannedMemberSpec::default()
        })
    };
    let plan = Plan::new([mine("other")]);
    let step = only(&Plan::default(), &plan, false);
    assert!(
        matches!(&step, Step::Refused { why, .. } if why.reason.contains("other")),
        "{step:?}"
    );
    let step = only(&Plan::default(), &Plan::new([mine("me")]), false);
    assert!(matches!(step, Step::Ready { .. }), "{step:?}");

    let content = peer("b", 0).encode();
    let name = ResourceKey {
        kind: ResourceKind::Peer,
        name: "a".into(),
    };
    let target = spillway_core::plan::digest_of([(&name, &Digest::of(&content))]);
    let frame = PlanFrame {
        nonce: 1,
        last: true,
        target_digest: target.as_bytes().to_vec(),
        upserts: vec![crate::proto::Upsert {
            key: Some(wire_key(&name)),
            content,
        }],
        ..PlanFrame::default()
    };
    let step = Staging::default().accept(frame, &Held::default(), &hub());
    assert!(
        matches!(&step, Step::Refused { why, .. } if why.resource == Some(name)),
        "{step:?}"
    );
}

#[test]
fn names_that_no_object_can_have_are_refused() {
    for name in ["", "A", "a/b", "../x", "a..b", "-a", "a.", &"a".repeat(254)] {
        assert!(key("peer", name).is_err(), "{name:?}");
    }
    assert!(key("peer", "a-1.b").is_ok());
    assert_eq!(key("new", "a"), Err(BadKey::UnknownKind("new".into())));
}

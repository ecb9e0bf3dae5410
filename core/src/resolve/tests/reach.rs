//! How members of different partitions reach each other.

use std::collections::BTreeSet;

use proptest::prelude::*;
use spillway_crds::hub::{Encryption, MemberPath, PathKind, Reachability};
use spillway_crds::member::PlannedMemberSpec;

use super::*;

/// Each of the members in a partition of its own; those named can't be called.
fn apart(uncallable: &[&str]) -> FederationState {
    let mut state = typical();
    for m in &mut state.members {
        m.partition = format!("at-{}", m.name);
        if uncallable.contains(&m.name.as_str()) {
            m.reachability = Reachability::Endpoints;
        }
    }
    state
}

fn path<'a>(r: &'a Resolution, from: &str, to: &str) -> &'a MemberPath {
    let found: Vec<_> = r.paths[from].iter().filter(|p| p.member == to).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

fn own<'a>(r: &'a Resolution, member: &str) -> &'a PlannedMemberSpec {
    match get(r, member, ResourceKind::Member, spillway_crds::SINGLETON) {
        Some(Resource::Member(own)) => own,
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_cant_be_called_calls() {
    let r = settle(&mut apart(&[]));
    assert_eq!(path(&r, "shop", "fra-1").kind, PathKind::Direct);
    for uncallable in ["shop", "fra-1"] {
        let r = settle(&mut apart(&[uncallable]));
        for (from, to) in [("shop", "fra-1"), ("fra-1", "shop")] {
            let path = path(&r, from, to);
            assert_eq!(path.kind, PathKind::Nat);
            assert!(
                path.reason.contains(&format!(
                    "so it calls {}",
                    if uncallable == "shop" { "fra-1" } else { "shop" }
                )),
                "{}",
                path.reason
            );
        }
    }
}

#[test]
fn where_neither_can_be_called_a_third_members_gateway_relays() {
    let r = settle(&mut apart(&["shop", "fra-1"]));
    let through = ["fra-2/fra-2-n1", "other/other-n1"];
    for (from, to) in [("shop", "fra-1"), ("fra-1", "shop")] {
        let path = path(&r, from, to);
        assert_eq!(path.kind, PathKind::Relay);
        let found: BTreeSet<&str> = path.through.iter().map(String::as_str).collect();
        assert_eq!(found, through.into(), "both that can be called");
    }
    assert_eq!(path(&r, "shop", "fra-2").kind, PathKind::Nat);
    // The ends.
    assert_eq!(own(&r, "shop").uncallable, ["shop-n1", "shop-n2"]);
    assert_eq!(
        own(&r, "fra-1").uncallable,
        ["fra-1-n1"],
        "its other node is no gateway's"
    );
    let gateway = &peer(&r, "shop", "fra-1").expect("a peer").nodes[0];
    assert_eq!(gateway.relays.len(), 2);
    assert!(gateway.relay_port >= 32_768);
    assert!(peer(&r, "shop", "other").expect("a relay is a peer").encrypted);
    // The relay, which has nothing else to do with them.
    let source = peer(&r, "other", "shop").expect("a peer");
    assert!(source.encrypted);
    let ports: BTreeSet<u16> = source.nodes.iter().map(|n| n.relay_port).collect();
    assert_eq!(ports.len(), 2);
    let served = peer(&r, "other", "fra-1").expect("a peer");
    assert_eq!(served.nodes.len(), 1);
    assert_eq!(served.nodes[0].relay_port, gateway.relay_port);
    assert_eq!(served.nodes[0].relayed.len(), 2, "with both of shop's nodes");
}

#[test]
fn an_endpoint_opens_a_node_and_the_rest_go_on_as_before() {
    let mut state = apart(&["shop", "fra-1"]);
    state.members[2].nodes[0].endpoint = Some("198.51.100.1:7000".into());
    let r = settle(&mut state);
    let kinds: Vec<_> = r.paths["shop"].iter().filter(|p| p.member == "fra-1").collect();
    let said: Vec<_> = kinds.iter().map(|p| (p.kind, p.nodes.as_slice())).collect();
    assert_eq!(
        said,
        [
            (PathKind::Nat, &["shop-n1".to_owned()][..]),
            (PathKind::Relay, &["shop-n2".to_owned()][..])
        ]
    );
    assert_eq!(own(&r, "shop").uncallable, ["shop-n2"]);
}

#[test]
fn where_there_is_no_way_the_fix_is_said() {
    let mut state = apart(&["shop", "fra-1", "fra-2", "other"]);
    let r = settle(&mut state);
    let none = path(&r, "shop", "fra-1");
    assert_eq!(none.kind, PathKind::None);
    assert!(none.reason.contains("spillway.io/endpoint"), "{}", none.reason);
    assert!(
        peer(&r, "shop", "fra-1").expect("a peer").nodes[0]
            .relays
            .is_empty()
    );

    let mut state = apart(&["shop"]);
    state.encryption = Encryption::Never;
    let none = settle(&mut state);
    let none = path(&none, "shop", "fra-1");
    assert_eq!(none.kind, PathKind::None);
    assert!(none.reason.contains("CrossPartition"), "{}", none.reason);
}

#[test]
fn within_a_partition_nothing_is_said_and_nothing_changes() {
    let mut state = typical();
    let before = settle(&mut state);
    for m in &mut state.members {
        m.reachability = Reachability::Endpoints;
    }
    let after = settle(&mut state);
    assert_eq!(before, after);
    assert!(after.paths.values().all(Vec::is_empty));
}

#[test]
fn a_relays_place_is_taken_by_ready_nodes_first() {
    let mut state = apart(&["shop", "fra-1"]);
    for unready in ["fra-2", "other"] {
        for m in &mut state.members {
            for node in &mut m.nodes {
                node.ready = m.name != unready;
            }
        }
        let r = settle(&mut state);
        let through = &path(&r, "shop", "fra-1").through;
        assert!(through[1].starts_with(unready), "{through:?}");
    }
}

/// Members in some partitions, some of which can't be called, with and without endpoints.
fn scattered() -> impl Strategy<Value = FederationState> {
    let member = (0u8..3, any::<bool>(), any::<[bool; 2]>());
    prop::collection::vec(member, 4).prop_map(|members| {
        let mut state = typical();
        for (m, (partition, routed, endpoints)) in state.members.iter_mut().zip(members) {
            m.partition = format!("p{partition}");
            if !routed {
                m.reachability = Reachability::Endpoints;
            }
            for (node, has) in m.nodes.iter_mut().zip(endpoints) {
                node.endpoint = has.then(|| "198.51.100.1:7000".into());
            }
        }
        state
    })
}

fn can(state: &FederationState, node: &NodeRef) -> (String, bool) {
    let member = state
        .members
        .iter()
        .find(|m| m.name == node.member)
        .expect("a member");
    let found = member.nodes.iter().find(|n| n.name == node.node).expect("a node");
    let open = member.reachability == Reachability::Routed || found.endpoint.is_some();
    (member.partition.clone(), open)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Every pair of nodes that has any way gets one, and all that take part know of it.
    #[test]
    fn every_pair_that_has_a_way_gets_one(mut state in scattered()) {
        let r = settle(&mut state);
        let gateways: Vec<NodeRef> = ["fra-1", "fra-2", "other"].map(|m| NodeRef::new(m, format!("{m}-n1"))).to_vec();
        for (user, gateway) in [1, 2].into_iter().flat_map(|n| gateways[..2].iter().map(move |g| (NodeRef::new("shop", format!("shop-n{n}")), g))) {
            let (a, b) = (can(&state, &user), can(&state, gateway));
            let third: BTreeSet<&NodeRef> = gateways.iter().filter(|g| g.member != gateway.member && can(&state, g).1).collect();
            let needs = a.0 != b.0 && !a.1 && !b.1;
            for (from, to) in [(&user, gateway), (gateway, &user)] {
                let known = peer(&r, &from.member, &to.member).and_then(|p| p.nodes.iter().find(|n| n.name == to.node));
                let known = known.expect("each is the other's peer");
                let alone = own(&r, &from.member).uncallable.contains(&from.node);
                prop_assert!(alone || a.0 == b.0 || can(&state, from).1, "who can't be called knows it");
                let relayed = alone && !known.relays.is_empty();
                prop_assert_eq!(relayed, needs && !third.is_empty());
                if !relayed {
                    continue;
                }
                prop_assert_eq!(known.relays.iter().collect::<BTreeSet<_>>(), third.clone());
                for relay in &known.relays {
                    let hop = peer(&r, &from.member, &relay.member).expect("the relay is its peer");
                    prop_assert!(hop.encrypted);
                    let hop = hop.nodes.iter().find(|n| n.name == relay.node).expect("named");
                    prop_assert!(hop.relays.is_empty(), "no relay behind a relay");
                    let there = |node: &NodeRef| {
                        let peer = peer(&r, &relay.member, &node.member).expect("its ends are the relay's peers");
                        peer.nodes.iter().find(|n| n.name == node.node).expect("named").clone()
                    };
                    let (one, other) = (there(from), there(to));
                    prop_assert_eq!(other.relay_port, known.relay_port);
                    prop_assert!(one.relayed.contains(to) || other.relayed.contains(from));
                }
            }
        }
    }

    /// What is said at one end is said at the other.
    #[test]
    fn both_ends_say_the_same(mut state in scattered()) {
        let r = settle(&mut state);
        for (member, paths) in &r.paths {
            for path in paths {
                let mirrored = r.paths[&path.member].iter().any(|other| {
                    other.member == *member
                        && (&other.nodes, &other.peers) == (&path.peers, &path.nodes)
                        && (other.kind, &other.reason, &other.through) == (path.kind, &path.reason, &path.through)
                });
                prop_assert!(mirrored, "{member}: {path:?}");
            }
        }
        state.members.reverse();
        state.gateways.reverse();
        prop_assert_eq!(r, resolve(&state));
    }
}

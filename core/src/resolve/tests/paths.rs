//! Which paths plans want encrypted.

use spillway_crds::hub::{Encryption, WireGuardStatus};

use super::*;
use crate::wireguard::PublicKey;

/// Members shop (two nodes) and fra-1 (gateway frankfurt) in these partitions, each node with a key.
fn state(partitions: [&str; 2], hub: Encryption, gateway: Option<Encryption>) -> FederationState {
    let mut state = typical();
    state.encryption = hub;
    for g in &mut state.gateways {
        g.spec.encryption = gateway;
    }
    for m in &mut state.members {
        m.partition = partitions[usize::from(m.name != "shop")].into();
        for (n, node) in (1..).zip(&mut m.nodes) {
            node.wireguard = Some(WireGuardStatus {
                public_keys: vec![PublicKey::from([n; 32]).to_string(), "no key".into()],
                ..WireGuardStatus::default()
            });
        }
    }
    state
}

/// Whether each end wants the path to the other encrypted, and its own nodes' paths.
fn demanded(mut state: FederationState) -> [bool; 4] {
    let plans = settle(&mut state).plans;
    let of = |member: &str, other: &str| {
        let key = |kind, name: &str| ResourceKey {
            kind,
            name: name.into(),
        };
        let plan = &plans[member];
        let Some(Resource::Peer(peer)) = plan.get(&key(ResourceKind::Peer, other)) else {
            panic!("{member} has no peer {other}");
        };
        assert_eq!(
            peer.nodes.iter().all(|n| n.public_keys.len() == 1),
            peer.encrypted,
            "keys are there where they are needed, and only keys"
        );
        let Some(Resource::Member(own)) = plan.get(&key(ResourceKind::Member, spillway_crds::SINGLETON))
        else {
            panic!("{member} isn't in its own plan");
        };
        [peer.encrypted, own.encrypted]
    };
    let ([a, b], [c, d]) = (of("shop", "fra-1"), of("fra-1", "shop"));
    [a, c, b, d]
}

use Encryption::{Always, CrossPartition, Never};

#[test]
fn partitions_decide_unless_somebody_says_otherwise() {
    let demanded = |partitions, hub, gateway| demanded(state(partitions, hub, gateway));
    let (same, other) = (["west", "west"], ["west", "east"]);
    assert_eq!(demanded(same, CrossPartition, None), [false; 4]);
    assert_eq!(demanded(other, CrossPartition, None), [true, true, false, false]);
    assert_eq!(demanded(other, Never, None), [false; 4]);
    assert_eq!(demanded(same, Always, None), [true, true, false, true]);
    assert_eq!(demanded(same, Always, Some(CrossPartition)), [false; 4]);
    assert_eq!(demanded(other, Always, Some(Never)), [false; 4]);
    assert_eq!(demanded(same, Never, Some(Always)), [true, true, false, true]);
}

#[test]
fn of_two_gateways_on_one_path_the_stricter_decides() {
    let mut state = state(["west", "west"], CrossPartition, Some(Never));
    let mut second = gateway("strict", 900, &["fra-1"], &["203.0.113.200"]);
    second.spec.encryption = Some(Always);
    state.gateways.push(second);
    state
        .policies
        .push(policy("strict", &[("name", "shop")], &["strict"]));
    assert_eq!(demanded(state), [true, true, false, true]);
}

#[test]
fn a_published_endpoint_is_for_other_partitions() {
    let called = |partitions| {
        let mut state = state(partitions, Always, None);
        for node in state.members.iter_mut().flat_map(|m| &mut m.nodes) {
            node.endpoint = Some("198.51.100.1:7000".into());
        }
        let resolution = settle(&mut state);
        let peer = peer(&resolution, "shop", "fra-1").expect("a peer");
        peer.nodes.iter().all(|n| n.endpoint.is_some())
    };
    assert!(called(["west", "east"]));
    assert!(!called(["west", "west"]));
}

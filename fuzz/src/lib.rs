//! Every decoder of bytes that others write, as a target: it must not panic, whatever the bytes, and what it makes of
//! them must hold together.
//!
//! `cargo test` runs each over `fuzz/corpus` and a bounded number of mutations of it, on stable. The program runs one over standard
//! input, which is what coverage-guided fuzzers want: `cargo afl fuzz -i fuzz/corpus/nft -o out target/debug/spillway-fuzz nft`.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use spillway_cni::cache::Cache;
use spillway_cni::config::Input;
use spillway_cni::protocol::{Answer, Request};
use spillway_core::health::Message;
use spillway_core::plan::{Resource, ResourceKey, ResourceKind};

/// A decoder.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its directory in `fuzz/corpus`.
    pub name: &'static str,
    /// Panics where the decoder is wrong.
    pub run: fn(&[u8]),
}

/// All there are.
pub const TARGETS: [Target; 8] = [
    Target {
        name: "hub-messages",
        run: spillway_link::fuzz::hub_messages,
    },
    Target {
        name: "member-messages",
        run: spillway_link::fuzz::member_messages,
    },
    Target {
        name: "joining",
        run: spillway_link::fuzz::joining,
    },
    Target {
        name: "resources",
        run: resources,
    },
    Target {
        name: "probes",
        run: probes,
    },
    Target {
        name: "cni",
        run: cni,
    },
    Target {
        name: "nft",
        run: nft,
    },
    Target {
        name: "netlink",
        run: spillway_dataplane::linux::fuzz::netlink,
    },
];

/// A plan's resources, of each kind.
fn resources(bytes: &[u8]) {
    for kind in [
        ResourceKind::Member,
        ResourceKind::Peer,
        ResourceKind::Gateway,
        ResourceKind::Policy,
    ] {
        let name = "a".to_owned();
        if let Ok(read) = Resource::decode(&ResourceKey { kind, name }, bytes) {
            let again = Resource::decode(&read.key(), &read.encode());
            assert_eq!(again.expect("what it wrote itself"), read);
        }
    }
}

/// What gateways' nodes ask each other.
fn probes(bytes: &[u8]) {
    if let Some(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode()), Some(message));
    }
}

/// What the runtime hands to the plugin, and what plugin and agent tell each other.
fn cni(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(input) = Input::parse(text)
    {
        let _ = (input.containers(), input.addresses());
    }
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let line = serde_json::to_vec(&request).expect("plain structs encode");
        assert_eq!(serde_json::from_slice::<Request>(&line).ok(), Some(request));
    }
    let _ = serde_json::from_slice::<Answer>(bytes);
    if let Ok(cache) = serde_json::from_slice::<Cache>(bytes) {
        let _ = cache.standing("default", &BTreeSet::new());
    }
}

/// What `nft -j` prints.
fn nft(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = spillway_dataplane::nft::parse(text);
        let _ = spillway_dataplane::nft::read_counts(text);
    }
}

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|t| t.name == name)
}

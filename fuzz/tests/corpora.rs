//! Each target over its corpus, and over mutations of it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use spillway_fuzz::{TARGETS, Target, target};

/// Mutations of each target's corpus, unless `PROPTEST_CASES` says how many.
const CASES: u32 = 2000;

fn corpus(target: Target) -> Vec<Vec<u8>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name);
    let mut files: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One change. Positions are parts of the whole in 65,536ths.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(u16, u8),
    Set(u16, u8),
    /// A number as lengths and counts are written.
    Number(u16, u32, bool),
    Cut(u16, u16),
    Repeat(u16, u16),
    Truncate(u16),
    /// A part of another seed.
    Splice(u16, usize, u16, u16),
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let at = any::<u16>;
    let byte = prop_oneof![
        3 => any::<u8>(),
        2 => prop::sample::select(b"\"{}[],:-0129eE.\\/\x00\x01\x7f\x80\xff".to_vec()),
    ];
    let number = prop::sample::select(vec![
        0,
        1,
        3,
        4,
        16,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0xffff,
        0x7fff_ffff,
        u32::MAX,
    ]);
    let mutation = prop_oneof![
        (at(), 0u8..8).prop_map(|(a, b)| Mutation::Flip(a, b)),
        (at(), byte).prop_map(|(a, b)| Mutation::Set(a, b)),
        (at(), number, any::<bool>()).prop_map(|(a, n, wide)| Mutation::Number(a, n, wide)),
        (at(), at()).prop_map(|(a, b)| Mutation::Cut(a, b)),
        (at(), at()).prop_map(|(a, b)| Mutation::Repeat(a, b)),
        at().prop_map(Mutation::Truncate),
        (at(), any::<usize>(), at(), at()).prop_map(|(a, s, b, c)| Mutation::Splice(a, s, b, c)),
    ];
    prop::collection::vec(mutation, 1..6)
}

fn place(at: u16, length: usize) -> usize {
    usize::from(at) * length / 65_536
}

fn span(from: u16, to: u16, length: usize) -> std::ops::Range<usize> {
    let (a, b) = (place(from, length), place(to, length));
    a.min(b)..a.max(b)
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation, seeds: &[Vec<u8>]) {
    let length = bytes.len();
    match *mutation {
        Mutation::Flip(..) | Mutation::Set(..) if length == 0 => {}
        Mutation::Flip(at, bit) => bytes[place(at, length)] ^= 1 << bit,
        Mutation::Set(at, byte) => bytes[place(at, length)] = byte,
        Mutation::Number(at, number, wide) => {
            let all = number.to_ne_bytes();
            let written = if wide { &all[..] } else { &all[..2] };
            let at = place(at, length);
            for (byte, new) in bytes[at..].iter_mut().zip(written) {
                *byte = *new;
            }
        }
        Mutation::Cut(from, to) => drop(bytes.drain(span(from, to, length))),
        Mutation::Repeat(from, to) => {
            let range = span(from, to, length);
            let part = bytes[range.clone()].to_vec();
            bytes.splice(range.start..range.start, part);
        }
        Mutation::Truncate(at) => bytes.truncate(place(at, length)),
        Mutation::Splice(at, seed, from, to) => {
            let other = &seeds[seed % seeds.len()];
            let part = other[span(from, to, other.len())].to_vec();
            let at = place(at, length);
            bytes.splice(at..at, part);
        }
    }
}

fn check(name: &str) {
    let target = target(name).unwrap();
    let seeds = corpus(target);
    for seed in &seeds {
        (target.run)(seed);
    }
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let config = ProptestConfig {
        cases: cases.unwrap_or(CASES),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(seed in any::<usize>(), mutations in mutations())| {
        let mut bytes = seeds[seed % seeds.len()].clone();
        for mutation in &mutations {
            mutate(&mut bytes, mutation, &seeds);
        }
        (target.run)(&bytes);
    });
}

macro_rules! targets {
    ($($name:ident = $target:literal),* $(,)?) => {
        $(#[test]
        fn $name() {
            check($target);
        })*

        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.map(|t| t.name).to_vec(), [$($target),*]);
        }
    };
}

targets! {
    hub_messages = "hub-messages",
    member_messages = "member-messages",
    joining = "joining",
    resources = "resources",
    probes = "probes",
    cni = "cni",
    nft = "nft",
    netlink = "netlink",
}

//! Scenarios on real clusters. `SCENARIO` (a scenario or a group) picks some; matching none is an error.
//!
//! | group | what it needs |
//! |---|---|
//! | `arena` | clusters of its own: what the others take for granted about the arena |
//! | `api` | a cluster of its own: a hub in this process against a real API server |
//! | `federation` | a hub and two members whose pod ranges are the same |
//! | `lifecycle` | the same federation: what happens to it over the years |
//! | `no-leak` | the same federation: pods whose first act is to send |
//! | `failover` | a federation with gateways of several nodes: connections live through every fault of them |
//! | `network-policy` | a federation with a gateway of several nodes, and a real enforcer of NetworkPolicy |
//! | `partitions` | a gateway in one partition and a member in another |
//! | `parity` | the federation of group `federation`: what single-cluster egress gateways offer |
//!
//! `SPILLWAY_PROVIDER` says what the clusters' machines are made of. A scenario that needs what the provider can't do
//! is listed as ignored, with the reason; docs/reference/scenarios.md has them all.
//!
//! The scenarios of groups `federation`, `lifecycle`, `no-leak` and `parity` share one, those of `failover` and `network-policy` another: it comes
//! up with the first that runs and goes down after the last. Each works in namespaces of its own, and leaves gateways and members as it found them.
//! What is told to different federations runs side by side where the machine has four processors and the memory ([`lane`]); `--test-threads 1` says no.

#![expect(clippy::print_stdout, reason = "the table is the program's output")]

mod api;
mod arena;
mod failover;
mod federation;
mod lane;
mod lifecycle;
mod network_policy;
mod no_leak;
mod parity;
mod partitions;
mod shared;
mod table;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use spillway_e2e::Provider;

use lane::Lanes;
use shared::Scenario;

/// An argument that has the table of scenarios and providers printed, and nothing run.
const TABLE: &str = "--table";

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == TABLE) {
        print!("{}", table::of(&all()));
        return ExitCode::SUCCESS;
    }
    let provider = match Provider::from_environment() {
        Ok(provider) => provider,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(2);
        }
    };
    let mut arguments = Arguments::from_args();
    let scenarios = all();
    arguments.filter = arguments.filter.map(|f| whole_group(&scenarios, f));
    let names: Vec<String> = scenarios.iter().map(|s| s.name.clone()).collect();
    let wanted: Vec<Scenario> = scenarios
        .into_iter()
        .filter(|s| selected(&arguments, &s.name))
        .collect();
    if wanted.is_empty() {
        eprintln!("no scenario matches; there are:");
        for name in names {
            eprintln!("  {name}");
        }
        return ExitCode::from(2);
    }
    let (possible, impossible): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|s| s.lacking(provider).is_none());
    let turns = Lanes::leaked(provider, arguments.test_threads).turns(&possible);
    // Each waits for its turn in a thread of its own.
    arguments.test_threads = Some(possible.len().max(1));
    let runs = possible.into_iter().zip(turns).map(|(scenario, turn)| {
        Trial::test(scenario.name.clone(), move || {
            turn.run(&scenario)
                .map_err(|err| Failed::from(format!("{err:?}")))
        })
    });
    // Listed, with the reason, and not run.
    let ignored = impossible.into_iter().map(|scenario| {
        let reason = scenario.lacking(provider).unwrap_or_default();
        Trial::test(scenario.name, || Ok(()))
            .with_kind(format!("not applicable with {provider}: {reason}"))
            .with_ignored_flag(true)
    });
    let trials = ignored.chain(runs).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// All scenarios, in the order in which they run.
fn all() -> Vec<Scenario> {
    [
        arena::scenarios(),
        api::scenarios(),
        federation::scenarios(),
        lifecycle::scenarios(),
        no_leak::scenarios(),
        parity::scenarios(),
        failover::scenarios(),
        network_policy::scenarios(),
        partitions::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A group's name stands for its scenarios, and for no others with that word in their names.
fn whole_group(scenarios: &[Scenario], filter: String) -> String {
    let group = format!("{filter}::");
    if scenarios.iter().any(|s| s.name.starts_with(&group)) {
        group
    } else {
        filter
    }
}

/// Whether the harness is going to run the scenario: the same rule as libtest's.
fn selected(arguments: &Arguments, name: &str) -> bool {
    arguments.filter.as_deref().is_none_or(|f| {
        if arguments.exact {
            name == f
        } else {
            name.contains(f)
        }
    }) && !arguments.skip.iter().any(|s| name.contains(s.as_str()))
}

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

mod api;
mod arena;
mod failover;
mod federation;
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

use shared::{Scenario, Stage};

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
    // The scenarios break and repair one shared federation: one after the other.
    arguments.test_threads = Some(1);
    let stage = Stage::leaked();
    let scenarios = all();
    arguments.filter = arguments.filter.map(|f| whole_group(&scenarios, f));
    let wanted = scenarios.iter().filter(|s| selected(&arguments, &s.name)).count();
    if wanted == 0 {
        eprintln!("no scenario matches; there are:");
        for scenario in &scenarios {
            eprintln!("  {}", scenario.name);
        }
        return ExitCode::from(2);
    }
    let trials = scenarios
        .into_iter()
        .map(|scenario| {
            // Listed, with the reason, and not run.
            if let Some(reason) = scenario.lacking(provider) {
                return Trial::test(scenario.name, || Ok(()))
                    .with_kind(format!("not applicable with {provider}: {reason}"))
                    .with_ignored_flag(true);
            }
            Trial::test(scenario.name.clone(), move || {
                stage
                    .run(&scenario)
                    .map_err(|err| Failed::from(format!("{err:?}")))
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let down = stage.down();
    if let Err(err) = &down {
        eprintln!("taking the arena down: {err:?}");
    }
    if conclusion.has_failed() || down.is_err() {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
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

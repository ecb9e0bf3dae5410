//! The hub's program.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match spillway_hub::start(&spillway_hub::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the hub ends");
            ExitCode::FAILURE
        }
    }
}

//! The command line of Spillway, as a library that two binaries share.
//!
//! ```text
//! args ─► hub (install, uninstall) ─┐
//!         token (create, list, …)   ├─► values ─► manifest (the charts' objects, embedded)
//!         join, leave ──────────────┘      └────► cluster (server-side apply, waiting)
//!         migrate ──────────────────────────────► others' objects in our words, as YAML
//!         failover (status, drain) ─────────────► table, a label on a node
//!         status, version ──────────────────────► report ─► tables, JSON or YAML
//!         check ─► status, before, after ───────► findings
//!         gather ─► objects, logs, nodes ───────► redact ─► archive
//! ```
//!
//! Results go to stdout, everything else to stderr. A command either succeeds or returns a
//! [`failure::Failure`]: what is wrong, what to do, and an exit code of its own.

pub mod args;
pub mod check;
pub mod cluster;
pub mod failover;
pub mod failure;
pub mod gather;
pub mod hub;
pub mod join;
pub mod leave;
pub mod manifest;
pub mod migrate;
pub mod output;
pub mod pods;
pub mod reference;
pub mod status;
pub mod token;
pub mod ui;
pub mod values;
pub mod version;
pub mod wait;
pub mod words;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command, FailoverCommand, HubCommand, MigrateCommand, TokenCommand};
use failure::Failure;
use ui::Ui;

/// Field manager of everything the CLI writes.
pub const FIELD_MANAGER: &str = "spillway-cli";

/// Parses the arguments, runs the command, prints its failure.
pub async fn run() -> ExitCode {
    let arguments = Arguments::parse();
    // Fails only where a provider is set already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ui = Ui::for_terminal();
    match dispatch(arguments, &ui).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            ui.failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

async fn dispatch(arguments: Arguments, ui: &Ui) -> Result<(), Failure> {
    let target = arguments.target;
    match arguments.command {
        Command::Hub(HubCommand::Install(install)) => hub::install::run(&target, install, ui).await,
        Command::Hub(HubCommand::Uninstall(uninstall)) => hub::uninstall::run(&target, &uninstall, ui).await,
        Command::Hub(HubCommand::Backup(backup)) => hub::backup::run(&target, &backup, ui).await,
        Command::Hub(HubCommand::Restore(restore)) => hub::restore::run(&target, &restore, ui).await,
        Command::Hub(HubCommand::RotateCa(rotate)) => hub::rotate_ca::run(&target, &rotate, ui).await,
        Command::Token(TokenCommand::Create(create)) => token::create::run(&target, create, ui).await,
        Command::Token(TokenCommand::List(list)) => token::list::run(&target, &list).await,
        Command::Token(TokenCommand::Revoke(revoke)) => token::revoke::run(&target, &revoke, ui).await,
        Command::Join(join) => join::run(&target, join, ui).await,
        Command::Leave(leave) => leave::run(&target, &leave, ui).await,
        Command::Status(status) => status::run(&target, &status).await,
        Command::Check(check) => check::run(&target, &check).await,
        Command::Gather(gather) => gather::run(&target, &gather, ui).await,
        Command::Failover(FailoverCommand::Status(status)) => failover::status(&target, &status).await,
        Command::Failover(FailoverCommand::Drain(drain)) => failover::drain(&target, &drain, ui).await,
        Command::Failover(FailoverCommand::Undrain(undrain)) => {
            failover::undrain(&target, &undrain, ui).await
        }
        Command::Failover(FailoverCommand::Pin(pin)) => failover::pin(&target, &pin, ui).await,
        Command::Failover(FailoverCommand::Unpin(unpin)) => failover::unpin(&target, &unpin, ui).await,
        Command::Migrate(MigrateCommand::Egressgateway(args)) => {
            migrate::egressgateway(&target, &args, ui).await
        }
        Command::Version(version) => version::run(&target, &version).await,
        Command::Completion { shell } => reference::completion(shell),
        Command::Reference => reference::print(),
    }
}

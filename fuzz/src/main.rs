//! Runs one target over standard input.

use std::io::Read as _;
use std::process::ExitCode;

use spillway_fuzz::{TARGETS, target};

fn main() -> ExitCode {
    let Some(target) = std::env::args().nth(1).as_deref().and_then(target) else {
        let names = TARGETS.map(|t| t.name).join(", ");
        eprintln!("usage: spillway-fuzz TARGET < BYTES\ntargets: {names}");
        return ExitCode::FAILURE;
    };
    let mut bytes = Vec::new();
    if let Err(error) = std::io::stdin().read_to_end(&mut bytes) {
        eprintln!("standard input can't be read: {error}");
        return ExitCode::FAILURE;
    }
    (target.run)(&bytes);
    ExitCode::SUCCESS
}

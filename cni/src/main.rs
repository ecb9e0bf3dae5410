//! `spillway-cni`: see the library.
#![forbid(unsafe_code)]

use std::io::{Read as _, stdin, stdout};
use std::process::ExitCode;

use spillway_cni::plugin;

fn main() -> ExitCode {
    let mut input = String::new();
    // What can't be read is told as a configuration that can't be.
    if stdin().read_to_string(&mut input).is_err() {
        input.clear();
    }
    if plugin::run(|name| std::env::var(name).ok(), &input, &mut stdout().lock()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

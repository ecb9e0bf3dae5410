//! Prints what is generated from the API types: `cargo run -p spillway-crds --example crdgen -- hub|member|docs`.

mod reference;

use std::process::ExitCode;

use spillway_crds::export::{hub_crds, member_crds, to_yaml};

fn main() -> ExitCode {
    let text = match std::env::args().nth(1).as_deref() {
        Some("hub") => to_yaml(&hub_crds()).map_err(|err| err.to_string()),
        Some("member") => to_yaml(&member_crds()).map_err(|err| err.to_string()),
        Some("docs") => reference::markdown(&hub_crds(), &member_crds()).map_err(|err| err.to_string()),
        _ => {
            eprintln!("usage: crdgen hub|member|docs");
            return ExitCode::from(2);
        }
    };
    match text {
        Ok(text) => {
            #[expect(clippy::print_stdout, reason = "the program's output")]
            {
                print!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("crdgen: {err}");
            ExitCode::FAILURE
        }
    }
}

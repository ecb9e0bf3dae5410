//! Prints the CustomResourceDefinitions: `cargo run -p spillway-crds --example crdgen -- hub|member`.

use std::process::ExitCode;

use spillway_crds::export::{hub_crds, member_crds};

fn main() -> ExitCode {
    let crds = match std::env::args().nth(1).as_deref() {
        Some("hub") => hub_crds(),
        Some("member") => member_crds(),
        _ => {
            eprintln!("usage: crdgen hub|member");
            return ExitCode::from(2);
        }
    };
    match spillway_crds::export::to_yaml(&crds) {
        Ok(yaml) => {
            #[expect(clippy::print_stdout, reason = "the program's output")]
            {
                print!("{yaml}");
            }
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("crdgen: {err}");
            ExitCode::FAILURE
        }
    }
}

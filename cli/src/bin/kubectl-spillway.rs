//! `kubectl spillway`: the same program, under the name by which kubectl finds its plugins.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    spillway_cli::run().await
}

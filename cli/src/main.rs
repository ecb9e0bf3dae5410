//! `spillway`: installs the hub, joins clusters, says how the federation is doing.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    spillway_cli::run().await
}

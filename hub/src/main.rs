//! The hub's program.

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    let args = spillway_hub::Args::parse();
    spillway_hub::start(args)
}

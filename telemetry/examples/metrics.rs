//! Writes `docs/reference/metrics.md` to stdout.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(spillway_telemetry::reference().as_bytes())
}

//! The traffic program of the arena; see `probe --help`.

fn main() -> std::process::ExitCode {
    spillway_e2e::probe::main()
}

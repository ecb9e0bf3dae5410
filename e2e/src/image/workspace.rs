//! Finds the workspace's own programs, and builds those that are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::provision::process;
use crate::provision::progress::Progress;

/// A program of the workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// The package that builds it.
    pub(crate) package: &'static str,
    /// Its file name.
    pub(crate) name: &'static str,
}

/// The paths of `programs`, in their order, as the profile of the running program built them.
/// Only missing ones are built: whoever changed sources builds before.
pub(crate) fn programs(programs: &[Program]) -> anyhow::Result<Vec<PathBuf>> {
    let folder = profile_folder()?;
    let missing: Vec<Program> = programs
        .iter()
        .copied()
        .filter(|program| !folder.join(program.name).is_file())
        .collect();
    if !missing.is_empty() {
        build(&missing, &folder)?;
    }
    programs
        .iter()
        .map(|program| {
            let path = folder.join(program.name);
            ensure!(
                path.is_file(),
                "cargo build -p {} left no program {}",
                program.package,
                path.display()
            );
            Ok(path)
        })
        .collect()
}

fn build(missing: &[Program], folder: &Path) -> anyhow::Result<()> {
    let names: Vec<&str> = missing.iter().map(|program| program.name).collect();
    let target = folder
        .parent()
        .context("a profile's folder stands in a target folder")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .arg("build")
        .args(profile_arguments(folder))
        .current_dir(workspace_root())
        .env("CARGO_TARGET_DIR", target);
    for program in missing {
        command.args(["-p", program.package, "--bin", program.name]);
    }
    let title = format!("building {} with cargo", names.join(", "));
    let mut progress = Progress::start(&title, 0);
    let finished = process::run(&mut command, |line| {
        progress.show(line.unwrap_or("compiling").trim());
    })?;
    if !finished.status.success() {
        progress.abandon();
        bail!("{title} failed:\n{}", finished.tail.join("\n"));
    }
    progress.finish();
    Ok(())
}

/// The folder of the profile that this program was built in, such as target/debug.
fn profile_folder() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find the running program's own path")?;
    if let Some(folder) = profile_folder_of(&program) {
        return Ok(folder);
    }
    // An installed arena: fall back on where cargo would build now.
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from);
    Ok(workspace_root().join(target).join("debug"))
}

/// Tests run from `deps`, programs from the folder above it; cargo keeps its fingerprints there too.
fn profile_folder_of(program: &Path) -> Option<PathBuf> {
    program
        .ancestors()
        .skip(1)
        .take(2)
        .find(|folder| folder.join(".fingerprint").is_dir())
        .map(Path::to_owned)
}

/// What makes cargo build into a folder of this name.
fn profile_arguments(folder: &Path) -> Vec<String> {
    match folder.file_name().map(|name| name.to_string_lossy()).as_deref() {
        None | Some("debug") => Vec::new(),
        Some("release") => vec!["--release".to_owned()],
        Some(other) => vec!["--profile".to_owned(), other.to_owned()],
    }
}

fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_found_from_a_program_and_from_a_test() {
        let target = tempfile::tempdir().unwrap();
        let debug = target.path().join("debug");
        std::fs::create_dir_all(debug.join(".fingerprint")).unwrap();
        assert_eq!(profile_folder_of(&debug.join("arena")), Some(debug.clone()));
        assert_eq!(
            profile_folder_of(&debug.join("deps/federation-0123")),
            Some(debug)
        );
        assert_eq!(profile_folder_of(Path::new("/usr/local/bin/arena")), None);
    }

    #[test]
    fn this_test_runs_from_a_profile() {
        assert!(profile_folder().unwrap().join("deps").is_dir());
    }

    #[test]
    fn folders_name_their_profile() {
        assert!(profile_arguments(Path::new("/t/debug")).is_empty());
        assert_eq!(profile_arguments(Path::new("/t/release")), ["--release"]);
        assert_eq!(profile_arguments(Path::new("/t/fast")), ["--profile", "fast"]);
    }
}

//! Finds a Go toolchain that is new enough, or fetches one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow};
use serde::Deserialize;

use super::debian;
use super::progress::say;

/// The Go version that is fetched when the machine has none, or an older one. At least what every go.mod asks for.
const VERSION: (u16, u16, u16) = (1, 26, 8);

/// The Go command to build with.
#[derive(Clone, Debug)]
pub(crate) struct Go {
    program: PathBuf,
}

impl Go {
    /// A Go that can build modules that ask for `needed`. `locks` is the folder of locks between processes.
    pub(crate) fn ensure(needed: (u16, u16, u16), locks: &Path) -> anyhow::Result<Self> {
        let mut found = candidates();
        if found.is_empty() {
            debian::ensure(&["golang-go"], &locks.join("debian"))?;
            found = candidates();
        }
        if let Some((program, _)) = found.iter().find(|(_, version)| *version >= needed) {
            return Ok(Self {
                program: program.clone(),
            });
        }
        let (old, version) = found
            .first()
            .context("golang-go is installed, yet no go command can be run")?;
        Self::fetch(old, *version)
    }

    /// `go` with the environment every build has: no C compiler, this very toolchain, no version control.
    pub(crate) fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(dir)
            .env("CGO_ENABLED", "0")
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "-buildvcs=false")
            .env("GOWORK", "off")
            .env_remove("GOROOT")
            .env_remove("GOOS")
            .env_remove("GOARCH");
        command
    }

    /// Lets an old Go download a newer one: toolchains are published as modules.
    fn fetch(old: &Path, old_version: (u16, u16, u16)) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Download {
            dir: Option<PathBuf>,
            error: Option<String>,
        }

        let (major, minor, patch) = VERSION;
        let arch = crate::image::go_arch();
        let module = format!("golang.org/toolchain@v0.0.1-go{major}.{minor}.{patch}.linux-{arch}");
        say(&format!(
            "Go {}.{} is too old here; fetching Go {major}.{minor}.{patch}",
            old_version.0, old_version.1
        ));
        let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
        let output = Command::new(old)
            .args(["mod", "download", "-json", &module])
            .current_dir(scratch.path())
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "")
            .output()
            .with_context(|| format!("cannot run {}", old.display()))?;
        let download: Download = serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "{} mod download {module}: {}",
                old.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })?;
        let dir = download.dir.ok_or_else(|| {
            anyhow!("cannot download {module}: {}. Check the network and GOPROXY, or install Go {major}.{minor} yourself", download.error.unwrap_or_default())
        })?;
        // The module cache knows no executable files.
        for folder in ["bin", &format!("pkg/tool/linux_{arch}")] {
            make_executable(&dir.join(folder))?;
        }
        Ok(Self {
            program: dir.join("bin/go"),
        })
    }
}

/// The Go commands on this machine with their versions, the preferred one first.
fn candidates() -> Vec<(PathBuf, (u16, u16, u16))> {
    ["go", "/usr/local/go/bin/go", "/usr/lib/go/bin/go"]
        .iter()
        .filter_map(|program| {
            let output = Command::new(program)
                .args(["env", "GOVERSION"])
                .env("GOTOOLCHAIN", "local")
                .output()
                .ok()?;
            let version = parse_version(&String::from_utf8_lossy(&output.stdout))?;
            Some((PathBuf::from(program), version))
        })
        .collect()
}

/// Reads `go1.26.8`, also with what distributions append.
fn parse_version(text: &str) -> Option<(u16, u16, u16)> {
    let text = text.trim().strip_prefix("go")?;
    let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    let mut parts = numbers.split('.').map(|part| part.parse::<u16>().ok());
    Some((
        parts.next()??,
        parts.next()??,
        parts.next().flatten().unwrap_or(0),
    ))
}

/// The version of Go that a go.mod asks for.
pub(crate) fn needed(go_mod: &str) -> Option<(u16, u16, u16)> {
    go_mod
        .lines()
        .find_map(|line| parse_version(&format!("go{}", line.strip_prefix("go ")?)))
}

fn make_executable(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::go_dir;

    #[test]
    fn versions_are_read_as_go_and_distributions_write_them() {
        assert_eq!(parse_version("go1.26.8\n"), Some((1, 26, 8)));
        assert_eq!(parse_version("go1.19"), Some((1, 19, 0)));
        assert_eq!(parse_version("go1.26.8-X:nodwarf5"), Some((1, 26, 8)));
        assert_eq!(parse_version("go1.27rc1"), Some((1, 27, 0)));
        assert_eq!(parse_version("devel +abc"), None);
    }

    #[test]
    fn the_fetched_go_is_new_enough_for_every_module() {
        for entry in std::fs::read_dir(go_dir()).unwrap() {
            let file = entry.unwrap().path().join("go.mod");
            if let Ok(text) = std::fs::read_to_string(&file) {
                assert!(needed(&text).unwrap() <= VERSION, "{}", file.display());
            }
        }
    }

    /// Calls `testdata/old-go` by a name in `folder`, where it keeps what it "downloads".
    fn old_go(folder: &Path) -> PathBuf {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/provision/testdata/old-go");
        let program = folder.join("go");
        std::os::unix::fs::symlink(script, &program).unwrap();
        program
    }

    #[test]
    fn an_old_go_fetches_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let go = Go::fetch(&old_go(folder.path()), (1, 21, 0)).unwrap();
        assert_eq!(go.program, folder.path().join("toolchain/bin/go"));
        let output = go.command(folder.path()).arg("version").output().unwrap();
        let (major, minor, patch) = VERSION;
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{major}.{minor}.{patch}, linked by link\n"),
            "the new one runs, and so do its tools"
        );
    }

    #[test]
    fn a_download_that_fails_says_why_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("offline"), "").unwrap();
        let message = Go::fetch(&old_go(folder.path()), (1, 21, 0))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("no such host") && message.contains("GOPROXY"),
            "{message}"
        );
    }
}

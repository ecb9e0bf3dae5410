//! Builds the programs of one Go module into the cache.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::golang::{self, Go};
use super::lock::Lock;
use super::process;
use super::program::GoModule;
use super::progress::Progress;

/// Where the programs of `module` are, or will be.
pub(crate) fn folder(cache: &Path, module: &GoModule) -> PathBuf {
    cache.join("bin").join(module.cache_name())
}

/// Builds `module` unless the cache has it. `go` is asked for only when there is something to build.
/// True when there was something to do.
pub(crate) fn ensure(cache: &Path, module: &GoModule, title: &str) -> anyhow::Result<bool> {
    let target = folder(cache, module);
    if target.is_dir() {
        return Ok(false);
    }
    let locks = cache.join("locks");
    let name = module.cache_name();
    let _lock = Lock::take(&locks.join(&name), &format!("building {title}"))?;
    // Whoever held the lock may have built it.
    if target.is_dir() {
        return Ok(true);
    }
    let go_mod = std::fs::read_to_string(module.dir.join("go.mod"))?;
    let go = Go::ensure(golang::needed(&go_mod).context("go.mod has no go line")?, &locks)?;

    let bin = cache.join("bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let prefix = format!(".building-{name}-");
    remove_leftovers(&bin, &prefix)?;
    let scratch = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(&bin)
        .with_context(|| format!("cannot make a folder in {}", bin.display()))?;
    let log = cache.join("logs").join(format!("{name}.log"));
    build(&go, module, title, scratch.path(), &log)?;
    for (built, wanted) in module.renames {
        std::fs::rename(scratch.path().join(built), scratch.path().join(wanted))
            .with_context(|| format!("the build of {title} left no program {built}"))?;
    }
    std::fs::rename(scratch.path(), &target)
        .with_context(|| format!("cannot move the finished programs to {}", target.display()))?;
    // It has another name now: nothing is left to remove.
    let _ = scratch.keep();
    make_readable(&target)?;
    Ok(true)
}

fn build(go: &Go, module: &GoModule, title: &str, output: &Path, log: &Path) -> anyhow::Result<()> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut log_file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;

    // Loading the package graph also downloads what is missing, and gives the bar its length.
    let mut progress = Progress::start(&format!("fetching the modules of {title}"), 0);
    let listed = process::run(go.command(&module.dir).args(["list", "-deps", "tool"]), |line| {
        progress.show(line.map_or("", |line| line.trim_start_matches("go: ")));
    })?;
    if !listed.status.success() {
        progress.abandon();
        bail!("{}", failure(title, module, &listed.tail, log));
    }
    progress.abandon();

    let packages = listed.stdout.lines().count() as u64;
    let mut progress = Progress::start(&format!("building {title}"), packages);
    let mut current = "starting".to_owned();
    let mut command = go.command(&module.dir);
    command
        .args(["build", "-v"])
        .args(module.flags())
        .arg("-o")
        .arg(with_slash(output))
        .arg("tool");
    let built = process::run(&mut command, |line| {
        let Some(line) = line else {
            return progress.show(&current);
        };
        // The log is for people; a full disk shows in the build itself.
        let _ = writeln!(log_file, "{line}");
        line.clone_into(&mut current);
        if line.starts_with("go: ") || line.contains(' ') {
            progress.show(line);
        } else {
            progress.step(line);
        }
    })?;
    if !built.status.success() {
        progress.abandon();
        bail!("{}", failure(title, module, &built.tail, log));
    }
    progress.finish();
    Ok(())
}

/// `go build -o` takes a path for a folder only when it ends in a slash.
fn with_slash(path: &Path) -> PathBuf {
    path.join("")
}

fn failure(title: &str, module: &GoModule, tail: &[String], log: &Path) -> String {
    let tail = tail.join("\n");
    let advice = advice(&tail, &module.dir);
    format!(
        "building {title} failed:\n{tail}\n\n{advice}\nThe whole output is in {}",
        log.display()
    )
}

/// What to do about a failed build.
fn advice(tail: &str, dir: &Path) -> String {
    let has = |phrases: &[&str]| phrases.iter().any(|phrase| tail.contains(phrase));
    if has(&["no space left on device"]) {
        "The disk is full: Kubernetes takes 4 GB in Go's build cache (go env GOCACHE) and 0.6 GB in ~/.cache/spillway".to_owned()
    } else if has(&["signal: killed", "cannot allocate memory"]) {
        "Out of memory: linking Kubernetes takes 3 GB; free some, or build with fewer cores (taskset -c 0)"
            .to_owned()
    } else if has(&[
        "missing go.sum entry",
        "updates to go.mod needed",
        "checksum mismatch",
        "SECURITY ERROR",
    ]) {
        format!(
            "The pins don't fit together: run go mod tidy in {} and look at the difference",
            dir.display()
        )
    } else if has(&[
        "dial tcp",
        "no such host",
        "i/o timeout",
        "TLS handshake",
        "connection refused",
        "proxyconnect",
        "EOF",
    ]) {
        "Modules could not be downloaded: check the network and `go env GOPROXY`, then start again (what is there is kept)".to_owned()
    } else {
        format!(
            "To see it by hand: cd {} && CGO_ENABLED=0 go build tool",
            dir.display()
        )
    }
}

/// Folders of builds that were killed; the lock says that none is going on.
fn remove_leftovers(bin: &Path, prefix: &str) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(bin).with_context(|| format!("cannot read {}", bin.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove the leftover {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// A temporary folder is its owner's only; programs may be run by anybody.
fn make_readable(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set the mode of {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(dir: &Path, source: &str) -> GoModule {
        std::fs::create_dir_all(dir).unwrap();
        let go_mod = "module a.example/tiny\n\ngo 1.26.0\n\ntool a.example/tiny\n";
        std::fs::write(dir.join("go.mod"), go_mod).unwrap();
        std::fs::write(dir.join("main.go"), source).unwrap();
        GoModule {
            dir: dir.to_owned(),
            name: "tiny".to_owned(),
            ldflags: "-s -w -X main.version=seven".to_owned(),
            tags: "",
            renames: &[("tiny", "renamed")],
            key: "0123456789abcdef".to_owned(),
        }
    }

    #[test]
    fn two_builders_at_once_build_once() {
        let scratch = tempfile::tempdir().unwrap();
        let cache = scratch.path().join("cache");
        let source = "package main\n\nvar version = \"none\"\n\nfunc main() { println(version) }\n";
        let module = module(&scratch.path().join("tiny"), source);
        std::fs::create_dir_all(cache.join("bin/.building-tiny-0123456789abcdef-dead")).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| ensure(&cache, &module, "tiny").unwrap());
            }
        });
        assert!(!ensure(&cache, &module, "tiny").unwrap(), "the cache has it");
        let output = std::process::Command::new(folder(&cache, &module).join("renamed"))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "seven\n");
        let left: Vec<_> = std::fs::read_dir(cache.join("bin"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["tiny-0123456789abcdef"], "no leftovers");
    }

    #[test]
    fn a_failed_build_shows_the_compiler_and_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let cache = scratch.path().join("cache");
        let module = module(
            &scratch.path().join("tiny"),
            "package main\n\nfunc main() { undefinedThing() }\n",
        );
        let message = ensure(&cache, &module, "tiny").unwrap_err().to_string();
        assert!(
            message.contains("undefinedThing") && message.contains("To see it by hand"),
            "{message}"
        );
        assert_eq!(std::fs::read_dir(cache.join("bin")).unwrap().count(), 0);
    }

    #[test]
    fn advice_names_the_cause() {
        let dir = Path::new("/src/go/etcd");
        for (output, expected) in [
            ("write /x: no space left on device", "disk is full"),
            ("compile: signal: killed", "Out of memory"),
            ("missing go.sum entry for module", "go mod tidy in /src/go/etcd"),
            ("dial tcp: lookup proxy: no such host", "GOPROXY"),
            ("syntax error", "cd /src/go/etcd"),
        ] {
            assert!(advice(output, dir).contains(expected), "{output}");
        }
    }
}

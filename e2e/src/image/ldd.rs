//! The shared libraries that a program needs, found the way the machine's own loader finds them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Every library that `program` loads at start, the loader included; empty for a static program.
///
/// # Errors
/// When one is missing on this machine, or ldd can't be run.
pub(crate) fn closure(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot run ldd on {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = String::from_utf8_lossy(&output.stderr);
    if is_static(&text) || is_static(&messages) {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        bail!("ldd {}: {}", program.display(), messages.trim());
    }
    parse(&text).with_context(|| format!("the libraries of {}", program.display()))
}

/// ldd says it on either stream, and fails for some static programs but not for all.
fn is_static(text: &str) -> bool {
    text.contains("not a dynamic executable") || text.contains("statically linked")
}

fn parse(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, place) = line.split_once(" => ").unwrap_or((line, line));
        if place == "not found" {
            bail!("{name} is not installed");
        }
        let path = place.split(" (").next().unwrap_or(place);
        // linux-vdso has no file: the kernel maps it.
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        } else if !path.starts_with("linux-vdso") && !path.starts_with("linux-gate") {
            bail!("ldd printed a line that is not understood: {line}");
        }
    }
    libraries.sort();
    libraries.dedup();
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_and_the_vdso_is_not() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x1)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse(text).unwrap(), expected.map(PathBuf::from));
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse("\tlibgone.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libgone.so.1"), "{error}");
    }

    #[test]
    fn this_test_needs_the_c_library_and_busybox_needs_nothing() {
        let own = closure(&std::env::current_exe().unwrap()).unwrap();
        assert!(
            own.iter().any(|path| path.to_string_lossy().contains("libc.so")),
            "{own:?}"
        );
        assert!(
            own.iter().any(|path| path.to_string_lossy().contains("ld-linux")),
            "{own:?}"
        );
        if Path::new("/bin/busybox").exists() {
            assert!(closure(Path::new("/bin/busybox")).unwrap().is_empty());
        }
    }
}

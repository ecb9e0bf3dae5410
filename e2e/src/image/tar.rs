//! A file tree and its deterministic tar: the same contents give the same bytes on any machine at any time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

const BLOCK: usize = 512;

/// What stands at a path of the image.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// A folder with its mode.
    Folder(u32),
    /// A file copied from this machine, with its mode.
    File(PathBuf, u32),
    /// A file with these contents, with its mode.
    Text(String, u32),
    /// A symbolic link.
    Link(String),
}

/// The files of an image by path, without a leading slash. Everything belongs to root and dates from 1970.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Puts `node` at `path`, with the folders above it.
    pub(crate) fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            self.nodes
                .entry(path[..end].to_owned())
                .or_insert(Node::Folder(0o755));
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// A text that changes whenever a file of the tree does. Reads no file: what counts is the inode, its size and times.
    pub(crate) fn fingerprint(&self) -> anyhow::Result<String> {
        use std::fmt::Write as _;

        let mut text = String::new();
        for (path, node) in &self.nodes {
            match node {
                Node::File(source, mode) => {
                    let meta = metadata(source)?;
                    let (inode, size) = (meta.ino(), meta.size());
                    let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
                    writeln!(
                        text,
                        "{path} {mode:o} {} {inode} {size} {seconds}.{nanos}",
                        source.display()
                    )?;
                }
                other => writeln!(text, "{path} {other:?}")?,
            }
        }
        Ok(text)
    }

    /// Writes the tree as a tar.
    pub(crate) fn write(&self, out: &mut impl Write) -> anyhow::Result<()> {
        for (path, node) in &self.nodes {
            match node {
                Node::Folder(mode) => {
                    out.write_all(&Header::new(&format!("{path}/"), *mode, 0, b'5').bytes("")?)?;
                }
                Node::Link(target) => out.write_all(&Header::new(path, 0o777, 0, b'2').bytes(target)?)?,
                Node::Text(text, mode) => write_file(out, path, *mode, text.len() as u64, text.as_bytes())?,
                Node::File(source, mode) => {
                    let size = metadata(source)?.size();
                    let file =
                        File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
                    write_file(out, path, *mode, size, file)
                        .with_context(|| format!("copying {}", source.display()))?;
                }
            }
        }
        finish(out)?;
        Ok(())
    }
}

fn metadata(source: &Path) -> anyhow::Result<std::fs::Metadata> {
    std::fs::metadata(source)
        .with_context(|| format!("cannot find {}, which goes into an image", source.display()))
}

/// Writes one file of `size` bytes.
///
/// # Errors
/// Also when `contents` is shorter or longer: somebody writes it at this moment.
pub(crate) fn write_file(
    out: &mut impl Write,
    path: &str,
    mode: u32,
    size: u64,
    contents: impl Read,
) -> anyhow::Result<()> {
    out.write_all(&Header::new(path, mode, size, b'0').bytes("")?)?;
    let mut contents = contents.take(size + 1);
    let copied = io::copy(&mut contents, out)?;
    ensure!(copied == size, "its size changed while it was read");
    out.write_all(&PADDING[..padding(size)])?;
    Ok(())
}

const PADDING: [u8; BLOCK] = [0; BLOCK];

/// Bytes that fill a file of `size` up to a whole block.
pub(crate) fn padding(size: u64) -> usize {
    let block = BLOCK as u64;
    // Below 512: fits any integer.
    usize::try_from((block - size % block) % block).unwrap_or(0)
}

/// Ends a tar: two empty blocks.
pub(crate) fn finish(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&PADDING)?;
    out.write_all(&PADDING)
}

/// A POSIX ustar header (IEEE Std 1003.1, pax utility, "ustar Interchange Format").
pub(crate) struct Header<'a> {
    path: &'a str,
    mode: u32,
    size: u64,
    kind: u8,
}

impl<'a> Header<'a> {
    /// `kind` is the type flag: `0` file, `2` symbolic link, `5` folder.
    pub(crate) fn new(path: &'a str, mode: u32, size: u64, kind: u8) -> Self {
        Self {
            path,
            mode,
            size,
            kind,
        }
    }

    /// The header's block. `link` is where a symbolic link leads.
    pub(crate) fn bytes(&self, link: &str) -> anyhow::Result<[u8; BLOCK]> {
        // Eleven octal digits.
        ensure!(
            self.size < 1 << 33,
            "{} is larger than the 8 GiB a tar entry can hold",
            self.path
        );
        let (prefix, name) = split(self.path)?;
        ensure!(
            link.len() <= 100,
            "the link {} leads to a path longer than 100 bytes",
            self.path
        );
        let mut block = [0; BLOCK];
        let mut field =
            |offset: usize, text: &str| block[offset..offset + text.len()].copy_from_slice(text.as_bytes());
        field(0, name);
        field(100, &format!("{:07o}", self.mode));
        field(108, "0000000");
        field(116, "0000000");
        field(124, &format!("{:011o}", self.size));
        field(136, "00000000000");
        // The checksum counts its own field as blanks.
        field(148, "        ");
        field(157, link);
        field(257, "ustar\u{0}00");
        field(345, prefix);
        block[156] = self.kind;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Ok(block)
    }
}

/// Splits a path into ustar's prefix (at most 155 bytes) and name (at most 100).
fn split(path: &str) -> anyhow::Result<(&str, &str)> {
    if path.len() <= 100 {
        return Ok(("", path));
    }
    let cut = path
        .match_indices('/')
        .map(|(at, _)| at)
        .find(|at| path.len() - at - 1 <= 100 && *at <= 155 && at + 1 < path.len());
    match cut {
        Some(at) => Ok((&path[..at], &path[at + 1..])),
        None => bail!("the path {path} is too long for a tar"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sample(source: &Path) -> Tree {
        let mut tree = Tree::default();
        tree.put("/usr/local/bin/tool", Node::File(source.to_owned(), 0o755));
        tree.put("/etc/passwd", Node::Text("root:x:0:0::/:\n".to_owned(), 0o644));
        tree.put("/bin", Node::Link("usr/local/bin".to_owned()));
        tree.put("/tmp", Node::Folder(0o1777));
        tree
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_whenever_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        std::fs::write(&first, vec![7; 1000]).unwrap();
        std::fs::write(&second, vec![7; 1000]).unwrap();
        File::open(&second)
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        let bytes = |source: &Path| {
            let mut out = Vec::new();
            sample(source).write(&mut out).unwrap();
            out
        };
        assert_eq!(bytes(&first), bytes(&second));
        assert_ne!(
            sample(&first).fingerprint().unwrap(),
            sample(&second).fingerprint().unwrap()
        );
        assert_eq!(
            sample(&first).fingerprint().unwrap(),
            sample(&first).fingerprint().unwrap()
        );
    }

    #[test]
    fn another_tar_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::write(&source, "hello").unwrap();
        let mut tree = sample(&source);
        let deep = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        tree.put(&deep, Node::Text("deep".to_owned(), 0o600));
        let archive = dir.path().join("x.tar");
        tree.write(&mut File::create(&archive).unwrap()).unwrap();
        let output = Command::new("tar").arg("-tvf").arg(&archive).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let listing = String::from_utf8_lossy(&output.stdout);
        for expected in [
            "-rwxr-xr-x 0/0               5",
            "drwxrwxrwt",
            "bin -> usr/local/bin",
            "1970-01-01",
            &deep,
            "usr/local/",
        ] {
            assert!(listing.contains(expected), "{expected} is missing in:\n{listing}");
        }
        let output = Command::new("tar")
            .arg("-xOf")
            .arg(&archive)
            .arg("usr/local/bin/tool")
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"hello");
    }

    #[test]
    fn a_path_that_fits_nowhere_is_refused() {
        assert!(split(&"x".repeat(101)).is_err());
        assert!(split(&format!("{}/{}", "x".repeat(156), "y".repeat(101))).is_err());
        let long = format!("{}/{}", "x".repeat(120), "y".repeat(100));
        assert_eq!(split(&long).unwrap().0.len(), 120);
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_noticed() {
        for size in [4, 6] {
            let mut out = Vec::new();
            assert!(write_file(&mut out, "x", 0o644, size, &b"hello"[..]).is_err());
        }
    }
}

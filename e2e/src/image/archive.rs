//! Image archives: an OCI layout that is a docker-archive as well, so that `ctr images import`, `docker load` and
//! `kind load image-archive` all read it. One layer, uncompressed: it never crosses a network.

use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::tar::{self, Header, Node, Tree};
use super::{Image, go_arch};
use crate::provision::Lock;

/// Archives of one name that are kept; older ones may still be read by another arena for a moment.
const KEPT: usize = 4;

/// What an image is made of.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// File name of its archives.
    pub(crate) name: String,
    /// The full reference with its tag.
    pub(crate) reference: String,
    pub(crate) tree: Tree,
    pub(crate) entrypoint: Vec<String>,
    /// Default arguments of the entry point.
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<String>,
    /// `uid:gid`, numeric: the kubelet checks `runAsNonRoot` by number.
    pub(crate) user: String,
}

/// What an earlier run made of the same sources.
#[derive(Serialize, Deserialize)]
struct Stamp {
    tar: PathBuf,
    digest: String,
}

impl Recipe {
    /// The archive in `folder`, written unless it is there already. Reads no source when none changed.
    pub(crate) fn make(&self, folder: &Path) -> anyhow::Result<Image> {
        let sources = format!("{:?}\n{}", self.config(""), self.tree.fingerprint()?);
        let stamp_file = folder.join("stamps").join(format!(
            "{}-{}.json",
            self.name,
            &digest(sources.as_bytes())[..16]
        ));
        if let Some(image) = self.stamped(&stamp_file) {
            return Ok(image);
        }
        let what = format!("packing the image {}", self.reference);
        let _lock = Lock::take(&folder.join("stamps").join(format!("{}.lock", self.name)), &what)?;
        if let Some(image) = self.stamped(&stamp_file) {
            return Ok(image);
        }
        let stamp = self.write(folder).with_context(|| what)?;
        forget(&folder.join("stamps"), &format!("{}-", self.name), KEPT)?;
        forget(folder, &format!("{}-", self.name), KEPT)?;
        let text = serde_json::to_vec(&stamp)?;
        write_atomically(&stamp_file, &text)?;
        Ok(self.image(stamp))
    }

    fn stamped(&self, stamp_file: &Path) -> Option<Image> {
        let stamp: Stamp = serde_json::from_slice(&std::fs::read(stamp_file).ok()?).ok()?;
        stamp.tar.is_file().then(|| self.image(stamp))
    }

    fn image(&self, stamp: Stamp) -> Image {
        Image {
            reference: self.reference.clone(),
            tar: stamp.tar,
            digest: stamp.digest,
        }
    }

    fn write(&self, folder: &Path) -> anyhow::Result<Stamp> {
        let mut file = tempfile::Builder::new()
            .prefix(".packing-")
            .tempfile_in(folder)
            .with_context(|| format!("cannot write in {}", folder.display()))?;
        let digest = self.write_archive(file.as_file_mut())?;
        let short = digest.trim_start_matches("sha256:").get(..16).unwrap_or_default();
        let tar = folder.join(format!("{}-{short}.tar", self.name));
        file.persist(&tar)
            .with_context(|| format!("cannot write {}", tar.display()))?;
        Ok(Stamp { tar, digest })
    }

    /// Writes the archive and returns the digest of its manifest, which is also the name containerd gives the image.
    fn write_archive(&self, file: &mut File) -> anyhow::Result<String> {
        // The layer comes first and its header last: the name is a hash of what follows it.
        file.seek(SeekFrom::Start(512))?;
        let mut layer = Hashing::new(BufWriter::with_capacity(1 << 20, &mut *file));
        self.tree.write(&mut layer)?;
        let (layer_digest, layer_size) = layer.finish()?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&Header::new(&blob(&layer_digest), 0o644, layer_size, b'0').bytes("")?)?;
        file.seek(SeekFrom::Start(512 + layer_size))?;
        let mut out = BufWriter::new(file);
        out.write_all(&vec![0; tar::padding(layer_size)])?;

        let mut put =
            |path: &str, bytes: &[u8]| tar::write_file(&mut out, path, 0o644, bytes.len() as u64, bytes);
        let config = serde_json::to_vec(&self.config(&layer_digest))?;
        let config_digest = digest(&config);
        put(&blob(&config_digest), &config)?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{config_digest}"),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{layer_digest}"),
                "size": layer_size,
            }],
        }))?;
        let manifest_digest = digest(&manifest);
        put(&blob(&manifest_digest), &manifest)?;
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{manifest_digest}"),
                "size": manifest.len(),
                "platform": { "architecture": go_arch(), "os": "linux" },
                "annotations": {
                    "io.containerd.image.name": self.reference,
                    "org.opencontainers.image.ref.name": self.tag()?,
                },
            }],
        }))?;
        put("index.json", &index)?;
        put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let docker = json!([{
            "Config": blob(&config_digest),
            "RepoTags": [self.reference],
            "Layers": [blob(&layer_digest)],
        }]);
        put("manifest.json", &serde_json::to_vec(&docker)?)?;
        tar::finish(&mut out)?;
        out.flush()?;
        Ok(format!("sha256:{manifest_digest}"))
    }

    fn tag(&self) -> anyhow::Result<&str> {
        let tag = self
            .reference
            .rsplit_once(':')
            .map(|(_, tag)| tag)
            .unwrap_or_default();
        ensure!(
            !tag.is_empty() && !tag.contains('/'),
            "the image reference {} has no tag",
            self.reference
        );
        Ok(tag)
    }

    fn config(&self, layer_digest: &str) -> serde_json::Value {
        json!({
            "architecture": go_arch(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.arguments,
                "Env": self.environment,
                "User": self.user,
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
            "history": [{ "created_by": "spillway arena" }],
        })
    }
}

/// Puts what every image has into the tree: accounts, name service, protocol names and a place for temporary files.
pub(crate) fn furnish(tree: &mut Tree) {
    let texts = [
        (
            "/etc/passwd",
            "root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/sh\n",
        ),
        ("/etc/group", "root:x:0:\nnonroot:x:65532:\n"),
        ("/etc/nsswitch.conf", "hosts: files dns\n"),
        // nft prints protocols by name where it finds one; tests read its output on machines that have this file.
        (
            "/etc/protocols",
            "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nesp 50 IPSEC-ESP\nah 51 IPSEC-AH\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\nudplite 136 UDPLite\n",
        ),
    ];
    for (path, text) in texts {
        tree.put(path, Node::Text(text.to_owned(), 0o644));
    }
    tree.put("/tmp", Node::Folder(0o1777));
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Passes bytes on and hashes them.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            size: 0,
        }
    }

    fn finish(mut self) -> std::io::Result<(String, u64)> {
        self.inner.flush()?;
        Ok((hex::encode(self.hash.finalize()), self.size))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Removes all but the newest `kept` files of `folder` that begin with `prefix`.
fn forget(folder: &Path, prefix: &str, kept: usize) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort();
    for (_, path) in files.iter().rev().skip(kept) {
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn recipe(source: &Path) -> Recipe {
        let mut tree = Tree::default();
        furnish(&mut tree);
        tree.put("/usr/local/bin/tool", Node::File(source.to_owned(), 0o755));
        Recipe {
            name: "tool".to_owned(),
            reference: "docker.io/spillway/tool:dev".to_owned(),
            tree,
            entrypoint: vec!["/usr/local/bin/tool".to_owned()],
            arguments: Vec::new(),
            environment: vec!["PATH=/usr/local/bin".to_owned()],
            user: "0:0".to_owned(),
        }
    }

    #[test]
    fn an_image_is_named_by_its_contents_and_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::write(&source, "one").unwrap();
        let first = recipe(&source).make(dir.path()).unwrap();
        let written = first.tar.metadata().unwrap().modified().unwrap();
        let again = recipe(&source).make(dir.path()).unwrap();
        assert_eq!((&again.digest, &again.tar), (&first.digest, &first.tar));
        assert_eq!(
            again.tar.metadata().unwrap().modified().unwrap(),
            written,
            "not written again"
        );

        std::fs::write(&source, "two, longer").unwrap();
        let second = recipe(&source).make(dir.path()).unwrap();
        assert_ne!(second.digest, first.digest);
        std::fs::write(&source, "one").unwrap();
        assert_eq!(
            recipe(&source).make(dir.path()).unwrap().digest,
            first.digest,
            "same contents, same image"
        );
    }

    #[test]
    fn the_archive_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::write(&source, vec![1; 70_000]).unwrap();
        let image = recipe(&source).make(dir.path()).unwrap();
        let unpacked = dir.path().join("unpacked");
        std::fs::create_dir(&unpacked).unwrap();
        let status = Command::new("tar")
            .arg("-xf")
            .arg(&image.tar)
            .arg("-C")
            .arg(&unpacked)
            .status()
            .unwrap();
        assert!(status.success());
        for entry in std::fs::read_dir(unpacked.join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(
                digest(&std::fs::read(&path).unwrap()),
                path.file_name().unwrap().to_string_lossy()
            );
        }
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(unpacked.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], image.digest);
        let docker: serde_json::Value =
            serde_json::from_slice(&std::fs::read(unpacked.join("manifest.json")).unwrap()).unwrap();
        let layer = unpacked.join(docker[0]["Layers"][0].as_str().unwrap());
        let output = Command::new("tar")
            .arg("-xOf")
            .arg(layer)
            .arg("usr/local/bin/tool")
            .output()
            .unwrap();
        assert_eq!(output.stdout, vec![1; 70_000]);
    }

    #[test]
    fn only_the_newest_archives_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        let mut last = None;
        for length in 1..=KEPT + 2 {
            std::fs::write(&source, vec![3; length]).unwrap();
            last = Some(recipe(&source).make(dir.path()).unwrap());
        }
        let tars = std::fs::read_dir(dir.path()).unwrap().filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .ends_with(".tar")
        });
        assert_eq!(tars.count(), KEPT);
        assert!(last.unwrap().tar.exists());
    }
}

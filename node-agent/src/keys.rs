//! This node's WireGuard key: made here, kept on this node, and told to nobody.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use spillway_dataplane::PrivateKey;
use zeroize::Zeroizing;

fn path(directory: &Path) -> PathBuf {
    directory.join("wireguard.key")
}

/// The key in `directory`, made where there is none. One that can't be read is replaced, and one that can't be kept is good
/// until the agent ends: peers learn of the next one, and until then nothing passes.
pub(crate) fn load_or_make(directory: &Path) -> PrivateKey {
    let path = path(directory);
    match fs::read_to_string(&path).map(Zeroizing::new) {
        Ok(text) => match PrivateKey::parse(&text) {
            Ok(key) => return key,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the node's key is damaged; a new one is made");
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the node's key can't be read; a new one is made");
        }
    }
    let key = PrivateKey::generate();
    if let Err(error) = keep(directory, &key) {
        tracing::warn!(path = %path.display(), %error, "the node's key can't be kept; the next agent makes another");
    }
    key
}

fn keep(directory: &Path, key: &PrivateKey) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let fresh = directory.join("wireguard.key.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(key.to_text().as_bytes())?;
    // Peers are told of it next: it mustn't be another after a crash.
    file.sync_all()?;
    fs::rename(&fresh, path(directory))
}

/// Removes what [`load_or_make`] made.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    let gone = |path: PathBuf| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(path(directory)).and(gone(directory.join("wireguard.key.new")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_stays_and_only_root_reads_it() {
        let directory = tempfile::tempdir().expect("directory");
        let directory = directory.path().join("state");
        let key = load_or_make(&directory);
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path(&directory)), 0o600);
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(load_or_make(&directory).public(), key.public());
        for damaged in [&b"no key"[..], &[0xff; 32]] {
            fs::write(path(&directory), damaged).expect("written");
            let other = load_or_make(&directory);
            assert_ne!(other.public(), key.public());
            assert_eq!(load_or_make(&directory).public(), other.public());
        }
        fs::remove_file(path(&directory)).expect("removed");
        fs::create_dir(path(&directory)).expect("in the way");
        let unkept = load_or_make(&directory);
        assert_ne!(
            load_or_make(&directory).public(),
            unkept.public(),
            "what can't be kept is made again"
        );
        fs::remove_dir(path(&directory)).expect("removed");
        load_or_make(&directory);
        remove(&directory).expect("removed");
        remove(&directory).expect("nothing to remove is fine");
        assert!(!path(&directory).exists());
    }
}

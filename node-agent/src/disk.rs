//! The last inputs, kept on the node: an agent that starts while the API server is away goes on from them.
//!
//! They are written before they are applied, so the kernel never holds what the disk doesn't know, and to
//! apply them again at start removes nothing that is still wanted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spillway_core::node::gateways::Liveness;
use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::state::Facts;

use crate::keys;

/// Raised when an older build couldn't read what this one writes.
const FORMAT: u32 = 1;

#[derive(Deserialize, Serialize)]
struct Stored {
    format: u32,
    /// The kernel's boot id when this was written.
    boot: String,
    inputs: NodeInputs,
}

#[derive(Deserialize, Serialize)]
struct Remembered {
    boot: String,
    liveness: Liveness,
}

/// Where the inputs are kept.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    directory: PathBuf,
    boot: String,
}

impl Disk {
    /// Keeps them in `directory`, of which only root reads anything.
    pub(crate) fn new(directory: &Path) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            directory: directory.to_owned(),
            boot: boot.trim().to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("node.json")
    }

    /// The inputs last stored, if they are `node`'s. Those of an earlier boot come without their pods, whose
    /// addresses were given out anew.
    pub(crate) fn load(&self, node: &str) -> Option<NodeInputs> {
        let bytes = match fs::read(self.path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %self.path().display(), %error, "stored inputs can't be read");
                return None;
            }
        };
        match serde_json::from_slice::<Stored>(&bytes) {
            Ok(stored) if stored.format == FORMAT && stored.inputs.node == node => {
                let mut inputs = stored.inputs;
                if stored.boot != self.boot {
                    inputs.pods.clear();
                    inputs.sandboxes.clear();
                }
                Some(inputs)
            }
            Ok(stored) => {
                tracing::warn!(
                    format = stored.format,
                    node = stored.inputs.node,
                    "stored inputs are another node's or of another format; they are left aside"
                );
                None
            }
            Err(error) => {
                tracing::warn!(path = %self.path().display(), %error, "stored inputs are damaged");
                None
            }
        }
    }

    /// Replaces what is stored. The file is in place, though perhaps not on the medium: a crash of the
    /// machine takes the kernel's state along anyway.
    pub(crate) fn store(&self, inputs: &NodeInputs) -> io::Result<()> {
        let stored = Stored {
            format: FORMAT,
            boot: self.boot.clone(),
            inputs: NodeInputs {
                facts: Facts::default(),
                ..inputs.clone()
            },
        };
        let bytes = serde_json::to_vec(&stored).map_err(io::Error::other)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        let fresh = self.directory.join("node.json.new");
        let mut file: File = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&bytes)?;
        fs::rename(&fresh, self.path())
    }

    /// Takes down with which liveness the kernel's state was compiled. Who looks at that state needs it; who starts
    /// finds out anew.
    pub(crate) fn remember(&self, liveness: &Liveness) -> io::Result<()> {
        let remembered = Remembered {
            boot: self.boot.clone(),
            liveness: liveness.clone(),
        };
        let fresh = self.directory.join("liveness.json.new");
        fs::write(&fresh, serde_json::to_vec(&remembered).map_err(io::Error::other)?)?;
        fs::rename(&fresh, self.directory.join("liveness.json"))
    }

    /// What was remembered since the node booted.
    pub(crate) fn recall(&self) -> Liveness {
        fs::read(self.directory.join("liveness.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok())
            .filter(|remembered| remembered.boot == self.boot)
            .map(|remembered| remembered.liveness)
            .unwrap_or_default()
    }

    /// Removes what is stored, the node's key included.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        remove(&self.path())
            .and(remove(&self.directory.join("liveness.json")))
            .and(keys::remove(&self.directory))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use spillway_core::node::fixtures;

    use super::*;

    #[test]
    fn inputs_come_back_for_their_own_node_and_boot() {
        let directory = tempfile::tempdir().expect("directory");
        let mut disk = Disk::new(&directory.path().join("state"));
        assert_eq!(disk.load("a-1"), None);
        disk.clear().expect("nothing to clear is fine");
        disk.store(&fixtures::source()).expect("stored");
        let mode = fs::metadata(disk.path()).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let loaded = disk.load("a-1").expect("there");
        assert_eq!(loaded.pods, fixtures::source().pods);
        assert_eq!(disk.load("a-2"), None, "another node's");
        disk.boot = "another".into();
        assert_eq!(disk.load("a-1").expect("there").pods, Vec::new());
        fs::write(disk.path(), b"{").expect("written");
        assert_eq!(disk.load("a-1"), None, "damaged");
        disk.clear().expect("cleared");
        assert!(!disk.path().exists());
    }

    #[test]
    fn liveness_is_recalled_until_the_next_boot() {
        let directory = tempfile::tempdir().expect("directory");
        let mut disk = Disk::new(directory.path());
        assert_eq!(disk.recall(), Liveness::default());
        let mut liveness = Liveness::default();
        liveness.dead.insert(fixtures::node_ref("b", "b-1"));
        disk.remember(&liveness).expect("written");
        assert_eq!(disk.recall(), liveness);
        disk.boot = "another".into();
        assert_eq!(disk.recall(), Liveness::default());
    }
}

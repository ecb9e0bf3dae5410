//! Keeps the file that the plugin goes by while this agent doesn't answer.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use spillway_cni::cache::{Cache, FORMAT, Standing};
use spillway_core::node::scope::Scope;

/// The file and what it says.
#[derive(Debug)]
pub(super) struct CacheFile {
    path: PathBuf,
    /// What it says as far as this agent knows; none before its first write.
    said: Mutex<Option<Cache>>,
}

impl CacheFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            said: Mutex::default(),
        }
    }

    /// Says whom policies could select. On the medium when this returns: it must outlive a power failure.
    pub(super) fn set_scope(&self, scope: &Scope) {
        self.change(true, |cache| {
            cache.namespaces = scope.namespaces();
            cache.elsewhere = scope.could_select_elsewhere();
        });
    }

    /// Says which addresses the kernel judges by a policy; a power failure takes the kernel's state along.
    pub(super) fn set_addresses(&self, addresses: &BTreeSet<IpAddr>) {
        self.change(false, |cache| cache.addresses.clone_from(addresses));
    }

    fn change(&self, durable: bool, change: impl Fn(&mut Cache)) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let old = said.clone().or_else(|| Cache::read(&self.path).ok().flatten());
        let mut cache = old.unwrap_or_default();
        cache.format = FORMAT;
        change(&mut cache);
        if said.as_ref() == Some(&cache) {
            return;
        }
        match self.write(&cache, durable) {
            Ok(()) => *said = Some(cache),
            Err(error) => tracing::warn!(path = %self.path.display(), %error,
                "what the CNI plugin goes by without this agent can't be written"),
        }
    }

    fn write(&self, cache: &Cache, durable: bool) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
        }
        let fresh = self.path.with_extension("json.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&serde_json::to_vec(cache)?)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&fresh, &self.path)
    }

    /// Whether there is a file.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Whether the file has the plugin hold such a pod.
    pub(super) fn holds(&self, namespace: &str, addresses: &BTreeSet<IpAddr>) -> bool {
        match Cache::read(&self.path) {
            Ok(Some(cache)) => cache.standing(namespace, addresses) != Standing::Free,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Removes the file: nobody is held.
    pub(super) fn clear(&self) -> Result<(), String> {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("remove {}: {error}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_core::node::fixtures;

    use super::*;

    #[test]
    fn the_file_says_whom_policies_could_select_and_goes() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state/cni.json");
        let file = CacheFile::new(path.clone());
        file.set_scope(&Scope::of(&fixtures::source()));
        let address: IpAddr = "10.244.0.5".parse().expect("address");
        file.set_addresses(&[address].into());
        let read = || Cache::read(&path).expect("readable").expect("there");
        assert_eq!(
            read().standing("payments", &BTreeSet::new()),
            Standing::MayBeSelected
        );
        assert_eq!(read().standing("web", &[address].into()), Standing::AddressInUse);
        // The next agent keeps what it doesn't know better.
        let next = CacheFile::new(path.clone());
        next.set_scope(&Scope::default());
        assert_eq!(read().standing("payments", &BTreeSet::new()), Standing::Free);
        assert_eq!(read().addresses, [address].into());
        assert!(
            next.exists() && next.holds("web", &[address].into()) && !next.holds("web", &BTreeSet::new())
        );
        next.clear().expect("cleared");
        next.clear().expect("nothing to clear is fine");
        assert!(!path.exists());
    }
}

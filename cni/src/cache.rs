//! Whom a policy could select, for the time when no node agent answers. The agent writes this file whenever the
//! answer changes, before it programs the change, and removes it when everything was torn down.
//!
//! Labels aren't in it: the plugin can't learn a new pod's. So it speaks of namespaces, and where a policy could
//! select anything in one, all of its new pods wait.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where it is unless told otherwise. Not below /run: it must outlive a reboot.
pub const FILE: &str = "/var/lib/spillway/cni.json";

/// Raised when an older plugin would misread what a newer agent writes.
pub const FORMAT: u32 = 1;

/// The file.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Cache {
    /// [`FORMAT`].
    pub format: u32,
    /// For each namespace that was known whether a policy could select pods of it.
    pub namespaces: BTreeMap<String, bool>,
    /// Whether a policy could select pods of any other namespace.
    pub elsewhere: bool,
    /// Addresses that the kernel judges by a policy. Whoever gets one of them must wait until that is undone.
    pub addresses: BTreeSet<IpAddr>,
}

/// What the file says of a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// No policy can select it.
    Free,
    /// A policy could select it.
    MayBeSelected,
    /// Its address was a selected pod's, and the kernel still takes it for that.
    AddressInUse,
}

impl Cache {
    /// Reads the file. No file means that nothing was ever planned here, or that all was torn down.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let cache: Self = serde_json::from_slice(&bytes)?;
        if cache.format == FORMAT {
            Ok(Some(cache))
        } else {
            Err(io::Error::other(format!("format {} isn't known", cache.format)))
        }
    }

    /// What it says of a pod of `namespace` with these addresses.
    pub fn standing(&self, namespace: &str, addresses: &BTreeSet<IpAddr>) -> Standing {
        if *self.namespaces.get(namespace).unwrap_or(&self.elsewhere) {
            Standing::MayBeSelected
        } else if self.addresses.is_disjoint(addresses) {
            Standing::Free
        } else {
            Standing::AddressInUse
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_that_no_policy_can_select_are_free() {
        let address = |a: &str| BTreeSet::from([a.parse::<IpAddr>().expect("address")]);
        let cache = Cache {
            format: FORMAT,
            namespaces: [("payments".to_owned(), true), ("web".to_owned(), false)].into(),
            elsewhere: false,
            addresses: address("10.0.0.5"),
        };
        assert_eq!(
            cache.standing("payments", &address("10.0.0.1")),
            Standing::MayBeSelected
        );
        assert_eq!(cache.standing("web", &address("10.0.0.1")), Standing::Free);
        assert_eq!(
            cache.standing("web", &address("10.0.0.5")),
            Standing::AddressInUse
        );
        assert_eq!(cache.standing("new", &address("10.0.0.1")), Standing::Free);
        let cache = Cache {
            elsewhere: true,
            ..cache
        };
        assert_eq!(
            cache.standing("new", &address("10.0.0.1")),
            Standing::MayBeSelected
        );
    }

    #[test]
    fn a_missing_file_says_nothing_and_a_damaged_or_newer_one_is_an_error() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("cni.json");
        assert_eq!(Cache::read(&path).expect("read"), None);
        for text in [
            "",
            "{",
            r#"{"format":2,"namespaces":{},"elsewhere":false,"addresses":[]}"#,
        ] {
            std::fs::write(&path, text).expect("written");
            assert!(Cache::read(&path).is_err(), "{text}");
        }
    }
}

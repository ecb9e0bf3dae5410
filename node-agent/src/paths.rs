//! Which paths that must be encrypted are, for this node's status.
//!
//! ```text
//!  agent ── paths of its plan ──► every 2 s: Kernel::encryption ──► status, where a path came or went
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use spillway_core::wireguard::PublicKey;
use spillway_crds::hub::{WaitingPath, WireGuardStatus};
use spillway_crds::member::NodeRef;
use spillway_dataplane::{Encryption, Kernel, SESSION};
use tokio::sync::watch;

/// How often handshakes are looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// Most waiting paths named in the status.
const NAMED: usize = 16;

/// Nodes to which the path must be encrypted: the key, or why there is none.
pub(crate) type Paths = BTreeMap<NodeRef, Result<PublicKey, String>>;

/// What to say of `paths`, given what WireGuard says.
fn status(own: PublicKey, paths: &Paths, encryption: &Encryption) -> WireGuardStatus {
    let waits = |key: &Result<PublicKey, String>| match key {
        Err(reason) => Some(reason.clone()),
        Ok(key) => match encryption.peers.get(key) {
            Some(Some(age)) if *age < SESSION => None,
            Some(Some(_)) => Some("it has stopped answering WireGuard's handshakes".into()),
            Some(None) => Some("it hasn't answered WireGuard's handshake yet".into()),
            None => Some(match &encryption.problem {
                Some(problem) => format!("WireGuard doesn't run on this node: {problem}"),
                None => "WireGuard doesn't run on this node yet".into(),
            }),
        },
    };
    let waiting: Vec<WaitingPath> = paths
        .iter()
        .filter_map(|(node, key)| {
            Some(WaitingPath {
                peer: node.to_string(),
                reason: waits(key)?.chars().take(256).collect(),
            })
        })
        .collect();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    WireGuardStatus {
        public_keys: vec![own.to_string()],
        implementation: encryption
            .implementation
            .filter(|_| !paths.is_empty())
            .map(|i| i.as_str().into()),
        reason: if paths.is_empty() {
            String::new()
        } else {
            encryption.reason.chars().take(256).collect()
        },
        encrypted: count(paths.len() - waiting.len()),
        waiting: count(waiting.len()),
        paths: waiting.into_iter().take(NAMED).collect(),
    }
}

/// Looks for ever.
pub(crate) async fn watch(
    kernel: impl Kernel,
    own: PublicKey,
    mut paths: watch::Receiver<Paths>,
    told: watch::Sender<Option<WireGuardStatus>>,
) {
    loop {
        let wanted = paths.borrow_and_update().clone();
        let found = if wanted.is_empty() {
            Encryption::default()
        } else {
            match kernel.encryption().await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "WireGuard can't be asked about its peers");
                    Encryption::default()
                }
            }
        };
        let new = status(own, &wanted, &found);
        told.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&new);
            if changed && new.waiting != old.as_ref().map_or(0, |o| o.waiting) {
                tracing::info!(
                    encrypted = new.encrypted,
                    waiting = new.waiting,
                    implementation = new.implementation,
                    reason = new.reason,
                    "paths that must be encrypted"
                );
            }
            *old = Some(new.clone());
            changed
        });
        tokio::select! {
            event = paths.changed() => if event.is_err() { return },
            () = tokio::time::sleep(PERIOD), if !wanted.is_empty() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_core::node::{encrypted, fixtures};
    use spillway_dataplane::Implementation;

    use super::*;

    #[test]
    fn a_path_is_encrypted_while_its_session_is_good() {
        let own = PublicKey::from([1; 32]);
        let nothing = status(own, &Paths::new(), &Encryption::default());
        assert_eq!((nothing.encrypted, nothing.waiting), (0, 0));
        assert_eq!((nothing.public_keys.len(), nothing.implementation), (1, None));

        let key = |node: &str| (node == "b-1").then(|| PublicKey::from([2; 32]).to_string());
        let paths = encrypted(&fixtures::encrypted(fixtures::stateless_source(), key));
        let say = |age| {
            let encryption = Encryption {
                implementation: Some(Implementation::Userspace),
                reason: "the kernel has none".into(),
                peers: [(PublicKey::from([2; 32]), age)].into(),
                ..Encryption::default()
            };
            status(own, &paths, &encryption)
        };
        let fresh = say(Some(Duration::from_secs(1)));
        assert_eq!((fresh.encrypted, fresh.waiting), (1, 1));
        assert_eq!(fresh.implementation.as_deref(), Some("userspace"));
        assert_eq!(fresh.reason, "the kernel has none");
        assert_eq!(fresh.paths[0].peer, "b/b-2");
        assert!(fresh.paths[0].reason.contains("isn't known yet"), "{fresh:?}");
        assert_eq!(
            say(Some(Duration::from_secs(50))),
            fresh,
            "a handshake more is no news"
        );
        assert_eq!(say(None).waiting, 2);
        let broken = Encryption {
            problem: Some("open /dev/net/tun: No such file or directory".into()),
            ..Encryption::default()
        };
        let broken = status(own, &paths, &broken);
        assert!(broken.paths[0].reason.contains("/dev/net/tun"), "{broken:?}");
        let old = say(Some(SESSION));
        assert!(old.paths[0].reason.contains("stopped answering"), "{old:?}");
    }
}

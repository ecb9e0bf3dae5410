//! `spillway hub backup`: all that a hub needs to be itself again, in one file.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, ListParams};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use spillway_crds::NAMESPACE;

use super::owners;
use crate::args::{HubBackup, Target};
use crate::cluster::{Cluster, reference};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::ui::Ui;

/// The kinds whose objects are the hub's, in the order in which they are restored.
pub(super) const KINDS: [&str; 4] = [
    "Member",
    "EgressGateway",
    "FederatedClusterEgressPolicy",
    "FederatedEgressPolicy",
];
/// The Secret with the hub's CA, id and epoch.
pub(super) const CA_SECRET: &str = "spillway-hub-ca";

/// A backup.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// Version of this format: 1.
    pub backup: u32,
    /// When it was begun (RFC 3339).
    pub taken: String,
    /// Version of the program that made it.
    pub made_by: String,
    /// Data of the CA's Secret, base64.
    pub ca: serde_json::Map<String, Value>,
    /// Members, gateways and policies with their statuses, and who wrote which field.
    pub objects: Vec<Value>,
}

/// Writes it.
pub async fn run(target: &Target, backup: &HubBackup, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let text = output::text(&take(&cluster).await?, Format::Yaml)?;
    if backup.file == Path::new("-") {
        return output::print(&text);
    }
    write(&backup.file, &text)?;
    ui.say(format!(
        "{} is written; it holds the CA's key: whoever has it can pose as this hub",
        backup.file.display()
    ));
    Ok(())
}

async fn take(cluster: &Cluster) -> Result<Backup, Failure> {
    // Before anything is read: a certificate made meanwhile may be in the backup or not, and is newer than this.
    let taken = Timestamp::now().to_string();
    let secret = reference("v1", "Secret", Some(NAMESPACE), CA_SECRET);
    let secret = cluster
        .api(&secret)
        .get_opt(CA_SECRET)
        .await
        .map_err(|err| Failure::kube(&format!("reading Secret {CA_SECRET}"), &err))?
        .ok_or_else(|| {
            Failure::new(
                Exit::NotFound,
                format!("{} has no hub that has run", cluster.name),
            )
            .fix("name the hub's cluster with --kubeconfig or --context")
        })?;
    let mut objects = Vec::new();
    for kind in KINDS {
        objects.extend(list(cluster, kind).await?);
    }
    Ok(Backup {
        backup: 1,
        taken,
        made_by: env!("CARGO_PKG_VERSION").into(),
        ca: secret.data["data"].as_object().cloned().unwrap_or_default(),
        objects,
    })
}

async fn list(cluster: &Cluster, kind: &str) -> Result<Vec<Value>, Failure> {
    let sample = reference("spillway.io/v1alpha1", kind, None, "");
    let resource = crate::manifest::resource(&sample);
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let listed = api
        .list(&ListParams::default())
        .await
        .map_err(|err| Failure::kube(&format!("listing objects of kind {kind}"), &err))?;
    listed
        .items
        .into_iter()
        .map(|mut object| {
            object.types = Some(kube::api::TypeMeta {
                api_version: "spillway.io/v1alpha1".into(),
                kind: kind.into(),
            });
            serde_json::to_value(&object).map(owners::trimmed).map_err(|err| {
                Failure::new(
                    Exit::Other,
                    format!("an object of kind {kind} can't be written down: {err}"),
                )
            })
        })
        .collect()
}

/// For its owner alone, and never over another file.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |err: std::io::Error| {
        Failure::new(Exit::Other, format!("{} can't be written: {err}", path.display()))
            .fix("name a file that doesn't exist yet, in a directory that does")
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

/// Reads what [`run`] wrote.
pub(super) fn read(path: &Path) -> Result<Backup, Failure> {
    let bad = |why: String| {
        Failure::new(
            Exit::Other,
            format!("{} is no backup of a hub: {why}", path.display()),
        )
        .fix("name a file that spillway hub backup wrote")
    };
    let text = std::fs::read_to_string(path).map_err(|err| bad(err.to_string()))?;
    let backup: Backup = serde_saphyr::from_str(&text).map_err(|err| bad(err.to_string()))?;
    if backup.backup != 1 {
        return Err(
            bad(format!("its format is {}, this program reads 1", backup.backup)).fix(format!(
                "use the version of the program that made it: {}",
                backup.made_by
            )),
        );
    }
    if let Some(object) = backup
        .objects
        .iter()
        .find(|o| !KINDS.contains(&crate::manifest::kind(o)))
    {
        return Err(bad(format!("it holds {}", crate::manifest::title(object))));
    }
    Ok(backup)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Backup {
        Backup {
            backup: 1,
            taken: "2026-01-01T00:00:00Z".into(),
            made_by: "0.1.0".into(),
            ca: serde_json::Map::from_iter([("epoch".to_owned(), "MQ==".into())]),
            objects: vec![
                serde_json::json!({"apiVersion": "spillway.io/v1alpha1", "kind": "Member", "metadata": {"name": "a"}}),
            ],
        }
    }

    #[test]
    fn what_was_written_is_read_and_only_its_owner_may() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hub.yaml");
        write(&path, &output::text(&sample(), Format::Yaml).expect("text")).expect("written");
        assert_eq!(read(&path).expect("a backup"), sample());
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(write(&path, "").is_err(), "never over another file");
    }

    #[test]
    fn what_is_no_backup_is_refused_before_anything_is_touched() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hub.yaml");
        for (text, why) in [
            ("a: b".to_owned(), "missing"),
            (
                output::text(
                    &Backup {
                        backup: 2,
                        ..sample()
                    },
                    Format::Yaml,
                )
                .expect("text"),
                "format is 2",
            ),
            (
                output::text(
                    &Backup {
                        objects: vec![reference("v1", "Pod", Some("x"), "y")],
                        ..sample()
                    },
                    Format::Yaml,
                )
                .expect("text"),
                "it holds",
            ),
        ] {
            std::fs::write(&path, text).expect("written");
            let error = read(&path).expect_err("no backup").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

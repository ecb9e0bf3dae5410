//! `spillway hub restore`: a hub is itself again, after its cluster's store was lost or rolled back.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{Api, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use spillway_crds::NAMESPACE;
use tokio::time::Instant;

use super::backup::{Backup, CA_SECRET, read};
use super::owners;
use crate::args::{HubRestore, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::ui::Ui;
use crate::{FIELD_MANAGER, manifest, wait};

/// The hub's Deployment.
const HUB: &str = "spillway-hub";

/// Puts a backup back. The hub stands still meanwhile: it would give numbers away that the backup has given.
pub async fn run(target: &Target, restore: &HubRestore, ui: &Ui) -> Result<(), Failure> {
    let backup = read(&restore.file)?;
    let cluster = Cluster::connect(target).await?;
    if !restore.yes {
        ui.confirm(&format!(
            "the hub in {} becomes the one of {}, with {} objects; it keeps nothing of what it is now. Go on?",
            cluster.name,
            backup.taken,
            backup.objects.len()
        ))?;
    }
    let deadline = Instant::now() + restore.timeout;
    let replicas = stop(&cluster, deadline, ui).await?;
    definitions(&cluster, deadline).await?;
    let secrets: Api<Secret> = cluster.ours();
    let present = secrets
        .get_opt(CA_SECRET)
        .await
        .map_err(|err| Failure::kube(&format!("reading Secret {CA_SECRET}"), &err))?;
    let identity = identity(&backup, present.as_ref())?;
    put_identity(&secrets, &identity, present).await?;

    let mut phase = ui.phase("objects restored");
    let mut namespaces = BTreeSet::new();
    for (n, object) in backup.objects.iter().enumerate() {
        phase.update(&format!("{} of {}", n + 1, backup.objects.len()));
        if let Some(namespace) = manifest::namespace(object)
            && namespaces.insert(namespace.to_owned())
        {
            have_namespace(&cluster, namespace).await?;
        }
        put(&cluster, object).await?;
    }
    phase.done(&format!("{} objects", backup.objects.len()));
    match replicas {
        Some(replicas) => {
            scale(&cluster, replicas).await?;
            ui.say("the hub starts; members come back by themselves: spillway status");
        }
        None => ui.say(
            "next: spillway hub install, with the endpoints that members know; they come back by themselves: spillway status",
        ),
    }
    Ok(())
}

/// Stops the hub; gives the replicas that it had, where it is installed.
async fn stop(cluster: &Cluster, deadline: Instant, ui: &Ui) -> Result<Option<i32>, Failure> {
    let found: Option<Deployment> = cluster.get(cluster.ours(), HUB, "Deployment").await?;
    let Some(deployment) = found else {
        return Ok(None);
    };
    let replicas = deployment.spec.and_then(|s| s.replicas).unwrap_or(1);
    scale(cluster, 0).await?;
    let phase = ui.phase("hub stopped");
    let pods: Api<Pod> = cluster.ours();
    let params = ListParams::default().labels(&format!("app.kubernetes.io/name={HUB}"));
    wait::until(
        deadline,
        async || {
            let left = pods
                .list(&params)
                .await
                .map_err(|err| Failure::kube("listing the hub's pods", &err))?;
            Ok(left.items.is_empty().then_some(()))
        },
        || {
            Failure::new(
                Exit::TimedOut,
                "the hub's pods are still there; nothing was restored",
            )
            .fix(format!("see what holds them: kubectl get pods -n {NAMESPACE}"))
            .fix("run the same command again")
        },
    )
    .await?;
    phase.done("");
    // One that stood still already, by a restore that broke off, is to run in the end.
    Ok(Some(replicas.max(1)))
}

async fn scale(cluster: &Cluster, replicas: i32) -> Result<(), Failure> {
    let deployments: Api<Deployment> = cluster.ours();
    let patch = json!({"spec": {"replicas": replicas}});
    deployments
        .patch_scale(HUB, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map(drop)
        .map_err(|err| Failure::kube(&format!("scaling Deployment {HUB}"), &err))
}

async fn definitions(cluster: &Cluster, deadline: Instant) -> Result<(), Failure> {
    let needed: Vec<Value> = manifest::hub()?
        .into_iter()
        .filter(|o| ["Namespace", "CustomResourceDefinition"].contains(&manifest::kind(o)))
        .collect();
    for object in &needed {
        cluster.apply(object).await?;
    }
    cluster.established(&needed, deadline).await
}

/// The Secret's fields: those of the backup, at a higher epoch than members may have seen.
fn identity(backup: &Backup, present: Option<&Secret>) -> Result<Vec<(String, ByteString)>, Failure> {
    let unusable = |what: &str| Failure::new(Exit::Other, format!("the backup's CA has no usable {what}"));
    let mut fields = Vec::new();
    for (name, value) in &backup.ca {
        let bytes: ByteString = serde_json::from_value(value.clone()).map_err(|_| unusable(name))?;
        fields.push((name.clone(), bytes));
    }
    let number =
        |bytes: &ByteString| -> Option<u64> { std::str::from_utf8(&bytes.0).ok()?.trim().parse().ok() };
    let saved = fields.iter().find(|(name, _)| name == "epoch");
    let saved = saved
        .and_then(|(_, e)| number(e))
        .ok_or_else(|| unusable("epoch"))?;
    let here = present
        .and_then(|s| s.data.as_ref()?.get("epoch"))
        .and_then(number);
    let epoch = saved.max(here.unwrap_or(0)) + 1;
    fields.retain(|(name, _)| name != "epoch" && name != "restored_to");
    fields.push(("epoch".into(), ByteString(epoch.to_string().into_bytes())));
    fields.push((
        "restored_to".into(),
        ByteString(backup.taken.clone().into_bytes()),
    ));
    Ok(fields)
}

async fn put_identity(
    secrets: &Api<Secret>,
    fields: &[(String, ByteString)],
    present: Option<Secret>,
) -> Result<(), Failure> {
    let fresh = Secret {
        metadata: ObjectMeta {
            name: Some(CA_SECRET.into()),
            ..ObjectMeta::default()
        },
        ..Secret::default()
    };
    let is_new = present.is_none();
    let mut secret = present.unwrap_or(fresh);
    secret.data = Some(fields.iter().cloned().collect());
    let params = PostParams::default();
    let done = if is_new {
        secrets.create(&params, &secret).await
    } else {
        secrets.replace(CA_SECRET, &params, &secret).await
    };
    done.map(drop)
        .map_err(|err| Failure::kube(&format!("writing Secret {CA_SECRET}"), &err))
}

async fn have_namespace(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.into());
    match api.create(&PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(err) => Err(Failure::kube(&format!("creating namespace {name}"), &err)),
    }
}

/// One object as it was, and its status in the names of those who wrote it.
async fn put(cluster: &Cluster, object: &Value) -> Result<(), Failure> {
    let (api, name, title) = (
        cluster.api(object),
        manifest::name(object),
        manifest::title(object),
    );
    let failed = |err: &kube::Error| Failure::kube(&format!("restoring {title}"), err);
    let mut bare = object.clone();
    if let Some(fields) = bare.as_object_mut() {
        fields.remove("status");
    }
    if let Some(meta) = bare["metadata"].as_object_mut() {
        meta.remove("managedFields");
    }
    let mut wanted: DynamicObject = serde_json::from_value(bare)
        .map_err(|err| Failure::new(Exit::Other, format!("{title} in the backup can't be read: {err}")))?;
    let params = PostParams {
        field_manager: Some(owners::author(object).unwrap_or(FIELD_MANAGER).to_owned()),
        ..PostParams::default()
    };
    let present = api.get_metadata_opt(name).await.map_err(|err| failed(&err))?;
    let written = match present {
        Some(present) => {
            wanted.metadata.resource_version = present.metadata.resource_version;
            api.replace(name, &params, &wanted).await
        }
        None => api.create(&params, &wanted).await,
    };
    written.map_err(|err| failed(&err))?;
    for (manager, status) in owners::statuses(object) {
        let patch = json!({
            "apiVersion": object["apiVersion"],
            "kind": object["kind"],
            "metadata": {"name": name},
            "status": status,
        });
        let params = PatchParams::apply(&manager).force();
        api.patch_status(name, &params, &Patch::Apply(&patch))
            .await
            .map_err(|err| failed(&err))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(epoch: &str) -> Backup {
        Backup {
            backup: 1,
            taken: "2026-01-01T00:00:00Z".into(),
            made_by: "0.1.0".into(),
            ca: serde_json::Map::from_iter([
                ("epoch".to_owned(), epoch.into()),
                ("hub_id".to_owned(), "aA==".into()),
            ]),
            objects: Vec::new(),
        }
    }

    fn field(fields: &[(String, ByteString)], name: &str) -> String {
        let found = fields.iter().find(|(n, _)| n == name).expect("there");
        String::from_utf8(found.1.0.clone()).expect("text")
    }

    #[test]
    fn the_epoch_rises_above_both_and_the_backups_time_is_kept() {
        let here = Secret {
            data: Some([("epoch".to_owned(), ByteString(b"9\n".to_vec()))].into()),
            ..Secret::default()
        };
        // "Mw==" is 3.
        for (present, epoch) in [(None, "4"), (Some(&here), "10")] {
            let fields = identity(&backup("Mw=="), present).expect("usable");
            assert_eq!(field(&fields, "epoch"), epoch);
            assert_eq!(field(&fields, "restored_to"), "2026-01-01T00:00:00Z");
            assert_eq!(field(&fields, "hub_id"), "h");
        }
        assert!(identity(&backup("eA=="), None).is_err(), "x is no epoch");
    }
}

//! `spillway hub uninstall`.

use kube::api::Api;
use serde_json::Value;
use spillway_crds::hub::Member;
use tokio::time::Instant;

use crate::args::{HubUninstall, Target};
use crate::cluster::{Cluster, reference};
use crate::failure::{Exit, Failure};
use crate::ui::Ui;
use crate::values::HubValues;
use crate::{manifest, output};

/// Deletes the hub. Its definitions, and so all policies, stay unless told otherwise.
pub async fn run(target: &Target, uninstall: &HubUninstall, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let members = cluster
        .list(Api::<Member>::all(cluster.client.clone()), "members")
        .await?;
    let deployment = reference(
        "apps/v1",
        "DaemonSet",
        Some(spillway_crds::NAMESPACE),
        "spillway-node-agent",
    );
    let shares_namespace = cluster.exists(&deployment).await?;
    let doomed = doomed(
        HubValues::default().render()?,
        uninstall.delete_policies,
        shares_namespace,
    );
    if uninstall.dry_run {
        return output::print(&manifest::titles(&doomed));
    }
    if !members.is_empty() && !uninstall.force {
        let names: Vec<&str> = members
            .iter()
            .filter_map(|m| m.metadata.name.as_deref())
            .collect();
        return Err(Failure::new(Exit::Other, format!("{} members are joined: {}", names.len(), names.join(", ")))
            .fix("let each leave first: spillway leave, with the member's kubeconfig")
            .fix("or go on with --force: their nodes keep the plan they have, until you run spillway leave --force there"));
    }
    if !uninstall.yes {
        ui.confirm(&format!(
            "the hub goes from {}{}. Go on?",
            cluster.name,
            if uninstall.delete_policies {
                ", with every policy"
            } else {
                ""
            }
        ))?;
    }
    let deadline = Instant::now() + uninstall.timeout;
    let phase = ui.phase("hub removed");
    let mut count = 0;
    for object in &doomed {
        phase.show(manifest::kind(object));
        count += usize::from(cluster.delete(object).await?);
    }
    cluster.gone(&doomed, deadline).await?;
    phase.done(&format!("{count} objects"));
    if !uninstall.delete_policies {
        ui.say(
            "kept: the definitions with all members, gateways and policies (--delete-policies deletes them)",
        );
    }
    Ok(())
}

/// What goes, workloads first. In a cluster that is a member as well the namespace stays; then the hub's
/// secrets have to be named one by one.
fn doomed(objects: Vec<Value>, with_policies: bool, shares_namespace: bool) -> Vec<Value> {
    let mut doomed: Vec<Value> = objects
        .into_iter()
        .rev()
        .filter(|object| match manifest::kind(object) {
            "CustomResourceDefinition" => with_policies,
            "Namespace" => !shares_namespace,
            _ => true,
        })
        .collect();
    if shares_namespace {
        let namespace = Some(spillway_crds::NAMESPACE);
        doomed.push(reference("v1", "Secret", namespace, "spillway-hub-ca"));
        doomed.push(reference("v1", "ConfigMap", namespace, "spillway-hub-info"));
    }
    doomed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_go_only_when_asked_and_a_shared_namespace_never() {
        let kinds = |policies, shared| -> Vec<String> {
            doomed(HubValues::default().render().expect("renders"), policies, shared)
                .iter()
                .map(|o| manifest::kind(o).to_owned())
                .collect()
        };
        assert!(!kinds(false, false).contains(&"CustomResourceDefinition".into()));
        assert!(kinds(true, false).contains(&"CustomResourceDefinition".into()));
        assert_eq!(kinds(false, false).last().map(String::as_str), Some("Namespace"));
        assert!(!kinds(true, true).contains(&"Namespace".into()));
        assert!(kinds(true, true).contains(&"Secret".into()));
    }
}

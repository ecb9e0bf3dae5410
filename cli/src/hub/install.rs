//! `spillway hub install`.

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::Value;
use spillway_crds::NAMESPACE;
use tokio::time::Instant;

use crate::args::{HubInstall, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::hub::endpoints;
use crate::output::{self, Format};
use crate::ui::Ui;
use crate::values::HubValues;
use crate::{manifest, pods, wait};

/// Applies the hub's objects; with `--wait` also waits until it serves.
pub async fn run(target: &Target, install: HubInstall, ui: &Ui) -> Result<(), Failure> {
    let objects = HubValues::new(&install)?.render()?;
    if install.dry_run {
        return output::print(&objects_text(&objects, install.output.unwrap_or(Format::Yaml))?);
    }
    let cluster = Cluster::connect(target).await?;
    if let Some(release) = cluster.helm_release("spillway-hub").await? {
        return Err(Failure::new(
            Exit::Other,
            format!("the Helm release {release} has installed the hub"),
        )
        .fix(format!(
            "change it with Helm: helm upgrade {release} -n {NAMESPACE} …"
        )));
    }
    crate::join::preflight::rights(&cluster, &objects).await?;
    let deadline = Instant::now() + install.timeout;
    apply_all(&cluster, &objects, deadline, ui).await?;
    if install.wait {
        serving(&cluster, deadline, ui).await?;
    }
    if install.endpoints.is_empty() {
        match endpoints::discover(&cluster).await {
            Ok(found) => ui.say(format!("members reach the hub at {}", found.join(", "))),
            Err(failure) => {
                ui.warn(&failure.what);
                for step in &failure.fix {
                    ui.say(format!("  * {step}"));
                }
            }
        }
    }
    ui.say("next: spillway token create NAME --label region=eu");
    Ok(())
}

/// Applies definitions, waits until they are served, applies the rest.
pub async fn apply_all(
    cluster: &Cluster,
    objects: &[Value],
    deadline: Instant,
    ui: &Ui,
) -> Result<(), Failure> {
    let phase = ui.phase("objects applied");
    for object in objects {
        phase.show(manifest::kind(object));
        cluster.apply(object).await?;
    }
    cluster.established(objects, deadline).await?;
    phase.done(&format!("{} objects in {}", objects.len(), cluster.name));
    Ok(())
}

/// Waits until every replica is ready and the hub has published its CA.
async fn serving(cluster: &Cluster, deadline: Instant, ui: &Ui) -> Result<(), Failure> {
    let mut phase = ui.phase("hub running");
    let mut last = String::from("no replica yet");
    let ready = wait::until(
        deadline,
        async || {
            if let Some(trouble) = pods::trouble(cluster, "spillway-hub").await?
                && trouble.is_final()
            {
                return Err(trouble.failure());
            }
            let found: Option<Deployment> = cluster.get(cluster.ours(), "spillway-hub", "Deployment").await?;
            let wanted = found
                .as_ref()
                .and_then(|d| d.spec.as_ref())
                .and_then(|s| s.replicas)
                .unwrap_or(1);
            let status = found.as_ref().and_then(|d| d.status.clone()).unwrap_or_default();
            let seen = status.observed_generation >= found.as_ref().and_then(|d| d.metadata.generation);
            let ready = status.ready_replicas.unwrap_or(0);
            let updated = status.updated_replicas.unwrap_or(0);
            last = format!("{ready} of {wanted} replicas ready");
            phase.update(&last);
            let all =
                seen && ready >= wanted && updated >= wanted && status.unavailable_replicas.unwrap_or(0) == 0;
            Ok((all && cluster.hub_info().await?.is_some()).then_some(wanted))
        },
        || {
            Failure::new(Exit::TimedOut, "the hub isn't serving yet")
                .fix(format!("see how its pods do: kubectl get pods -n {NAMESPACE}"))
                .fix(format!(
                    "see what they say: kubectl logs -n {NAMESPACE} deployment/spillway-hub"
                ))
        },
    )
    .await?;
    phase.done(&format!("{ready} replicas"));
    Ok(())
}

/// `objects` as `kubectl apply -f -` takes them: a List in JSON, a stream in YAML.
pub fn objects_text(objects: &[Value], format: Format) -> Result<String, Failure> {
    match format {
        Format::Json => output::text(
            &serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}),
            Format::Json,
        ),
        Format::Yaml => {
            let mut out = String::new();
            for object in objects {
                out.push_str("---\n");
                out.push_str(&output::text(object, Format::Yaml)?);
            }
            Ok(out)
        }
    }
}

//! `spillway gather`: everything that somebody who wasn't there needs to find out what happened, in one archive.
//!
//! ```text
//!  SPILLWAY-NAME-TIME/
//!    manifest.json          what is here, what isn't, and why
//!    check.json             what `spillway check` says
//!    objects/GROUP/KIND.json  our definitions' objects, with status
//!    cluster/KIND.json      our workloads and pods; nodes; events about any of it
//!    logs/POD/CONTAINER.log, .previous.log
//!    pods/POD/metrics.txt, show.txt
//! ```
//!
//! Secrets are never asked for, by no right and no path; what is got goes through [`redact`]. Every part is got on its own:
//! where one is down, the rest is there.

mod archive;
mod ask;
pub mod redact;

use std::io::Write as _;
use std::path::PathBuf;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use spillway_crds::{HUB_GROUP, MEMBER_GROUP, NAMESPACE};

use crate::args::{Gather, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::ui::Ui;
use crate::{check, output};

use archive::Archive;

/// Kinds of other groups: group and version, kind, plural, and whether in our namespace alone. None of them is Secret.
const CLUSTER: [(&str, &str, &str, bool); 6] = [
    ("apps/v1", "Deployment", "deployments", true),
    ("apps/v1", "DaemonSet", "daemonsets", true),
    ("v1", "Pod", "pods", true),
    ("v1", "ConfigMap", "configmaps", true),
    ("coordination.k8s.io/v1", "Lease", "leases", true),
    ("v1", "Node", "nodes", false),
];

/// Pods that are asked at the same time: many nodes, and perhaps some that don't answer.
const AT_ONCE: usize = 8;

/// Gathers.
pub async fn run(target: &Target, gather: &Gather, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let now = Timestamp::now();
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '-'
        }
    };
    let name: String = cluster.name.chars().map(safe).take(60).collect();
    let root = format!("spillway-{name}-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let mut archive = Archive::begin(Vec::new(), &root, seconds);

    let findings = check::findings(&cluster, None).await;
    let findings = findings.map(|(_, f)| serde_json::to_value(f).unwrap_or_default());
    archive.object_or("check.json", findings)?;
    objects(&cluster, &mut archive).await?;
    for (version, kind, plural, own) in CLUSTER {
        let got = ask::list(&cluster, version, kind, plural, own.then_some(NAMESPACE)).await;
        archive.object_or(&format!("cluster/{plural}.json"), got)?;
    }
    archive.object_or("cluster/events.json", ask::events(&cluster).await)?;
    match cluster.list(cluster.ours::<Pod>(), "pods").await {
        Ok(pods) => {
            let parts = pods.iter().map(|pod| of_pod(&cluster, pod, gather));
            let mut parts = futures::stream::iter(parts).buffered(AT_ONCE);
            while let Some(parts) = parts.next().await {
                for (path, got) in parts {
                    archive.text_or(&path, got)?;
                }
            }
        }
        Err(failure) => archive.lacks("logs", &failure),
    }

    let (bytes, missing) = archive.finish(&cluster.name, now.to_string())?;
    let path = gather
        .file
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{root}.tar.gz")));
    write(&path, &bytes)?;
    for missing in &missing {
        ui.warn(format!("not gathered: {}: {}", missing.what, missing.why));
    }
    output::print(&format!("{}\n", path.display()))
}

/// For the owner alone: it tells of the network, though of no secret.
fn write(path: &std::path::Path, bytes: &[u8]) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let cant =
        |e: std::io::Error| Failure::new(Exit::Other, format!("{} can't be written: {e}", path.display()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(cant)?;
    file.write_all(bytes).map_err(cant)
}

/// All kinds of our groups, as the API server knows them: also those of another version than this program's.
async fn objects(cluster: &Cluster, archive: &mut Archive<Vec<u8>>) -> Result<(), Failure> {
    let served = match ask::versions(cluster, &[HUB_GROUP, MEMBER_GROUP]).await {
        Ok(served) => served,
        Err(failure) => {
            archive.lacks("objects", &failure);
            return Ok(());
        }
    };
    for version in served {
        let kinds = match ask::kinds(cluster, &version).await {
            Ok(kinds) => kinds,
            Err(failure) => {
                archive.lacks(&format!("objects/{version}"), &failure);
                continue;
            }
        };
        for (kind, plural) in kinds {
            let got = ask::list(cluster, &version, &kind, &plural, None).await;
            archive.object_or(
                &format!("objects/{}/{plural}.json", version.replace('/', "-")),
                got,
            )?;
        }
    }
    Ok(())
}

/// Parts of an archive by their paths.
type Parts = Vec<(String, Result<String, Failure>)>;

/// One of our pods: logs, metrics, and of a node agent what its kernel holds.
async fn of_pod(cluster: &Cluster, pod: &Pod, gather: &Gather) -> Parts {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let restarted = |container: &str| {
        let statuses = pod
            .status
            .iter()
            .flat_map(|s| s.container_statuses.iter().flatten());
        statuses
            .filter(|s| s.name == container)
            .any(|s| s.restart_count > 0)
    };
    let mut parts = Parts::new();
    for container in containers {
        let container = container.name.as_str();
        let path = format!("logs/{name}/{container}");
        let log = ask::log(cluster, name, container, false, gather).await;
        parts.push((format!("{path}.log"), log));
        if restarted(container) {
            let log = ask::log(cluster, name, container, true, gather).await;
            parts.push((format!("{path}.previous.log"), log));
        }
    }
    let app = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get("app.kubernetes.io/name"));
    let metrics = format!("pods/{name}/metrics.txt");
    match app.map(String::as_str) {
        Some("spillway-hub") => parts.push((metrics, ask::http(cluster, name, 8080, "/metrics").await)),
        Some("spillway-member-agent") => {
            parts.push((metrics, ask::http(cluster, name, 8081, "/metrics").await));
        }
        Some("spillway-node-agent") => {
            // It knows its own port.
            let program = "spillway-node-agent";
            parts.push((metrics, ask::exec(cluster, name, &[program, "metrics"]).await));
            let show = ask::exec(cluster, name, &[program, "show"]).await;
            parts.push((format!("pods/{name}/show.txt"), show));
        }
        _ => {}
    }
    parts
}

/// Lists as one value.
fn listed(items: Vec<Value>) -> Value {
    Value::Array(items)
}

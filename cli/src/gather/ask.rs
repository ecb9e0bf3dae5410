//! Each part, asked for on its own and within a limit.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ApiResource, AttachParams, DynamicObject, GroupVersionKind, LogParams};
use serde_json::Value;
use spillway_crds::NAMESPACE;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::listed;
use crate::args::Gather;
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};

/// For one part. A node agent that has to compare a large table takes seconds.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of one log, the newest.
const LOG_BYTES: i64 = 10 << 20;
/// Bytes that a program in a pod may print.
const PRINTED: u64 = 50 << 20;

async fn within<T>(what: &str, part: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(LIMIT, part).await {
        Ok(got) => got,
        Err(_) => Err(Failure::new(
            Exit::TimedOut,
            format!("{what}: no answer within {} s", LIMIT.as_secs()),
        )),
    }
}

/// Versions of these groups that are served, the preferred one of each.
pub(super) async fn versions(cluster: &Cluster, groups: &[&str]) -> Result<Vec<String>, Failure> {
    let list = cluster.client.list_api_groups().await;
    let list = list.map_err(|e| Failure::kube("asking the API server what it serves", &e))?;
    let ours = list
        .groups
        .into_iter()
        .filter(|g| groups.contains(&g.name.as_str()));
    Ok(ours
        .filter_map(|g| g.preferred_version.or_else(|| g.versions.into_iter().next()))
        .map(|v| v.group_version)
        .collect())
}

/// Kinds of a version, with their plurals.
pub(super) async fn kinds(cluster: &Cluster, version: &str) -> Result<Vec<(String, String)>, Failure> {
    let list = cluster.client.list_api_group_resources(version).await;
    let list = list.map_err(|e| Failure::kube(&format!("listing kinds of {version}"), &e))?;
    let whole = list.resources.into_iter().filter(|r| !r.name.contains('/'));
    Ok(whole.map(|r| (r.kind, r.name)).collect())
}

/// All objects of a kind.
pub(super) async fn list(
    cluster: &Cluster,
    version: &str,
    kind: &str,
    plural: &str,
    namespace: Option<&str>,
) -> Result<Value, Failure> {
    let (group, name) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, name, kind), plural);
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    };
    within(plural, async {
        let objects = cluster.list(api, plural).await?;
        let values = objects.iter().map(serde_json::to_value).filter_map(Result::ok);
        Ok(listed(values.collect()))
    })
    .await
}

/// Events about what is ours: all of our namespace, and of our kinds elsewhere, and those that name us.
pub(super) async fn events(cluster: &Cluster) -> Result<Value, Failure> {
    within("events", async {
        let all = cluster
            .list(Api::<Event>::all(cluster.client.clone()), "events")
            .await?;
        let ours = |e: &&Event| {
            let object = &e.involved_object;
            let said_by = e.source.as_ref().and_then(|s| s.component.as_deref());
            e.metadata.namespace.as_deref() == Some(NAMESPACE)
                || object
                    .api_version
                    .as_deref()
                    .is_some_and(|v| v.contains("spillway.io"))
                || said_by.is_some_and(|s| s.starts_with("spillway"))
                || e.message.as_deref().is_some_and(|m| m.contains("Spillway"))
        };
        let values = all.iter().filter(ours).map(serde_json::to_value);
        Ok(listed(values.filter_map(Result::ok).collect()))
    })
    .await
}

/// A container's log, of its run before where that is asked for.
pub(super) async fn log(
    cluster: &Cluster,
    pod: &str,
    container: &str,
    previous: bool,
    gather: &Gather,
) -> Result<String, Failure> {
    let params = LogParams {
        container: Some(container.into()),
        previous,
        since_seconds: i64::try_from(gather.since.as_secs()).ok().filter(|_| !previous),
        timestamps: true,
        ..LogParams::default()
    };
    within("log", async {
        let api: Api<Pod> = cluster.ours();
        let text = api.logs(pod, &params).await;
        let text = text.map_err(|e| Failure::kube(&format!("reading the log of {pod}"), &e))?;
        Ok(newest(text))
    })
    .await
}

/// The end of a long text, from a whole line on.
fn newest(text: String) -> String {
    let most = usize::try_from(LOG_BYTES).unwrap_or(usize::MAX);
    let Some(mut from) = text.len().checked_sub(most).filter(|n| *n > 0) else {
        return text;
    };
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let tail = &text[from..];
    tail.split_once('\n').map_or(tail, |(_, rest)| rest).to_owned()
}

/// What a daemon answers over HTTP in its pod's own network, by way of the API server and the kubelet: also where the port
/// is open to the node alone.
pub(super) async fn http(cluster: &Cluster, pod: &str, port: u16, path: &str) -> Result<String, Failure> {
    let what = format!("asking {pod} for {path}");
    let broken = |e: std::io::Error| Failure::new(Exit::Other, format!("{what}: {e}"));
    within(&what, async {
        let api: Api<Pod> = cluster.ours();
        let forwarded = api.portforward(pod, &[port]).await;
        let mut forwarded = forwarded.map_err(|e| Failure::kube(&what, &e))?;
        let stream = forwarded.take_stream(port);
        let mut stream = stream.ok_or_else(|| Failure::new(Exit::Other, format!("{what}: no stream")))?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut answer = String::new();
        stream
            .take(PRINTED)
            .read_to_string(&mut answer)
            .await
            .map_err(broken)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
            _ => Err(Failure::new(
                Exit::Other,
                format!("{what}: {}", answer.lines().next().unwrap_or("no answer")),
            )),
        }
    })
    .await
}

async fn printed(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What came before a break is better than nothing.
        _ = stream.take(PRINTED).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a program in a pod prints. Where it fails, its complaint.
pub(super) async fn exec(cluster: &Cluster, pod: &str, command: &[&str]) -> Result<String, Failure> {
    let what = format!("running {} in {pod}", command.join(" "));
    within(&what, async {
        let api: Api<Pod> = cluster.ours();
        let params = AttachParams::default().stdout(true).stderr(true);
        let running = api.exec(pod, command.to_vec(), &params).await;
        let mut running = running.map_err(|e| Failure::kube(&what, &e))?;
        let (stdout, stderr) = (running.stdout(), running.stderr());
        let (out, err) = tokio::join!(printed(stdout), printed(stderr));
        let status = match running.take_status() {
            Some(status) => status.await,
            None => None,
        };
        if status.is_some_and(|s| s.status.as_deref() == Some("Success")) {
            Ok(out)
        } else {
            Err(Failure::new(Exit::Other, format!("{what}: {}", err.trim())))
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_end() {
        let most = usize::try_from(LOG_BYTES).expect("fits");
        let text = format!("first\n{}\nlast\n", "x".repeat(most));
        assert_eq!(newest(text), "last\n");
        assert_eq!(newest("short\n".into()), "short\n");
    }

    #[test]
    fn no_secret_is_among_what_is_listed() {
        for (_, kind, plural, _) in super::super::CLUSTER {
            assert!(!kind.contains("Secret") && !plural.contains("secret"), "{kind}");
        }
    }
}

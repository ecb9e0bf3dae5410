//! A pod as a scenario holds it.

use std::{collections::BTreeMap, net::IpAddr, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1 as core;
use kube::{
    Api, ResourceExt as _,
    api::{AttachParams, DeleteParams, PostParams},
};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::{Cluster, Node, eventually};
use crate::image;

/// How long a pod may take to become Ready, or to go.
const POD_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a command in a pod may run.
const EXEC_TIMEOUT: Duration = Duration::from_secs(120);

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
}

impl Output {
    pub(super) fn from_process(output: &std::process::Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// The trimmed standard output of a command that succeeded.
    pub fn success(self) -> Result<String> {
        ensure!(
            self.code == 0,
            "exit code {}: {} {}",
            self.code,
            self.stdout.trim(),
            self.stderr.trim()
        );
        Ok(self.stdout.trim().to_owned())
    }
}

/// A pod to be created: the probe image, idle, anywhere, unless told otherwise.
#[derive(Debug, Clone)]
pub struct PodRequest {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    node: Option<String>,
    host_network: bool,
    command: Option<Vec<String>>,
}

impl PodRequest {
    /// A pod of that name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            node: None,
            host_network: false,
            command: None,
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Puts it on a node, past the scheduler.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Puts it into its node's network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// Runs this instead of idling; for pods whose first packet matters.
    #[must_use]
    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = Some(command.iter().map(|s| (*s).to_owned()).collect());
        self
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn object(&self) -> Result<core::Pod> {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels},
            "spec": {
                "nodeName": self.node,
                "hostNetwork": self.host_network,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "probe",
                    "image": image::PROBE,
                    "imagePullPolicy": "Never",
                    "command": self.command,
                }],
            },
        });
        Ok(serde_json::from_value(pod)?)
    }
}

/// A pod that is Ready.
#[derive(Clone)]
pub struct Pod {
    cluster: Cluster,
    namespace: String,
    name: String,
    uid: String,
    addresses: Vec<IpAddr>,
    node: String,
}

impl Pod {
    pub(super) async fn create(cluster: Cluster, request: &PodRequest) -> Result<Self> {
        let api: Api<core::Pod> = Api::namespaced(cluster.client(), &request.namespace);
        let created = api
            .create(&PostParams::default(), &request.object()?)
            .await
            .context("create pod")?;
        let uid = created.uid().context("the API server gave the pod no uid")?;
        let what = format!(
            "pod {}/{} in {} is Ready",
            request.namespace,
            request.name,
            cluster.name()
        );
        let ready = eventually(POD_TIMEOUT, &what, || async {
            let pod = api.get(&request.name).await?;
            let status = pod.status.clone().unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let ready = conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True");
            if !ready {
                let waiting: Vec<_> = status
                    .container_statuses
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|c| c.state.clone()?.waiting)
                    .map(|w| {
                        format!(
                            "{} {}",
                            w.reason.unwrap_or_default(),
                            w.message.unwrap_or_default()
                        )
                    })
                    .collect();
                bail!(
                    "phase {}: {}",
                    status.phase.unwrap_or_default(),
                    waiting.join("; ")
                );
            }
            Ok(pod)
        })
        .await?;
        Self::from_object(cluster, &ready, uid)
    }

    fn from_object(cluster: Cluster, pod: &core::Pod, uid: String) -> Result<Self> {
        let ips = pod.status.iter().flat_map(|s| s.pod_ips.iter().flatten());
        let addresses = ips
            .map(|ip| ip.ip.parse())
            .collect::<Result<_, _>>()
            .context("pod address")?;
        let node = pod
            .spec
            .as_ref()
            .and_then(|s| s.node_name.clone())
            .context("the pod is on no node")?;
        Ok(Self {
            cluster,
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid,
            addresses,
            node,
        })
    }

    fn api(&self) -> Api<core::Pod> {
        Api::namespaced(self.cluster.client(), &self.namespace)
    }

    /// Name of the pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// All its addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its address of a family.
    pub fn address(&self, v4: bool) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|a| a.is_ipv4() == v4).copied();
        found.with_context(|| {
            format!(
                "pod {} has no address of that family: {:?}",
                self.name, self.addresses
            )
        })
    }

    /// The node it is on.
    pub fn node(&self) -> Result<Node> {
        self.cluster.machine(&self.node)
    }

    /// Runs a command in the pod as `kubectl exec` does: through API server, kubelet and containerd.
    pub async fn exec(&self, command: &[&str]) -> Result<Output> {
        let what = || {
            format!(
                "exec in pod {}/{}: {}",
                self.namespace,
                self.name,
                command.join(" ")
            )
        };
        tokio::time::timeout(EXEC_TIMEOUT, self.exec_unbounded(command))
            .await
            .with_context(what)?
            .with_context(what)
    }

    async fn exec_unbounded(&self, command: &[&str]) -> Result<Output> {
        let streams = AttachParams::default().stdin(false).stdout(true).stderr(true);
        let mut process = self
            .api()
            .exec(&self.name, command.iter().copied(), &streams)
            .await?;
        let status = process.take_status().context("no status stream")?;
        let (mut out, mut err) = (
            process.stdout().context("no output stream")?,
            process.stderr().context("no error stream")?,
        );
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (a, b, status) = tokio::join!(out.read_to_end(&mut stdout), err.read_to_end(&mut stderr), status);
        a?;
        b?;
        let status = status.context("the command's end wasn't reported")?;
        let code = if status.status.as_deref() == Some("Success") {
            0
        } else {
            let causes = status.details.iter().flat_map(|d| d.causes.iter().flatten());
            let code = causes
                .filter(|c| c.reason.as_deref() == Some("ExitCode"))
                .find_map(|c| c.message.as_ref()?.parse().ok());
            code.with_context(|| format!("it didn't run: {}", status.message.unwrap_or_default()))?
        };
        Ok(Output {
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            code,
        })
    }

    /// A command in the pod's network and files, started straight from the machine: some milliseconds, no API server
    /// needed, and the same packets. The pod's limits (capabilities, seccomp) don't hold for it.
    pub fn command(&self, command: &[&str]) -> Result<std::process::Command> {
        let marks = [
            format!("pod{}", self.uid),
            format!("pod{}", self.uid.replace('-', "_")),
        ];
        let inside: Vec<_> = self
            .node()?
            .machine()
            .processes()?
            .into_iter()
            .filter(|p| {
                std::fs::read_to_string(format!("/proc/{}/cgroup", p.id.pid))
                    .is_ok_and(|text| marks.iter().any(|m| text.contains(m)))
            })
            .collect();
        // The sandbox's process is in the list too; it has the network but not the files.
        let chosen = inside
            .iter()
            .find(|p| p.program != "busybox" && p.program != "pause")
            .or(inside.first());
        let pid = chosen
            .with_context(|| format!("pod {} has no process on {}", self.name, self.node))?
            .id
            .pid;
        let mut nsenter = std::process::Command::new("nsenter");
        nsenter
            .args([
                "--target",
                &pid.to_string(),
                "--net",
                "--mount",
                "--uts",
                "--root",
                "--wdns=/",
                "--",
            ])
            .args(command);
        nsenter.env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        Ok(nsenter)
    }

    /// Runs [`Pod::command`] to its end.
    pub async fn run(&self, command: &[&str]) -> Result<Output> {
        let process = tokio::process::Command::from(self.command(command)?)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(EXEC_TIMEOUT, process)
            .await
            .with_context(|| format!("{} doesn't end", command.join(" ")))??;
        Ok(Output::from_process(&output))
    }

    /// Deletes the pod and waits until it is gone.
    pub async fn delete(self) -> Result<()> {
        let api = self.api();
        api.delete(&self.name, &DeleteParams::default()).await?;
        eventually(POD_TIMEOUT, "the pod is gone", || async {
            let uid = api.get_opt(&self.name).await?.and_then(|p| p.uid());
            ensure!(uid.as_deref() != Some(&self.uid), "still there");
            Ok(())
        })
        .await
    }
}

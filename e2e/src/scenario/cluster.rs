//! A cluster as a scenario holds it.

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{Node, Pod, PodRequest, eventually};
use crate::{
    connect::connect,
    provision::Toolbox,
    state::{ClusterPlan, Dirs, Plan},
};

/// Who the scenarios' server-side applies are from.
pub(super) const FIELD_MANAGER: &str = "spillway-e2e";

/// One of the arena's clusters.
#[derive(Clone)]
pub struct Cluster {
    dirs: Dirs,
    plan: Arc<Plan>,
    toolbox: Arc<Toolbox>,
    name: String,
    client: Client,
}

impl Cluster {
    pub(super) async fn connect(
        dirs: Dirs,
        plan: Arc<Plan>,
        toolbox: Arc<Toolbox>,
        name: &str,
    ) -> Result<Self> {
        plan.cluster(name)?;
        let client = connect(&dirs.kubeconfig(name)).await?;
        Ok(Self {
            dirs,
            plan,
            toolbox,
            name: name.to_owned(),
            client,
        })
    }

    /// Name of the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster with its ranges and machines.
    pub fn plan(&self) -> Result<&ClusterPlan> {
        self.plan.cluster(&self.name)
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Its nodes in order.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        let nodes = &self.plan()?.nodes;
        Ok(nodes
            .iter()
            .map(|n| Node::new(self.dirs.clone(), self.plan.clone(), n.machine.clone()))
            .collect())
    }

    /// The machine of its control plane.
    pub fn control_plane(&self) -> Result<Node> {
        Ok(Node::new(
            self.dirs.clone(),
            self.plan.clone(),
            self.plan()?.control_plane.clone(),
        ))
    }

    /// Every machine of it: control plane and nodes.
    fn machines(&self) -> Result<Vec<Node>> {
        let machines = self.plan()?.machines();
        Ok(machines
            .map(|m| Node::new(self.dirs.clone(), self.plan.clone(), m.clone()))
            .collect())
    }

    /// Cuts the power of every machine at once, API server included.
    pub async fn power_off(&self) -> Result<()> {
        let machines = self.machines()?;
        futures::future::try_join_all(machines.iter().map(Node::power_off))
            .await
            .map(drop)
    }

    /// Switches every machine on that is off. Returns when they boot.
    pub async fn power_on(&self) -> Result<()> {
        let machines = self.machines()?;
        let off = machines.iter().filter(|machine| !machine.is_on());
        futures::future::try_join_all(off.map(Node::power_on))
            .await
            .map(drop)
    }

    /// Runs kubectl; gives its standard output.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with_input(args, "").await
    }

    /// Runs kubectl with something on its standard input.
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let program = self.toolbox.kubernetes(&self.plan()?.spec.kubernetes, "kubectl");
        self.tool(&program, args, input).await
    }

    /// Runs helm; gives its standard output.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        self.tool(&self.toolbox.bin("helm"), args, "").await
    }

    /// Applies manifests, server-side.
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        let field_manager = format!("--field-manager={FIELD_MANAGER}");
        self.kubectl_with_input(
            &[
                "apply",
                "--server-side",
                "--force-conflicts",
                &field_manager,
                "-f",
                "-",
            ],
            yaml,
        )
        .await
    }

    async fn tool(&self, program: &Path, args: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new(program)
            .args(args)
            .env("KUBECONFIG", self.dirs.kubeconfig(&self.name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that reads none of it may be gone before all is written.
            let _its_own_business = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await?;
        ensure!(
            output.status.success(),
            "{} {} in cluster {}: {}: {}",
            program.file_name().unwrap_or_default().to_string_lossy(),
            args.join(" "),
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes sure a namespace exists, has these labels among others, and is ready for pods.
    pub async fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: serde_json::Map<_, _> = labels.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        let namespaces: Api<Namespace> = Api::all(self.client());
        namespaces
            .patch(
                name,
                &PatchParams::apply(FIELD_MANAGER).force(),
                &Patch::Apply(&object),
            )
            .await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), name);
        eventually(
            Duration::from_secs(30),
            "the namespace has its service account",
            || async {
                accounts.get("default").await?;
                Ok(())
            },
        )
        .await
    }

    /// Creates a probe pod that idles, and its namespace if missing; waits until it is Ready.
    pub async fn pod(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        node: Option<&str>,
    ) -> Result<Pod> {
        let mut request = PodRequest::new(namespace, name);
        for (key, value) in labels {
            request = request.label(key, value);
        }
        if let Some(node) = node {
            request = request.on(node);
        }
        self.create_pod(&request).await
    }

    /// Creates a pod and, if missing, its namespace; waits until it is Ready.
    pub async fn create_pod(&self, request: &PodRequest) -> Result<Pod> {
        let namespaces: Api<Namespace> = Api::all(self.client());
        if namespaces.get_opt(request.namespace()).await?.is_none() {
            self.namespace(request.namespace(), &[]).await?;
        }
        Pod::create(self.clone(), request).await
    }

    /// A machine of this arena by name.
    pub(super) fn machine(&self, name: &str) -> Result<Node> {
        Ok(Node::new(
            self.dirs.clone(),
            self.plan.clone(),
            self.plan.machine(name)?.clone(),
        ))
    }
}

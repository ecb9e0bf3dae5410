//! Replicas of the hub within the scenario's process.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt as _};
use spillway_crds::export::hub_crds;
use spillway_hub::Args;
use spillway_link::pki::Pin;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::story::{eventually, object};

/// What a hub finds in its cluster: its definitions and its namespace.
pub(crate) async fn prepare(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in hub_crds() {
        let name = crd.name_any();
        let parameters = PatchParams::apply("spillway-e2e").force();
        api.patch(&name, &parameters, &Patch::Apply(&crd)).await?;
        let established = await_condition(api.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(Duration::from_secs(30), established)
            .await
            .with_context(|| format!("{name} isn't served"))??;
    }
    let namespace: Namespace = object(serde_json::json!({"metadata": {"name": spillway_crds::NAMESPACE}}))?;
    Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await?;
    Ok(())
}

/// One replica.
pub(crate) struct Replica {
    name: String,
    port: u16,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<()>>,
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}

impl Replica {
    /// Starts one and waits until it listens.
    pub(crate) async fn start(client: &Client, name: &str) -> Result<Self> {
        let (port, http) = (free_port()?, free_port()?);
        let args = Args::parse_from([
            "spillway-hub",
            "--replica-name",
            name,
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--http-listen",
            &format!("127.0.0.1:{http}"),
        ]);
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(spillway_hub::run(args, client.clone(), async {
            let _dropped_is_stopped_too = stopped.await;
        }));
        let replica = Self {
            name: name.into(),
            port,
            stop,
            running,
        };
        eventually("the replica listens", || async {
            ensure!(!replica.running.is_finished(), "the replica ended");
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            Ok(())
        })
        .await?;
        Ok(replica)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) async fn stop(self) -> Result<()> {
        let _ended_already = self.stop.send(());
        self.running.await?
    }
}

/// The pin as the command line reads it.
pub(crate) async fn pin(client: &Client) -> Result<Pin> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), spillway_crds::NAMESPACE);
    let info = api.get("spillway-hub-info").await?;
    let pin = info.data.context("an empty ConfigMap")?;
    pin["ca_pin"]
        .parse()
        .map_err(|err| anyhow::anyhow!("the published pin: {err}"))
}

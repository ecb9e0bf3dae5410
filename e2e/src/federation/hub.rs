//! The hub as its operators handle it.

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::Value;
use spillway_crds::NAMESPACE;

use super::{Federation, HUB_PORT, PATIENCE};
use crate::scenario::{Cluster, eventually};

const SELECTOR: &str = "app.kubernetes.io/name=spillway-hub";

/// The hub cluster, with what scenarios ask of it.
pub struct Hub<'a>(&'a Cluster);

impl Hub<'_> {
    /// Runs kubectl against the hub.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.0.kubectl(args).await
    }
}

impl Federation {
    /// The hub cluster.
    pub fn hub(&self) -> Hub<'_> {
        Hub(&self.clusters["hub"])
    }

    /// Where members reach the hub.
    pub fn endpoint(&self) -> Result<String> {
        Ok(format!("{}:{HUB_PORT}", self.node("hub-n1")?.plan().ipv4))
    }

    /// `spillway hub install`, from the images that the arena carries.
    pub async fn install_hub(&self) -> Result<String> {
        let endpoint = self.endpoint()?;
        let port = HUB_PORT.to_string();
        let args = [
            "hub",
            "install",
            "--endpoint",
            &endpoint,
            "--service-type",
            "NodePort",
            "--node-port",
            &port,
            "--image-tag",
            "dev",
            "--wait",
        ];
        self.spillway_ok("hub", &args).await
    }

    /// Applies objects on the hub.
    pub async fn apply_hub(&self, yaml: &str) -> Result<()> {
        self.clusters["hub"].apply(yaml).await.map(drop)
    }

    /// What a cluster's API server says to an object, without keeping it: nothing, or its refusal.
    ///
    /// A server-side apply, so that an object of that name may be there already.
    pub async fn verdict(&self, cluster: &str, object: &Value) -> Result<Result<(), String>> {
        let (group, version) = object["apiVersion"]
            .as_str()
            .and_then(|v| v.split_once('/'))
            .context("an object of an API group")?;
        let kind = object["kind"].as_str().context("a kind")?;
        let name = object["metadata"]["name"].as_str().context("a name")?;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let client = self.cluster(cluster)?.client();
        let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let parameters = PatchParams {
            dry_run: true,
            ..PatchParams::apply("spillway-e2e").force()
        };
        match api.patch(name, &parameters, &Patch::Apply(object)).await {
            Ok(_) => Ok(Ok(())),
            Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
            Err(other) => Err(other.into()),
        }
    }

    /// An object of the hub as JSON.
    pub async fn hub_object(&self, args: &[&str]) -> Result<Value> {
        let args: Vec<&str> = ["get", "-o", "json"].iter().chain(args).copied().collect();
        Ok(serde_json::from_str(&self.hub().kubectl(&args).await?)?)
    }

    /// Whether the hub knows the member.
    pub async fn member_exists(&self, member: &str) -> Result<bool> {
        Ok(!self
            .hub()
            .kubectl(&["get", "members", member, "--ignore-not-found", "-o", "name"])
            .await?
            .is_empty())
    }

    /// Waits until the hub says that the member is connected.
    pub async fn connected(&self, member: &str) -> Result<()> {
        eventually(PATIENCE, &format!("member {member} is connected"), || async {
            let object = self.hub_object(&["member", member]).await?;
            let status = condition(&object, "Connected").unwrap_or_default();
            ensure!(status.0 == "True", "Connected is {status:?}");
            Ok(())
        })
        .await
    }

    /// Scales the hub, and waits until that many replicas run.
    pub async fn scale_hub(&self, replicas: u32) -> Result<()> {
        let count = format!("--replicas={replicas}");
        self.hub()
            .kubectl(&["-n", NAMESPACE, "scale", "deployment", "spillway-hub", &count])
            .await?;
        eventually(PATIENCE, &format!("{replicas} hub replicas run"), || async {
            let pods = self
                .hub_object(&["pods", "-n", NAMESPACE, "-l", SELECTOR])
                .await?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let ready = pods
                .iter()
                .filter(|p| condition(p, "Ready").is_some_and(|c| c.0 == "True"))
                .count();
            ensure!(
                pods.len() == replicas as usize && ready == pods.len(),
                "{ready} of {} ready",
                pods.len()
            );
            Ok(())
        })
        .await
    }

    /// Name of the replica that holds the Lease.
    pub async fn hub_leader(&self) -> Result<String> {
        let lease = self
            .hub_object(&["lease", "-n", NAMESPACE, "spillway-hub"])
            .await?;
        lease["spec"]["holderIdentity"]
            .as_str()
            .map(str::to_owned)
            .context("nobody holds the Lease")
    }

    /// Waits until another replica than `previous` holds the Lease.
    pub async fn hub_leader_other_than(&self, previous: &str) -> Result<String> {
        eventually(PATIENCE, "another replica holds the Lease", || async {
            let leader = self.hub_leader().await?;
            ensure!(!leader.is_empty() && leader != previous, "{leader:?} holds it");
            Ok(leader)
        })
        .await
    }

    /// Deletes a replica's pod without grace: the process is killed.
    pub async fn kill_hub_replica(&self, pod: &str) -> Result<()> {
        self.hub()
            .kubectl(&[
                "-n",
                NAMESPACE,
                "delete",
                "pod",
                pod,
                "--grace-period=0",
                "--force",
            ])
            .await
            .map(drop)
    }

    /// Everything that the hub allocated: member numbers, overlay prefixes, identities.
    pub async fn allocations(&self) -> Result<Value> {
        let members = self.hub_object(&["members"]).await?;
        let gateways = self.hub_object(&["egressgateways"]).await?;
        let of = |list: &Value, fields: &[&str]| -> Value {
            let items = list["items"].as_array().cloned().unwrap_or_default();
            items
                .iter()
                .map(|item| {
                    let mut kept = vec![item["metadata"]["name"].clone()];
                    kept.extend(fields.iter().map(|f| item["status"][*f].clone()));
                    Value::Array(kept)
                })
                .collect()
        };
        Ok(Value::Array(vec![
            of(&members, &["memberId", "overlay"]),
            of(&gateways, &["identities"]),
        ]))
    }
}

/// (status, reason, message) of a condition.
pub(crate) fn condition(object: &Value, kind: &str) -> Option<(String, String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|c| c["type"] == kind)?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

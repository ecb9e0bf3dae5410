//! One cluster, reached through a kubeconfig.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use spillway_crds::NAMESPACE;
use tokio::time::Instant;

use crate::FIELD_MANAGER;
use crate::args::Target;
use crate::failure::{Exit, Failure, chain};
use crate::{manifest, wait};

/// How long a single request may take.
const REQUEST: Duration = Duration::from_secs(15);

/// A client and what to call the cluster.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// Context of the kubeconfig, or the server's address: what to call the cluster in messages.
    pub name: String,
}

impl Cluster {
    /// Reads the kubeconfig and asks the API server for its version.
    pub async fn connect(target: &Target) -> Result<Self, Failure> {
        let unusable = |err: &dyn std::error::Error| {
            Failure::new(
                Exit::Cluster,
                format!("the kubeconfig can't be used: {}", chain(err)),
            )
            .fix("name a kubeconfig with --kubeconfig or $KUBECONFIG, and a context of it with --context")
        };
        let options = KubeConfigOptions {
            context: target.context.clone(),
            ..KubeConfigOptions::default()
        };
        let kubeconfig = match &target.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        }
        .map_err(|err| unusable(&err))?;
        let context = target
            .context
            .clone()
            .or_else(|| kubeconfig.current_context.clone());
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(|err| unusable(&err))?;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(REQUEST);
        config.write_timeout = Some(REQUEST);
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|err| unusable(&err))?;
        let name = context.unwrap_or_else(|| server.clone());
        let silent = |why: String| {
            Failure::new(
                Exit::Cluster,
                format!("the API server of {name} ({server}) doesn't answer: {why}"),
            )
            .fix("check the address and the network: kubectl get --raw /readyz")
            .fix("name another cluster with --kubeconfig or --context")
        };
        match tokio::time::timeout(REQUEST, client.apiserver_version()).await {
            Ok(Ok(_)) => Ok(Self { client, name }),
            // It answers; whether it lets this user do what the command needs is checked later.
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Ok(Self { client, name }),
            Ok(Err(kube::Error::Api(status))) if status.code == 401 => {
                Err(Failure::kube("connecting", &kube::Error::Api(status)))
            }
            Ok(Err(err)) => Err(silent(chain(&err))),
            Err(_) => Err(silent(format!("no answer within {} s", REQUEST.as_secs()))),
        }
    }

    /// The API for objects of `object`'s kind, in its namespace.
    pub fn api(&self, object: &Value) -> Api<DynamicObject> {
        let resource = manifest::resource(object);
        match manifest::namespace(object) {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Applies one object. Fields that others own and that it names are taken over.
    pub async fn apply(&self, object: &Value) -> Result<(), Failure> {
        self.api(object)
            .patch(
                manifest::name(object),
                &PatchParams::apply(FIELD_MANAGER).force(),
                &Patch::Apply(object),
            )
            .await
            .map(drop)
            .map_err(|err| Failure::kube(&format!("applying {}", manifest::title(object)), &err))
    }

    /// Deletes one object with its dependants. False where it wasn't there.
    pub async fn delete(&self, object: &Value) -> Result<bool, Failure> {
        match self
            .api(object)
            .delete(manifest::name(object), &DeleteParams::foreground())
            .await
        {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(err) => Err(Failure::kube(
                &format!("deleting {}", manifest::title(object)),
                &err,
            )),
        }
    }

    /// True where the object exists. A kind that the API server doesn't know has no objects.
    pub async fn exists(&self, object: &Value) -> Result<bool, Failure> {
        none_there(self.api(object).get_metadata_opt(manifest::name(object)).await)
            .map(|found| found.is_some())
            .map_err(|err| Failure::kube(&format!("reading {}", manifest::title(object)), &err))
    }

    /// Waits until none of `objects` exists any more.
    pub async fn gone(&self, objects: &[Value], deadline: Instant) -> Result<(), Failure> {
        for object in objects {
            wait::until(
                deadline,
                async || Ok((!self.exists(object).await?).then_some(())),
                || {
                    Failure::new(
                        Exit::TimedOut,
                        format!("{} is still being deleted", manifest::title(object)),
                    )
                    .fix("see what holds it: kubectl get -o yaml, metadata.finalizers and status")
                    .fix("run the same command again; it goes on where it stopped")
                },
            )
            .await?;
        }
        Ok(())
    }

    /// Waits until the API server serves every definition among `objects`.
    pub async fn established(&self, objects: &[Value], deadline: Instant) -> Result<(), Failure> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for object in objects
            .iter()
            .filter(|o| manifest::kind(o) == "CustomResourceDefinition")
        {
            let name = manifest::name(object);
            wait::until(
                deadline,
                async || {
                    let found = api
                        .get_opt(name)
                        .await
                        .map_err(|err| Failure::kube("reading definitions", &err))?;
                    let conditions = found
                        .and_then(|crd| crd.status)
                        .and_then(|s| s.conditions)
                        .unwrap_or_default();
                    Ok(conditions
                        .iter()
                        .any(|c| c.type_ == "Established" && c.status == "True")
                        .then_some(()))
                },
                || {
                    Failure::new(Exit::TimedOut, format!("the API server doesn't serve {name} yet")).fix(
                        format!("kubectl get crd {name} -o yaml names the reason under status.conditions"),
                    )
                },
            )
            .await?;
        }
        Ok(())
    }

    /// Name of the Helm release that made our Deployment `name`, if one did: it is Helm's to change then.
    pub async fn helm_release(&self, name: &str) -> Result<Option<String>, Failure> {
        let deployment = reference("apps/v1", "Deployment", Some(NAMESPACE), name);
        let found = none_there(self.api(&deployment).get_metadata_opt(name).await)
            .map_err(|err| Failure::kube(&format!("reading Deployment {name}"), &err))?;
        Ok(found
            .and_then(|d| d.metadata.annotations)
            .and_then(|mut annotations| annotations.remove("meta.helm.sh/release-name")))
    }

    /// Names of the API groups that the cluster serves. Everybody may ask that.
    pub async fn groups(&self) -> Result<Vec<String>, Failure> {
        let list = self
            .client
            .list_api_groups()
            .await
            .map_err(|err| Failure::kube("asking the API server what it serves", &err))?;
        Ok(list.groups.into_iter().map(|group| group.name).collect())
    }

    /// All objects of a typed kind; none where the cluster doesn't know the kind.
    pub async fn list<K>(&self, api: Api<K>, what: &str) -> Result<Vec<K>, Failure>
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(list.items),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(err) => Err(Failure::kube(&format!("listing {what}"), &err)),
        }
    }

    /// A typed object; `None` where it, or its kind, isn't there.
    pub async fn get<K>(&self, api: Api<K>, name: &str, what: &str) -> Result<Option<K>, Failure>
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        none_there(api.get_opt(name).await)
            .map_err(|err| Failure::kube(&format!("reading {what} {name}"), &err))
    }

    /// An API in Spillway's namespace.
    pub fn ours<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// What the running hub says about itself; `None` where it hasn't yet or isn't there.
    pub async fn hub_info(&self) -> Result<Option<HubInfo>, Failure> {
        let found: Option<ConfigMap> = self.get(self.ours(), "spillway-hub-info", "ConfigMap").await?;
        Ok(found.and_then(|map| HubInfo::read(&map)))
    }
}

/// Takes a kind that the API server doesn't know for an object that isn't there: kube does so only where
/// the answer is a Status.
fn none_there<T>(answer: kube::Result<Option<T>>) -> kube::Result<Option<T>> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        other => other,
    }
}

/// What a hub publishes for this program.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HubInfo {
    /// The hub's ID.
    pub hub_id: String,
    /// Where members reach it, as configured; may be empty.
    pub endpoints: Vec<String>,
    /// Pin of its CA.
    pub pin: String,
    /// While one CA follows another.
    pub rotation: Option<CaRotation>,
}

/// How far one CA of a hub has followed another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CaRotation {
    /// `Distributing` or `Retiring`.
    pub phase: String,
    /// Members that it waits for; the first ones, where there are many.
    pub waits_for: Vec<String>,
    /// How many these are.
    pub count: usize,
}

impl CaRotation {
    fn read(data: &BTreeMap<String, String>) -> Option<Self> {
        let phase = data.get("ca_rotation")?.clone();
        let list = data.get("ca_rotation_waits_for").map(String::as_str);
        let waits_for: Vec<_> = list
            .unwrap_or_default()
            .split(',')
            .filter(|n| !n.is_empty())
            .map(str::to_owned)
            .collect();
        let count = data
            .get("ca_rotation_waits_for_count")
            .and_then(|c| c.parse().ok());
        Some(Self {
            phase,
            count: count.unwrap_or(waits_for.len()),
            waits_for,
        })
    }

    /// What it does, in a few words.
    pub fn describe(&self) -> String {
        let what = match self.phase.as_str() {
            "Distributing" => "the next CA goes to all members",
            "Retiring" => "members change to certificates of the new CA",
            other => other,
        };
        match self.waits_for.as_slice() {
            [] => what.to_owned(),
            names if names.len() < self.count => {
                format!(
                    "{what}; missing: {} and {} more",
                    names.join(", "),
                    self.count - names.len()
                )
            }
            names => format!("{what}; missing: {}", names.join(", ")),
        }
    }
}

impl HubInfo {
    fn read(map: &ConfigMap) -> Option<Self> {
        let data = map.data.as_ref()?;
        let list = data.get("endpoints").map(String::as_str).unwrap_or_default();
        Some(Self {
            hub_id: data.get("hub_id").cloned().unwrap_or_default(),
            endpoints: list
                .split([',', '\n', ' '])
                .map(str::trim)
                .filter(|e| !e.is_empty())
                .map(str::to_owned)
                .collect(),
            pin: data.get("ca_pin").filter(|pin| !pin.is_empty())?.clone(),
            rotation: CaRotation::read(data),
        })
    }
}

/// A minimal object to name another by, for [`Cluster::delete`] and [`Cluster::exists`].
pub fn reference(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({"apiVersion": api_version, "kind": kind, "metadata": metadata})
}

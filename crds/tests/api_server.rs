//! A real API server takes the definitions, takes what it should and refuses what it should.
//!
//! Needs a cluster that may be changed, as `SPILLWAY_TEST_KUBECONFIG`; without one only the examples
//! themselves are checked. The definitions stay; no other object is made: every example is a dry run.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, Config, ResourceExt as _};
use serde::Deserialize;
use serde_json::Value;
use spillway_crds::export::{hub_crds, member_crds};
use spillway_crds::{hub, member};

/// An object, and what is wrong with it.
#[derive(Deserialize)]
struct Refused {
    what: String,
    says: String,
    object: Value,
}

fn accepted() -> Vec<Value> {
    serde_saphyr::from_multiple(include_str!("examples/accepted.yaml")).expect("accepted.yaml parses")
}

fn refused() -> Vec<Refused> {
    serde_saphyr::from_multiple(include_str!("examples/refused.yaml")).expect("refused.yaml parses")
}

#[test]
fn our_types_read_what_the_api_server_accepts() {
    for object in accepted() {
        let name = object["metadata"]["name"].clone();
        let read = match object["kind"].as_str() {
            Some("EgressGateway") => serde_json::from_value::<hub::EgressGateway>(object).map(drop),
            Some("FederatedEgressPolicy") => {
                serde_json::from_value::<hub::FederatedEgressPolicy>(object).map(drop)
            }
            Some("FederatedClusterEgressPolicy") => {
                serde_json::from_value::<hub::FederatedClusterEgressPolicy>(object).map(drop)
            }
            Some("Member") => serde_json::from_value::<hub::Member>(object).map(drop),
            Some("HubConnection") => serde_json::from_value::<member::HubConnection>(object).map(drop),
            other => panic!("no type for {other:?}"),
        };
        read.unwrap_or_else(|err| panic!("{name}: {err}"));
    }
}

#[tokio::test]
async fn the_api_server_takes_and_refuses_what_it_should() {
    // Each wrong object says what is wrong with it, with a cluster or without.
    for example in refused() {
        assert!(
            !example.says.is_empty() && example.object["kind"].is_string(),
            "{}",
            example.what
        );
    }
    let Some(path) = std::env::var_os("SPILLWAY_TEST_KUBECONFIG") else {
        eprintln!("no SPILLWAY_TEST_KUBECONFIG: the API server is not asked");
        return;
    };
    // Fails only where a provider is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(path).expect("the kubeconfig reads");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .expect("the kubeconfig is whole");
    let client = Client::try_from(config).expect("a client");

    install(&client).await;
    for object in accepted() {
        let (kind, name) = (object["kind"].clone(), object["metadata"]["name"].clone());
        create(&client, &object)
            .await
            .unwrap_or_else(|err| panic!("{kind} {name} was refused: {err}"));
    }
    for example in refused() {
        match create(&client, &example.object).await {
            Ok(()) => panic!("{} was accepted", example.what),
            Err(said) => assert!(
                said.contains(&example.says),
                "{}: expected {:?} in: {said}",
                example.what,
                example.says
            ),
        }
    }
}

/// Applies all definitions: the API server prices their rules and refuses those that may cost too much.
async fn install(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in hub_crds().into_iter().chain(member_crds()) {
        let name = crd.name_any();
        let parameters = PatchParams::apply("spillway-crds-test").force();
        api.patch(&name, &parameters, &Patch::Apply(&crd))
            .await
            .unwrap_or_else(|err| panic!("{name} was refused: {err}"));
        let established = await_condition(api.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(Duration::from_secs(30), established)
            .await
            .unwrap_or_else(|_| panic!("{name} isn't served"))
            .unwrap_or_else(|err| panic!("{name}: {err}"));
    }
}

async fn create(client: &Client, object: &Value) -> Result<(), String> {
    let (group, version) = object["apiVersion"]
        .as_str()
        .and_then(|v| v.split_once('/'))
        .expect("a group");
    let kind = object["kind"].as_str().expect("a kind");
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let parameters = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let object = serde_json::from_value(object.clone()).expect("an object");
    api.create(&parameters, &object)
        .await
        .map(drop)
        .map_err(|err| match err {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        })
}

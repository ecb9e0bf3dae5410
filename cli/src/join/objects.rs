//! What `join` adds to the chart's objects: the connection and the token.

use serde_json::{Value, json};
use spillway_crds::member::{HubConnection, HubConnectionSpec};
use spillway_crds::{NAMESPACE, SINGLETON};
use spillway_link::pki::Token;

use crate::args::Join;

/// Name of the Secret that carries the token to the member agent.
pub const TOKEN_SECRET: &str = "spillway-join-token";
/// Name of the Secret in which the agent keeps its key and certificate.
pub const IDENTITY_SECRET: &str = "spillway-member-identity";

/// The HubConnection that the agent acts on.
pub fn connection(join: &Join) -> Value {
    let object = HubConnection::new(
        SINGLETON,
        HubConnectionSpec {
            member: join.name.clone(),
            endpoints: join.endpoints.iter().map(ToString::to_string).collect(),
            ca_pin: join.pin.to_string(),
            leaving: false,
            // The owner's, who may have set them before joining again.
            ..HubConnectionSpec::default()
        },
    );
    let mut value = json!({
        "apiVersion": "member.spillway.io/v1alpha1",
        "kind": "HubConnection",
        "metadata": {"name": SINGLETON, "labels": {"app.kubernetes.io/part-of": "spillway"}},
    });
    // A spec of strings and a bool always serialises.
    value["spec"] = serde_json::to_value(&object.spec).unwrap_or_default();
    value
}

/// The Secret with the token. The agent deletes it once it is enrolled.
pub fn token_secret(token: &Token) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": TOKEN_SECRET,
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/part-of": "spillway"},
        },
        "type": "Opaque",
        "stringData": {"token": token.expose()},
    })
}

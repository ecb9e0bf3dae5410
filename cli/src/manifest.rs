//! The objects that the charts install, embedded as the charts render them by default.

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;

use crate::failure::{Exit, Failure};

const HUB: [&str; 2] = [
    include_str!("../../deploy/kustomize/hub/namespace.yaml"),
    include_str!("../../deploy/kustomize/hub/hub.yaml"),
];
const MEMBER: [&str; 2] = [
    include_str!("../../deploy/kustomize/member/namespace.yaml"),
    include_str!("../../deploy/kustomize/member/member.yaml"),
];

/// The hub's objects, in the order in which they are applied.
pub fn hub() -> Result<Vec<Value>, Failure> {
    parse(&HUB)
}

/// A member's objects, in the order in which they are applied.
pub fn member() -> Result<Vec<Value>, Failure> {
    parse(&MEMBER)
}

fn parse(streams: &[&str]) -> Result<Vec<Value>, Failure> {
    let mut objects = Vec::new();
    for stream in streams {
        let found: Vec<Value> = serde_saphyr::from_multiple(stream)
            .map_err(|err| Failure::new(Exit::Other, format!("the embedded manifests don't parse: {err}")))?;
        objects.extend(found.into_iter().filter(|object| !object.is_null()));
    }
    objects.sort_by_key(order);
    Ok(objects)
}

/// What others need comes first; workloads come last.
fn order(object: &Value) -> u8 {
    match kind(object) {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        "ServiceAccount" | "ClusterRole" | "Role" => 2,
        "ClusterRoleBinding" | "RoleBinding" => 3,
        "ValidatingAdmissionPolicy" => 4,
        "ValidatingAdmissionPolicyBinding" | "Service" | "PodDisruptionBudget" => 5,
        _ => 6,
    }
}

/// `.kind`.
pub fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

/// `.metadata.name`.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// `.metadata.namespace`.
pub fn namespace(object: &Value) -> Option<&str> {
    object["metadata"]["namespace"].as_str()
}

/// `Kind namespace/name`, for people.
pub fn title(object: &Value) -> String {
    match namespace(object) {
        Some(namespace) => format!("{} {namespace}/{}", kind(object), name(object)),
        None => format!("{} {}", kind(object), name(object)),
    }
}

/// The titles of `objects`, one a line.
pub fn titles(objects: &[Value]) -> String {
    let mut lines: Vec<String> = objects.iter().map(title).collect();
    lines.push(String::new());
    lines.join("\n")
}

/// How the API server calls the object's kind. All kinds here have regular plurals.
pub fn resource(object: &Value) -> ApiResource {
    let (group, version) = match object["apiVersion"].as_str().unwrap_or_default().split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", object["apiVersion"].as_str().unwrap_or_default()),
    };
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind(object)))
}

/// The object in kube's own shape.
pub fn dynamic(object: &Value) -> Result<DynamicObject, Failure> {
    serde_json::from_value(object.clone()).map_err(|err| {
        Failure::new(
            Exit::Other,
            format!("{} is no Kubernetes object: {err}", title(object)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_a_kind_and_a_name_and_definitions_come_before_what_uses_them() {
        for objects in [hub().expect("parses"), member().expect("parses")] {
            assert!(objects.len() > 10);
            for object in &objects {
                assert!(!kind(object).is_empty() && !name(object).is_empty(), "{object}");
            }
            let at = |wanted| objects.iter().position(|o| kind(o) == wanted).expect(wanted);
            assert_eq!(at("Namespace"), 0);
            assert!(at("CustomResourceDefinition") < at("Deployment"));
            assert!(at("ServiceAccount") < at("Deployment"));
        }
    }

    #[test]
    fn plurals_are_those_of_the_api() {
        let plurals: std::collections::BTreeSet<String> = hub()
            .expect("parses")
            .iter()
            .chain(&member().expect("parses"))
            .map(|object| resource(object).plural)
            .collect();
        assert_eq!(
            plurals.iter().map(String::as_str).collect::<Vec<_>>(),
            [
                "clusterrolebindings",
                "clusterroles",
                "customresourcedefinitions",
                "daemonsets",
                "deployments",
                "namespaces",
                "poddisruptionbudgets",
                "rolebindings",
                "roles",
                "serviceaccounts",
                "services",
                "validatingadmissionpolicies",
                "validatingadmissionpolicybindings",
            ]
        );
    }
}

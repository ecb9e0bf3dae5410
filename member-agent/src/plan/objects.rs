//! A planned resource as an object and back.

use kube::api::{ApiResource, DynamicObject};
use kube::{Resource as _, ResourceExt as _};
use serde::Serialize;
use serde_json::{Value, json};
use spillway_core::plan::{Digest, Resource, ResourceKey, ResourceKind};
use spillway_crds::member::{
    EgressPlan, EgressPlanSpec, PlannedGateway, PlannedMember, PlannedPeer, PlannedPolicy,
};
use spillway_crds::{DIGEST_ANNOTATION, SINGLETON};

/// The API of a kind of resource.
pub(crate) fn api_resource(kind: ResourceKind) -> ApiResource {
    match kind {
        ResourceKind::Member => ApiResource::erase::<PlannedMember>(&()),
        ResourceKind::Peer => ApiResource::erase::<PlannedPeer>(&()),
        ResourceKind::Gateway => ApiResource::erase::<PlannedGateway>(&()),
        ResourceKind::Policy => ApiResource::erase::<PlannedPolicy>(&()),
    }
}

/// All kinds, in the order in which they are written.
pub(crate) const KINDS: [ResourceKind; 4] = [
    ResourceKind::Member,
    ResourceKind::Peer,
    ResourceKind::Gateway,
    ResourceKind::Policy,
];

/// The object that holds a resource, as it is applied.
pub(crate) fn object(key: &ResourceKey, resource: &Resource, digest: &Digest) -> Value {
    fn with<S: Serialize>(key: &ResourceKey, digest: &Digest, spec: &S) -> Value {
        let kind = api_resource(key.kind);
        json!({
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {
                "name": key.name,
                "annotations": { DIGEST_ANNOTATION: digest.to_string() },
            },
            "spec": spec,
        })
    }
    match resource {
        Resource::Member(s) => with(key, digest, s),
        Resource::Peer(s) => with(key, digest, s),
        Resource::Gateway(s) => with(key, digest, s),
        Resource::Policy(s) => with(key, digest, s),
    }
}

/// The plan's head, as it is applied.
pub(crate) fn head(spec: &EgressPlanSpec) -> Value {
    json!({
        "apiVersion": EgressPlan::api_version(&()),
        "kind": EgressPlan::kind(&()),
        "metadata": { "name": SINGLETON },
        "spec": spec,
    })
}

/// What an object holds: the digest in its annotation, and the resource where this build can read it. An
/// object without a proper annotation has the all-zeros digest, which no content has.
pub(crate) fn read(kind: ResourceKind, object: &DynamicObject) -> (ResourceKey, Digest, Option<Resource>) {
    let key = ResourceKey {
        kind,
        name: object.name_any(),
    };
    let digest = object
        .annotations()
        .get(DIGEST_ANNOTATION)
        .and_then(|d| d.parse().ok())
        .unwrap_or_default();
    let resource = object
        .data
        .get("spec")
        .and_then(|spec| serde_json::to_vec(spec).ok())
        .and_then(|bytes| Resource::decode(&key, &bytes).ok());
    (key, digest, resource)
}

#[cfg(test)]
mod tests {
    use spillway_core::plan::Plan;
    use spillway_crds::member::{PlannedGatewaySpec, PlannedMemberSpec, PlannedPeerSpec, PlannedPolicySpec};

    use super::*;

    #[test]
    fn an_object_holds_its_resource_and_its_digest() {
        let plan = Plan::new([
            Resource::Member(PlannedMemberSpec::default()),
            Resource::Peer(PlannedPeerSpec {
                member: "fra".into(),
                ..PlannedPeerSpec::default()
            }),
            Resource::Gateway(PlannedGatewaySpec {
                gateway: "g".into(),
                ..PlannedGatewaySpec::default()
            }),
            Resource::Policy(PlannedPolicySpec::default()),
        ]);
        for (key, resource, digest) in plan.resources() {
            let object: DynamicObject =
                serde_json::from_value(object(key, resource, digest)).expect("an object");
            assert_eq!(
                read(key.kind, &object),
                (key.clone(), *digest, Some(resource.clone()))
            );
        }
    }

    #[test]
    fn an_object_without_annotation_has_a_digest_that_nothing_has() {
        let mut object = DynamicObject::new("x", &api_resource(ResourceKind::Peer));
        object.data = json!({ "spec": { "nodes": 3 } });
        let (key, digest, resource) = read(ResourceKind::Peer, &object);
        assert_eq!(key.to_string(), "peer/x");
        assert_eq!(digest, Digest::default());
        assert_eq!(resource, None);
    }
}

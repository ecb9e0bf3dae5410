//! Checks before anything is changed: rights, and an earlier join.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use serde_json::Value;
use spillway_crds::condition::{self, ConditionType};
use spillway_crds::member::HubConnection;
use spillway_crds::{NAMESPACE, SINGLETON};

use crate::args::Join;
use crate::cluster::{Cluster, reference};
use crate::failure::{Exit, Failure};
use crate::join::objects::TOKEN_SECRET;
use crate::manifest;

/// What an apply asks of the API server.
const VERBS: [&str; 2] = ["create", "patch"];

/// `objects` and what join adds to them.
pub fn all_of(objects: &[Value]) -> Vec<Value> {
    let mut all = objects.to_vec();
    all.push(reference("v1", "Secret", Some(NAMESPACE), TOKEN_SECRET));
    all.push(reference(
        "member.spillway.io/v1alpha1",
        "HubConnection",
        None,
        SINGLETON,
    ));
    all
}

/// A right that an apply needs.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Right {
    group: String,
    resource: String,
    namespace: Option<String>,
    verb: &'static str,
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}

/// The rights that applying `objects` needs, each once.
fn needed(objects: &[Value]) -> Vec<Right> {
    let mut rights = BTreeSet::new();
    for object in objects {
        let resource = manifest::resource(object);
        for verb in VERBS {
            rights.insert(Right {
                group: resource.group.clone(),
                resource: resource.plural.clone(),
                namespace: manifest::namespace(object).map(str::to_owned),
                verb,
            });
        }
    }
    rights.into_iter().collect()
}

/// Fails with the list of rights that applying `objects` needs and the user lacks.
pub async fn rights(cluster: &Cluster, objects: &[Value]) -> Result<(), Failure> {
    let answers: Vec<Result<Option<Right>, Failure>> = stream::iter(needed(objects))
        .map(|right| async move { Ok((!allowed(cluster, &right).await?).then_some(right)) })
        .buffer_unordered(8)
        .collect()
        .await;
    let mut missing: Vec<Right> = Vec::new();
    for answer in answers {
        missing.extend(answer?);
    }
    missing.sort();
    match missing.as_slice() {
        [] => Ok(()),
        some => Err(lacking(cluster, some)),
    }
}

fn lacking(cluster: &Cluster, missing: &[Right]) -> Failure {
    let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Failure::new(
        Exit::Rights,
        format!("the user of {} lacks {} rights; nothing was changed. Missing:\n    {}", cluster.name, list.len(), list.join("\n    ")),
    )
    .fix("use a kubeconfig whose user may do this, such as a cluster administrator's (--kubeconfig, --context)")
    .fix("or print the objects with --dry-run and have an administrator apply them")
}

async fn allowed(cluster: &Cluster, right: &Right) -> Result<bool, Failure> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(right.group.clone()),
                resource: Some(right.resource.clone()),
                namespace: right.namespace.clone(),
                verb: Some(right.verb.into()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = Api::<SelfSubjectAccessReview>::all(cluster.client.clone())
        .create(&PostParams::default(), &review)
        .await
        .map_err(|err| Failure::kube("asking the API server for the user's rights", &err))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Fails where the cluster is a member already, or is leaving. A join that didn't get as far as enrolment
/// may be repeated; its connection is returned.
pub async fn not_joined(cluster: &Cluster, join: &Join) -> Result<Option<HubConnection>, Failure> {
    let api: Api<HubConnection> = Api::all(cluster.client.clone());
    let found = cluster.get(api, SINGLETON, "HubConnection").await?;
    if let Some(found) = &found {
        earlier(found, join)?;
    }
    Ok(found)
}

fn earlier(found: &HubConnection, join: &Join) -> Result<(), Failure> {
    let conditions = found
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    if found.spec.leaving {
        return Err(Failure::new(
            Exit::AlreadyJoined,
            format!("the cluster is leaving (it was {})", found.spec.member),
        )
        .fix("let it finish, then join again: spillway leave"));
    }
    if !condition::holds(conditions, ConditionType::Enrolled) {
        return Ok(());
    }
    let hub = found.spec.endpoints.join(", ");
    let what = if found.spec.member == join.name && found.spec.ca_pin == join.pin.to_string() {
        format!(
            "the cluster has already joined this hub as {}; the token was not used",
            join.name
        )
    } else {
        format!(
            "the cluster has already joined the hub at {hub} as {}; the token was not used",
            found.spec.member
        )
    };
    Err(Failure::new(Exit::AlreadyJoined, what)
        .fix("see how it does: spillway status")
        .fix("to move it to another hub or name, take it out first: spillway leave")
        .fix("if that hub doesn't accept it any more, as status then says: spillway leave --force, then join again"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::join::tests::join;
    use crate::values::MemberValues;

    #[test]
    fn every_object_asks_for_its_rights_once() {
        let objects = all_of(&MemberValues::default().render().expect("renders"));
        let rights: Vec<String> = needed(&objects).iter().map(ToString::to_string).collect();
        for right in [
            "create customresourcedefinitions.apiextensions.k8s.io",
            "patch daemonsets.apps in namespace spillway-system",
            "create secrets in namespace spillway-system",
            "create hubconnections.member.spillway.io",
            "patch roles.rbac.authorization.k8s.io in namespace default",
        ] {
            assert!(rights.contains(&right.to_owned()), "{right} in {rights:#?}");
        }
        assert_eq!(rights.len(), rights.iter().collect::<BTreeSet<_>>().len());
    }

    fn found(member: &str, leaving: bool, enrolled: &str) -> HubConnection {
        serde_json::from_value(json!({
            "apiVersion": "member.spillway.io/v1alpha1", "kind": "HubConnection", "metadata": {"name": "current"},
            "spec": {"member": member, "endpoints": ["hub:1"], "caPin": format!("sha256:{}", "ab".repeat(32)), "leaving": leaving},
            "status": {"conditions": [{"type": "Enrolled", "status": enrolled, "reason": "X", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }))
        .expect("a connection")
    }

    #[test]
    fn only_an_enrolled_or_leaving_cluster_refuses() {
        assert!(earlier(&found("fra-1", false, "False"), &join()).is_ok());
        let same = earlier(&found("fra-1", false, "True"), &join()).expect_err("joined");
        assert!(
            same.exit == Exit::AlreadyJoined && same.what.contains("this hub as fra-1"),
            "{same}"
        );
        let other = earlier(&found("ber-1", false, "True"), &join()).expect_err("joined");
        assert!(other.what.contains("as ber-1"), "{other}");
        let leaving = earlier(&found("fra-1", true, "True"), &join()).expect_err("leaving");
        assert!(leaving.what.contains("leaving"), "{leaving}");
    }
}

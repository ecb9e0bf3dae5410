//! `spillway version`.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Api;
use serde::Serialize;
use spillway_crds::hub::Member;
use spillway_crds::member::EgressNode;

use crate::args::{Target, Version};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::output;

/// All versions there are to see from here.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
struct Versions {
    client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hub: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    members: BTreeMap<String, String>,
    #[serde(rename = "memberAgent", skip_serializing_if = "Option::is_none")]
    member_agent: Option<String>,
    #[serde(rename = "nodeAgents", skip_serializing_if = "BTreeMap::is_empty")]
    node_agents: BTreeMap<String, String>,
}

/// Prints this program's version and, where a cluster answers, those of what runs there.
pub async fn run(target: &Target, version: &Version) -> Result<(), Failure> {
    let mut versions = Versions {
        client: env!("CARGO_PKG_VERSION").into(),
        ..Versions::default()
    };
    if !version.client {
        let cluster = Cluster::connect(target)
            .await
            .map_err(|f| f.fix("this program's version alone: --client"))?;
        ask(&cluster, &mut versions).await?;
    }
    match version.output {
        Some(format) => output::print(&output::text(&versions, format)?),
        None => output::print(&text(&versions)),
    }
}

async fn ask(cluster: &Cluster, versions: &mut Versions) -> Result<(), Failure> {
    versions.hub = image_tag(cluster, "spillway-hub").await?;
    versions.member_agent = image_tag(cluster, "spillway-member-agent").await?;
    let members = cluster
        .list(Api::<Member>::all(cluster.client.clone()), "members")
        .await?;
    versions.members = members
        .into_iter()
        .filter_map(|m| Some((m.metadata.name?, m.status?.agent_version?)))
        .collect();
    let nodes = cluster
        .list(Api::<EgressNode>::all(cluster.client.clone()), "EgressNodes")
        .await?;
    versions.node_agents = nodes
        .into_iter()
        .filter_map(|n| Some((n.metadata.name?, n.status?.agent_version?)))
        .collect();
    Ok(())
}

/// Tag of the image that a Deployment of ours asks for.
pub(crate) async fn image_tag(cluster: &Cluster, deployment: &str) -> Result<Option<String>, Failure> {
    let found: Option<Deployment> = cluster.get(cluster.ours(), deployment, "Deployment").await?;
    Ok(found
        .and_then(|d| d.spec)
        .and_then(|s| s.template.spec)
        .and_then(|s| s.containers.into_iter().next())
        .and_then(|c| c.image)
        .map(|image| {
            image
                .rsplit_once(':')
                .map_or(image.clone(), |(_, tag)| tag.to_owned())
        }))
}

fn text(versions: &Versions) -> String {
    let mut rows = vec![vec!["spillway".to_owned(), versions.client.clone()]];
    rows.extend(versions.hub.iter().map(|v| vec!["hub".into(), v.clone()]));
    rows.extend(
        versions
            .members
            .iter()
            .map(|(name, v)| vec![format!("member {name}"), v.clone()]),
    );
    rows.extend(
        versions
            .member_agent
            .iter()
            .map(|v| vec!["member agent".into(), v.clone()]),
    );
    rows.extend(
        versions
            .node_agents
            .iter()
            .map(|(name, v)| vec![format!("node agent {name}"), v.clone()]),
    );
    output::table(&["WHAT", "VERSION"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_is_a_line() {
        let versions = Versions {
            client: "0.1.0".into(),
            hub: Some("0.1.0".into()),
            members: BTreeMap::from([("fra-1".into(), "0.0.9".into())]),
            ..Versions::default()
        };
        insta::assert_snapshot!(text(&versions));
    }
}

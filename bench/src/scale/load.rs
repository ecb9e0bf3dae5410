//! What a federation of that size has: tokens, gateways, policies, and changes to them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use spillway_crds::export::hub_crds;
use spillway_crds::hub::{EgressGateway, FederatedClusterEgressPolicy, Member as Recorded};
use spillway_e2e::eventually;
use spillway_link::pki::Token;

use super::member::Member;

/// Members of a group: a policy is for one group.
const GROUP: usize = 10;
/// Policies a group.
const POLICIES: usize = 20;
/// The policy that is for all.
const ALL: &str = "all";
/// The gateway that all use.
const GATEWAY: &str = "gw-0";

fn object<K: serde::de::DeserializeOwned>(value: Value) -> Result<K> {
    Ok(serde_json::from_value(value)?)
}

/// What a hub finds in its cluster: its definitions and its namespace.
pub(crate) async fn prepare(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in hub_crds() {
        let name = crd.name_any();
        let parameters = PatchParams::apply("spillway-bench").force();
        api.patch(&name, &parameters, &Patch::Apply(&crd)).await?;
        let established = await_condition(api.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(Duration::from_secs(30), established)
            .await
            .with_context(|| format!("{name} isn't served"))??;
    }
    let namespace: Namespace = object(json!({"metadata": {"name": spillway_crds::NAMESPACE}}))?;
    Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await?;
    Ok(())
}

pub(crate) struct Load {
    client: Client,
    members: usize,
}

impl Load {
    pub(crate) fn of(client: &Client, members: usize) -> Self {
        Self {
            client: client.clone(),
            members,
        }
    }

    fn groups(&self) -> usize {
        self.members.div_ceil(GROUP)
    }

    pub(crate) fn policies(&self) -> usize {
        self.groups() * POLICIES + 1 + self.members
    }

    /// A name, and a token for it.
    pub(crate) async fn token(&self, number: usize) -> Result<(String, Token)> {
        let name = format!("m{number}");
        let token = Token::generate();
        let expires = Timestamp::now() + SignedDuration::from_mins(60);
        let labels = json!({"name": name, "group": format!("g{}", number / GROUP)});
        let secret: Secret = object(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": format!("spillway-token-{}", token.id()), "labels": {"spillway.io/join-token": "true"}},
            "stringData": {
                "hash": token.hash().to_string(), "member": name, "expires": expires.to_string(),
                "labels": labels.to_string(), "partition": "default",
            },
        }))?;
        let api: Api<Secret> = Api::namespaced(self.client.clone(), spillway_crds::NAMESPACE);
        api.create(&PostParams::default(), &secret).await?;
        Ok((name, token))
    }

    /// Gateways, one a group, on its first member; policies of each group; one for all; one for each.
    pub(crate) async fn create(&self) -> Result<()> {
        let gateways: Api<EgressGateway> = Api::all(self.client.clone());
        for group in 0..self.groups() {
            let pool = format!("198.{}.{}.0/24", 18 + group / 256, group % 256);
            let gateway = object(json!({
                "apiVersion": "spillway.io/v1alpha1", "kind": "EgressGateway", "metadata": {"name": format!("gw-{group}")},
                "spec": {"nodes": [{"member": format!("m{}", group * GROUP)}], "addresses": {"ipv4": [pool]}},
            }))?;
            gateways.create(&PostParams::default(), &gateway).await?;
        }
        for group in 0..self.groups() {
            for policy in 0..POLICIES {
                let selector = json!({"group": format!("g{group}")});
                let name = format!("p-{group}-{policy}");
                self.policy(&name, &selector, &format!("gw-{group}"), policy)
                    .await?;
            }
        }
        for number in 0..self.members {
            let selector = json!({"name": format!("m{number}")});
            self.policy(&format!("of-m{number}"), &selector, GATEWAY, 200)
                .await?;
        }
        self.policy(ALL, &json!({}), GATEWAY, 201).await
    }

    async fn policy(&self, name: &str, members: &Value, gateway: &str, number: usize) -> Result<()> {
        let api: Api<FederatedClusterEgressPolicy> = Api::all(self.client.clone());
        let policy = object(json!({
            "apiVersion": "spillway.io/v1alpha1", "kind": "FederatedClusterEgressPolicy", "metadata": {"name": name},
            "spec": {
                "members": {"matchLabels": members}, "pods": {"matchLabels": {"app": name}},
                "to": {"cidrs": [format!("192.0.2.{}/32", number % 256)]}, "through": [{"gateway": gateway}],
            },
        }))?;
        api.create(&PostParams::default(), &policy).await?;
        Ok(())
    }

    async fn change(&self, policy: &str, change: usize) -> Result<()> {
        let api: Api<FederatedClusterEgressPolicy> = Api::all(self.client.clone());
        let patch = json!({"spec": {"to": {"cidrs": [format!("203.0.113.{}/32", change % 256)]}}});
        api.patch(policy, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    /// A change of which every member must hear.
    pub(crate) async fn change_all(&self, change: usize) -> Result<()> {
        self.change(ALL, change).await
    }

    /// One of which only this member must.
    pub(crate) async fn change_one(&self, member: &str, change: usize) -> Result<()> {
        self.change(&format!("of-{member}"), change).await
    }

    /// Waits until the hub says of every member that it is there with the plan that it holds.
    pub(crate) async fn all_acknowledged(&self, all: &[Member], limit: Duration) -> Result<()> {
        let api: Api<Recorded> = Api::all(self.client.clone());
        eventually(limit, "the hub knows what all hold", || async {
            for recorded in api.list(&kube::api::ListParams::default()).await? {
                let member = all.iter().find(|m| m.name() == recorded.name_any());
                let holds = member.and_then(Member::holds).map(|d| d.to_string());
                let said = recorded.status.and_then(|s| s.plan.acknowledged);
                ensure!(holds == said, "not of a member");
            }
            Ok(())
        })
        .await
    }
}

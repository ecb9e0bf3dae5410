//! A story: one scenario's namespace, policies and pods in every cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use spillway_crds::hub::FederatedEgressPolicy;

use super::traffic::StoryPod;
use super::{Federation, PATIENCE};
use crate::scenario::{PodRequest, eventually};

/// How many pods are made in search of one with a wanted address.
const SEARCH: usize = 300;

/// One scenario's part of the federation.
pub struct Story<'a> {
    federation: &'a Federation,
    namespace: String,
    pods: Mutex<BTreeMap<(String, String), StoryPod<'a>>>,
}

impl Federation {
    /// Begins a story: a namespace of that name on the hub and in both members.
    pub async fn story(&self, namespace: &str) -> Result<Story<'_>> {
        for cluster in self.clusters.values() {
            // Of an earlier run that failed on an arena that stays.
            cluster
                .kubectl(&["delete", "namespace", namespace, "--ignore-not-found"])
                .await?;
            cluster.namespace(namespace, &[]).await?;
        }
        Ok(Story {
            federation: self,
            namespace: namespace.into(),
            pods: Mutex::default(),
        })
    }
}

impl<'a> Story<'a> {
    pub(super) fn federation(&self) -> &'a Federation {
        self.federation
    }

    /// The story's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Ends the story: its namespaces go, and its pods and policies with them. Returns when they are
    /// gone, so that the next story finds kernels at rest.
    pub async fn end(self) -> Result<()> {
        let args = ["delete", "namespace", &self.namespace, "--timeout=60s"];
        let deletions = self
            .federation
            .clusters
            .values()
            .map(|cluster| cluster.kubectl(&args));
        futures::future::try_join_all(deletions).await.map(drop)
    }

    /// A pod on the member's first node, which is never a gateway. Ready when this returns.
    pub async fn pod(&self, member: &str, name: &str, label: &str) -> Result<StoryPod<'a>> {
        self.pod_on(member, name, label, &format!("{member}-n1")).await
    }

    /// A pod on a node.
    pub async fn pod_on(&self, member: &str, name: &str, label: &str, node: &str) -> Result<StoryPod<'a>> {
        let (key, value) = label.split_once('=').context("a label is key=value")?;
        let request = PodRequest::new(&self.namespace, name).label(key, value).on(node);
        let pod = self.federation.cluster(member)?.create_pod(&request).await?;
        let pod = StoryPod::new(self.federation, member, pod)?;
        self.pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((member.into(), name.into()), pod.clone());
        Ok(pod)
    }

    /// A pod made before.
    pub fn pod_named(&self, member: &str, name: &str) -> Result<StoryPod<'a>> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.get(&(member.to_owned(), name.to_owned()))
            .cloned()
            .with_context(|| format!("no pod {name} in {member}"))
    }

    /// One pod in each member, both with the very same address.
    pub async fn pods_with_equal_address(&self, label: &str) -> Result<(StoryPod<'a>, StoryPod<'a>)> {
        let (mut in_a, mut in_b) = (Vec::new(), Vec::new());
        for n in 0..SEARCH {
            let name = format!("twin-{n}");
            let (a, b) = futures::join!(
                Box::pin(self.pod("a", &name, label)),
                Box::pin(self.pod("b", &name, label))
            );
            in_a.push(a?);
            in_b.push(b?);
            let pair = in_a.iter().find_map(|a| {
                in_b.iter()
                    .find(|b| b.ip() == a.ip())
                    .map(|b| (a.clone(), b.clone()))
            });
            if let Some(pair) = pair {
                return Ok(pair);
            }
        }
        bail!("no two pods got the same address")
    }

    /// A pod on a node with a given address: pods are made until the CNI's allocator comes round to it.
    pub async fn pod_with_address(
        &self,
        member: &str,
        name: &str,
        label: &str,
        node: &str,
        address: IpAddr,
    ) -> Result<StoryPod<'a>> {
        self.federation.next_address(node, address).await?;
        let pod = self.pod_on(member, name, label, node).await?;
        if pod.ip() == address {
            return Ok(pod);
        }
        for n in 0..SEARCH {
            let pod = self.pod_on(member, &format!("{name}-{n}"), label, node).await?;
            if pod.ip() == address {
                return Ok(pod);
            }
            pod.delete().await?;
        }
        bail!("no pod got {address}")
    }

    /// Writes the story's usual policy, or edits it.
    pub async fn policy(
        &self,
        name: &str,
        label: &str,
        to: &str,
        gateway: &str,
        egress_ip: &str,
    ) -> Result<()> {
        let label = label.replace('=', ": ");
        self.apply(&format!(
            "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: {name}}}
spec:
  pods: {{matchLabels: {{{label}}}}}
  to: {{cidrs: [{to}]}}
  through: [{{gateway: {gateway}, egressIP: {{ipv4: {egress_ip}}}}}]
"
        ))
        .await
    }

    /// Changes gateway frankfurt's egress IP in the usual policy, with a single request to the API server.
    pub async fn set_egress_ip(&self, policy: &str, egress_ip: &str) -> Result<()> {
        let api: Api<FederatedEgressPolicy> =
            Api::namespaced(self.federation.cluster("hub")?.client(), &self.namespace);
        let through = json!([{"gateway": "frankfurt", "egressIP": {"ipv4": egress_ip}}]);
        let patch = Patch::Merge(json!({"spec": {"through": through}}));
        api.patch(policy, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Applies objects in the story's namespace on the hub.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        let hub = self.federation.cluster("hub")?;
        let args = [
            "-n",
            &self.namespace,
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            "-",
        ];
        hub.kubectl_with_input(&args, yaml).await.map(drop)
    }

    /// Deletes a policy.
    pub async fn delete_policy(&self, name: &str) -> Result<()> {
        self.federation
            .hub()
            .kubectl(&["-n", &self.namespace, "delete", "federatedegresspolicy", name])
            .await
            .map(drop)
    }

    /// Waits until the policy's `Programmed` condition holds for its newest generation.
    pub async fn programmed(&self, policy: &str) -> Result<()> {
        self.says(
            "federatedegresspolicy",
            policy,
            ("Programmed", "True", "Programmed"),
            "",
        )
        .await
    }

    /// Waits until `Accepted` is false with this reason and a message that holds `word`.
    pub async fn not_accepted(&self, kind: &str, name: &str, reason: &str, word: &str) -> Result<()> {
        self.says(kind, name, ("Accepted", "False", reason), word).await
    }

    /// Waits until an object of the hub has a condition (type, status, reason) that speaks of its newest
    /// generation, with a message that holds `word`.
    pub async fn says(
        &self,
        kind: &str,
        name: &str,
        (condition, status, reason): (&str, &str, &str),
        word: &str,
    ) -> Result<()> {
        let what = format!("{kind} {name} is {condition}={status}, {reason}");
        eventually(PATIENCE, &what, || async {
            let object = self
                .federation
                .hub_object(&[kind, "-n", &self.namespace, name])
                .await?;
            let conditions = object["status"]["conditions"].as_array();
            let found = conditions
                .and_then(|all| all.iter().find(|c| c["type"] == condition))
                .with_context(|| format!("no condition {condition}"))?;
            ensure!(
                found["status"] == status
                    && found["reason"] == reason
                    && found["message"].as_str().is_some_and(|m| m.contains(word)),
                "{found}"
            );
            ensure!(
                found["observedGeneration"] == object["metadata"]["generation"],
                "an older generation: {found}"
            );
            Ok(())
        })
        .await
    }
}

//! A member finds out by itself which ranges are its cluster's.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE};
use spillway_e2e::scenario::eventually;

const MEMBER: &str = "b";
const NODE: &str = "b-n1";
const CALICO: &str = "ippools.crd.projectcalico.org";
const FLANNEL: &str = "configmaps/kube-flannel/kube-flannel-cfg";
const KUBEADM: &str = "configmaps/kube-system/kubeadm-config";

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ippools.crd.projectcalico.org}
spec:
  group: crd.projectcalico.org
  scope: Cluster
  names: {plural: ippools, singular: ippool, kind: IPPool, listKind: IPPoolList}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

fn pool(name: &str, cidr: &str) -> String {
    format!(
        "{{apiVersion: crd.projectcalico.org/v1, kind: IPPool, metadata: {{name: {name}}}, spec: {{cidr: '{cidr}', vxlanMode: Always}}}}"
    )
}

fn net_conf(network: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: kube-flannel-cfg, namespace: kube-flannel}}, data: {{net-conf.json: \
         '{{\"Network\": \"{network}\", \"Backend\": {{\"Type\": \"vxlan\"}}}}'}}}}"
    )
}

const RECORD: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: kubeadm-config, namespace: kube-system}
data:
  ClusterConfiguration: |
    apiVersion: kubeadm.k8s.io/v1beta4
    kind: ClusterConfiguration
    networking: {dnsDomain: cluster.local, podSubnet: '10.77.0.0/16', serviceSubnet: 10.78.0.0/16}
";

/// Where pods of the node get their addresses from: another range than its `spec.podCIDRs`, as with Calico or Weave,
/// and back. Both on a bridge of their own.
const OTHER_RANGE: &str = r"sed -i 's/10\.244\.0\.0/10.99.1.0/g; s/fd00:10:244:/fd00:10:99:/g; s/cni0/cni1/' /etc/cni/net.d/10-arena.conflist
                            grep -q 10.99.1.0 /etc/cni/net.d/10-arena.conflist";
const OWN_RANGE: &str = r"sed -i 's/10\.99\.1\.0/10.244.0.0/g; s/fd00:10:99:/fd00:10:244:/g; s/cni1/cni0/' /etc/cni/net.d/10-arena.conflist
                          ip link del cni1";

/// Calico's pools, Flannel's and kubeadm's ConfigMaps appear, change and go, and so do their ranges, in the object and
/// in the kernel. A pool for everything isn't believed. A pod outside of all ranges is named until a source has its.
pub(crate) async fn cluster_ranges_are_found_followed_and_missed(fed: &Federation) -> Result<()> {
    let story = fed.story("ranges").await?;
    let cluster = fed.cluster(MEMBER)?;
    let eip = "203.0.113.16";
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", eip)
        .await?;
    let pod = story.pod(MEMBER, "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(eip)).await?;
    // A cluster that kubeadm made has its record.
    let record = cluster
        .kubectl(&[
            "-n",
            "kube-system",
            "get",
            "configmap",
            "kubeadm-config",
            "-o",
            "json",
            "--ignore-not-found",
        ])
        .await?;
    let before = network(fed).await?;
    ensure!(
        given(&before, CALICO).is_empty() && before["status"]["conditions"][0]["status"] == "True",
        "{before}"
    );

    cluster.apply(DEFINITION).await?;
    cluster
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            &format!("crd/{CALICO}"),
            "--timeout=30s",
        ])
        .await?;
    cluster.apply(&pool("one", "10.71.0.0/16")).await?;
    cluster.apply(&pool("two", "fd00:71::/64")).await?;
    cluster.namespace("kube-flannel", &[]).await?;
    cluster.apply(&net_conf("10.73.0.0/16")).await?;
    cluster.apply(RECORD).await?;
    gives(fed, CALICO, &["10.71.0.0/16", "fd00:71::/64"]).await?;
    gives(fed, FLANNEL, &["10.73.0.0/16"]).await?;
    gives(fed, KUBEADM, &["10.77.0.0/16", "10.78.0.0/16"]).await?;
    kernel(
        fed,
        &[
            "10.71.0.0/16",
            "fd00:71::/64",
            "10.73.0.0/16",
            "10.77.0.0-10.78.255.255",
        ],
        &[],
    )
    .await?;

    cluster.apply(&pool("one", "10.81.0.0/16")).await?;
    cluster.apply(&net_conf("10.83.0.0/16")).await?;
    cluster.kubectl(&["delete", "ippool", "two"]).await?;
    gives(fed, CALICO, &["10.81.0.0/16"]).await?;
    gives(fed, FLANNEL, &["10.83.0.0/16"]).await?;
    kernel(
        fed,
        &["10.81.0.0/16", "10.83.0.0/16"],
        &["10.71.0.0/16", "fd00:71::/64", "10.73.0.0/16"],
    )
    .await?;

    cluster.apply(&pool("all", "0.0.0.0/0")).await?;
    says(fed, "SourceFaulty", &[CALICO, "IPPool all", "0.0.0.0/0"]).await?;
    kernel(fed, &["10.81.0.0/16"], &["0.0.0.0/0"]).await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(eip)).await?;
    cluster.kubectl(&["delete", "ippool", "all"]).await?;
    says(fed, "Complete", &[]).await?;

    run(fed, OTHER_RANGE).await?;
    let stray = story.pod(MEMBER, "stray", "app=other").await?;
    let address = stray.ip().to_string();
    ensure!(address.starts_with("10.99."), "{address}");
    says(
        fed,
        "RangesIncomplete",
        &["ranges/stray", NODE, &address, "localRanges"],
    )
    .await?;
    let told = fed.spillway("hub", &["status"]).await?;
    ensure!(
        told.stdout.contains("ranges/stray"),
        "the hub's status doesn't name the pod: {}",
        told.stdout
    );
    cluster.apply(&pool("late", "10.99.0.0/16")).await?;
    cluster.apply(&pool("later", "fd00:10:99::/56")).await?;
    says(fed, "Complete", &[]).await?;
    kernel(fed, &["10.99.0.0/16", "fd00:10:99::/56"], &[]).await?;
    stray.delete().await?;
    run(fed, OWN_RANGE).await?;

    cluster.kubectl(&["delete", "crd", CALICO]).await?;
    cluster.kubectl(&["delete", "namespace", "kube-flannel"]).await?;
    cluster
        .kubectl(&["delete", "configmap", "kubeadm-config", "-n", "kube-system"])
        .await?;
    if !record.is_empty() {
        let mut record: Value = serde_json::from_str(&record)?;
        record["metadata"] = json!({"name": "kubeadm-config", "namespace": "kube-system"});
        cluster
            .kubectl_with_input(&["create", "-f", "-"], &record.to_string())
            .await?;
    }
    eventually(PATIENCE, "the ranges are what they were", || async {
        let now = network(fed).await?;
        ensure!(now["spec"] == before["spec"], "{}", now["spec"]);
        Ok(())
    })
    .await?;
    kernel(fed, &[], &["10.81.0.0/16", "10.99.0.0/16", "10.83.0.0/16"]).await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(eip)).await?;
    story.end().await
}

async fn run(fed: &Federation, script: &str) -> Result<()> {
    let done = fed.node(NODE)?.exec(&["sh", "-ec", script]).await?.success();
    done.map(drop).with_context(|| script.to_owned())
}

async fn network(fed: &Federation) -> Result<Value> {
    let args = ["get", "clusternetwork", "current", "-o", "json"];
    let text = fed.cluster(MEMBER)?.kubectl(&args).await?;
    serde_json::from_str(&text).context("kubectl's answer")
}

/// What a source gives, by the object.
fn given<'a>(network: &'a Value, source: &str) -> Vec<&'a str> {
    let sources = network["spec"]["sources"].as_array().into_iter().flatten();
    sources
        .filter(|s| s["source"] == source)
        .flat_map(|s| s["cidrs"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect()
}

async fn gives(fed: &Federation, source: &str, wanted: &[&str]) -> Result<()> {
    eventually(PATIENCE, &format!("{source} gives {wanted:?}"), || async {
        let now = network(fed).await?;
        ensure!(given(&now, source) == wanted, "{now}");
        let status = now["status"]["sources"].as_array().into_iter().flatten();
        let mut status = status.filter(|s| s["source"] == source);
        ensure!(
            status.any(|s| s["state"] == "Read" && s["ranges"] == wanted.len()),
            "{}",
            now["status"]
        );
        Ok(())
    })
    .await
}

/// Waits for a reason of `RangesComplete`, with words in its message.
async fn says(fed: &Federation, reason: &str, words: &[&str]) -> Result<()> {
    eventually(PATIENCE, &format!("RangesComplete says {reason}"), || async {
        let now = network(fed).await?;
        let condition = &now["status"]["conditions"][0];
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(
            condition["reason"] == reason && words.iter().all(|w| message.contains(w)),
            "{condition}"
        );
        Ok(())
    })
    .await
}

/// Waits until the node's sets of local ranges hold some and don't hold others.
async fn kernel(fed: &Federation, has: &[&str], lacks: &[&str]) -> Result<()> {
    eventually(
        PATIENCE,
        &format!("@local4 and @local6 of {NODE} have {has:?}"),
        || async {
            let script = "nft list set inet spillway local4; nft list set inet spillway local6";
            let sets = fed.node(NODE)?.exec(&["sh", "-c", script]).await?.success()?;
            let elements: Vec<&str> = sets.split([',', '{', '}', '\n', '=']).map(str::trim).collect();
            let missing: Vec<_> = has.iter().filter(|r| !elements.contains(r)).collect();
            let surplus: Vec<_> = lacks.iter().filter(|r| elements.contains(r)).collect();
            ensure!(
                missing.is_empty() && surplus.is_empty(),
                "missing {missing:?}, surplus {surplus:?}: {sets}"
            );
            Ok(())
        },
    )
    .await
}

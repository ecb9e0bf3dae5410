//! Before anything is installed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::Api;
use spillway_crds::NAMESPACE;

use super::finding::{Finding, Topic};
use crate::args::Side;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::join::preflight;
use crate::manifest;

/// What we ask of an API server: ValidatingAdmissionPolicy v1, and the node's name in the tokens of its pods.
const OLDEST_SERVER: (u32, u32) = (1, 30);
/// The netdev egress hook, and all that came before it.
const STATELESS_KERNEL: (u32, u32) = (5, 16);
/// Nodes with overlay addresses in one member.
const MOST_NODES: usize = 1_022;
/// What node agents need of every node.
const NODE_PORTS: [(u16, &str, &str); 2] = [
    (4799, "UDP", "the tunnel (flag --tunnel-port of the hub moves it)"),
    (
        8082,
        "TCP",
        "the node agent's health (--set nodeAgent.healthPort moves it)",
    ),
];

/// All checks for these sides.
pub(super) async fn check(cluster: &Cluster, sides: &[Side]) -> Vec<Finding> {
    let mut out = Vec::new();
    for side in sides {
        let objects = match side {
            Side::Hub => manifest::hub(),
            Side::Member => manifest::member().map(|objects| preflight::all_of(&objects)),
        };
        let missing = match objects {
            Ok(objects) => preflight::rights(cluster, &objects).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = missing {
            let what = format!("installing a {side} isn't allowed: {}", failure.what);
            out.push(Finding::error(
                Topic::Rights,
                "kubeconfig",
                what,
                failure.fix.join("; "),
            ));
        }
    }
    match cluster.client.apiserver_version().await {
        Ok(info) => out.extend(server(&info.major, &info.minor)),
        Err(error) => out.push(Finding::unread(
            "API server",
            &Failure::kube("reading its version", &error),
        )),
    }
    out.extend(apis(cluster, sides).await);
    if sides.contains(&Side::Member) {
        out.extend(nodes_and_ports(cluster).await);
    }
    out
}

fn server(major: &str, minor: &str) -> Option<Finding> {
    // Some distributions write `30+`.
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().ok();
    let version = (number(major)?, number(minor)?);
    (version < OLDEST_SERVER).then(|| {
        Finding::error(
            Topic::ApiServer,
            "API server",
            format!(
                "it is version {major}.{minor}; Spillway needs {}.{}",
                OLDEST_SERVER.0, OLDEST_SERVER.1
            ),
            "upgrade the cluster",
        )
    })
}

/// Kinds that must be served, with what lacks without them.
fn wanted(side: Side) -> &'static [(&'static str, &'static str, bool)] {
    match side {
        Side::Hub => &[("coordination.k8s.io/v1", "leases", true)],
        Side::Member => &[
            (
                "admissionregistration.k8s.io/v1",
                "validatingadmissionpolicies",
                true,
            ),
            ("discovery.k8s.io/v1", "endpointslices", true),
            // Without it the service ranges have to be told by `localRanges`.
            ("networking.k8s.io/v1", "servicecidrs", false),
        ],
    }
}

async fn apis(cluster: &Cluster, sides: &[Side]) -> Vec<Finding> {
    let mut served: BTreeMap<&str, Option<Vec<String>>> = BTreeMap::new();
    let mut out = Vec::new();
    for (group, resource, needed) in sides.iter().flat_map(|s| wanted(*s)) {
        if !served.contains_key(group) {
            let list = cluster.client.list_api_group_resources(group).await;
            let names = list.map(|l| l.resources.into_iter().map(|r| r.name).collect());
            served.insert(group, names.ok());
        }
        let found = served[group]
            .as_ref()
            .is_some_and(|names| names.iter().any(|n| n == resource));
        if found {
            continue;
        }
        let what = format!("it doesn't serve {resource} of {group}");
        out.push(if *needed {
            Finding::error(
                Topic::ApiServer,
                "API server",
                what,
                "upgrade the cluster, or switch that API on",
            )
        } else {
            Finding::warning(
                Topic::ApiServer,
                "API server",
                format!("{what}: the ranges of Services can't be found out"),
                "name them: --set localRanges={RANGE}",
            )
        });
    }
    out
}

async fn nodes_and_ports(cluster: &Cluster) -> Vec<Finding> {
    let client = cluster.client.clone();
    let mut out = Vec::new();
    match cluster.list(Api::<Node>::all(client.clone()), "nodes").await {
        Ok(nodes) => out.extend(nodes_fit(&nodes)),
        Err(failure) => out.push(Finding::unread("nodes", &failure)),
    }
    match cluster.list(Api::<Pod>::all(client.clone()), "pods").await {
        Ok(pods) => out.extend(ports_free(&pods)),
        Err(failure) => out.push(Finding::unread("ports of nodes", &failure)),
    }
    match cluster
        .get(Api::<Namespace>::all(client), NAMESPACE, "Namespace")
        .await
    {
        Ok(namespace) => out.extend(namespace.as_ref().and_then(pod_security)),
        Err(failure) => out.push(Finding::unread("namespace", &failure)),
    }
    out
}

/// `5.16.0-rc1` → (5, 16).
fn kernel(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn nodes_fit(nodes: &[Node]) -> Vec<Finding> {
    let mut out = Vec::new();
    if nodes.len() > MOST_NODES {
        let what = format!("{} of them; {MOST_NODES} get overlay addresses", nodes.len());
        out.push(Finding::error(Topic::Nodes, "nodes", what, "split the cluster"));
    }
    for node in nodes {
        let object = format!("node {}", node.metadata.name.clone().unwrap_or_default());
        let status = node.status.clone().unwrap_or_default();
        let addresses = status.addresses.unwrap_or_default();
        if !addresses.iter().any(|a| a.type_ == "InternalIP") {
            out.push(Finding::error(
                Topic::Nodes,
                &object,
                "it has no InternalIP, so it can have no tunnel",
                "kubelet's --node-ip sets it",
            ));
        }
        let Some(info) = status.node_info else { continue };
        if info.operating_system != "linux" {
            out.push(Finding::warning(
                Topic::Nodes,
                &object,
                format!(
                    "it runs {}: no agent runs there, and no policy takes its pods",
                    info.operating_system
                ),
                "",
            ));
            continue;
        }
        if kernel(&info.kernel_version).is_some_and(|version| version < STATELESS_KERNEL) {
            out.push(Finding::warning(
                Topic::Nodes,
                &object,
                format!(
                    "Linux {} has no netdev egress hook: a gateway that it belongs to translates on its own nodes, and a failover \
                     breaks connections",
                    info.kernel_version
                ),
                "Linux 5.16 on gateways' nodes; others may be older",
            ));
        }
    }
    out
}

/// Ports of nodes that somebody else's pods have. What runs outside of pods can't be seen from here.
fn ports_free(pods: &[Pod]) -> Vec<Finding> {
    let mut out = Vec::new();
    for pod in pods {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let finished = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if namespace == NAMESPACE || matches!(finished, Some("Succeeded" | "Failed")) {
            continue;
        }
        let Some(spec) = &pod.spec else { continue };
        let own = spec.host_network == Some(true);
        for port in spec.containers.iter().flat_map(|c| c.ports.iter().flatten()) {
            let taken = port.host_port.or(own.then_some(port.container_port));
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            for (wanted, with, what) in NODE_PORTS {
                if taken == Some(i32::from(wanted)) && protocol == with {
                    let node = spec.node_name.clone().unwrap_or_default();
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    out.push(Finding::error(
                        Topic::Ports,
                        format!("node {node}"),
                        format!("pod {namespace}/{name} has {with} port {wanted}, which is {what}"),
                        "move one of the two",
                    ));
                }
            }
        }
    }
    out
}

fn pod_security(namespace: &Namespace) -> Option<Finding> {
    let labels = namespace.metadata.labels.as_ref()?;
    let level = labels.get("pod-security.kubernetes.io/enforce")?;
    (level != "privileged").then(|| {
        Finding::error(
            Topic::PodSecurity,
            format!("namespace {NAMESPACE}"),
            format!("Pod Security enforces {level} there, and node agents use their node's network"),
            format!("kubectl label namespace {NAMESPACE} pod-security.kubernetes.io/enforce=privileged --overwrite"),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Severity;
    use super::*;

    #[test]
    fn an_old_server_is_refused() {
        assert_eq!(server("1", "36"), None);
        assert_eq!(server("1", "30+"), None);
        assert!(server("1", "29").expect("old").what.contains("1.30"));
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers build the value in place")]
    fn node(kernel: &str, os: &str, addresses: serde_json::Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "status": {"addresses": addresses, "nodeInfo": {
                "kernelVersion": kernel, "operatingSystem": os, "architecture": "amd64", "bootID": "", "machineID": "",
                "systemUUID": "", "osImage": "", "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "",
            }},
        }))
        .expect("a node")
    }

    #[test]
    fn a_node_is_judged_by_kernel_and_address() {
        let internal = || json!([{"type": "InternalIP", "address": "10.0.0.1"}]);
        assert!(nodes_fit(&[node("6.1.0-18-amd64", "linux", internal())]).is_empty());
        let old = nodes_fit(&[node("5.15.0-91-generic", "linux", internal())]);
        assert_eq!((old.len(), old[0].severity), (1, Severity::Warning));
        let nowhere = nodes_fit(&[node("6.1.0", "linux", json!([]))]);
        assert!(nowhere[0].what.contains("InternalIP"));
        assert!(
            nodes_fit(&[node("10.0", "windows", internal())])[0]
                .what
                .contains("windows")
        );
    }

    #[test]
    fn a_port_that_somebody_has_is_named() {
        let pod = |namespace: &str, port: u16, protocol: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": namespace},
                "spec": {"hostNetwork": true, "nodeName": "n1", "containers": [
                    {"name": "c", "ports": [{"containerPort": port, "protocol": protocol}]}]},
            }))
            .expect("a pod")
        };
        assert!(
            ports_free(&[
                pod("x", 4799, "TCP"),
                pod(NAMESPACE, 8082, "TCP"),
                pod("x", 80, "TCP")
            ])
            .is_empty()
        );
        let found = ports_free(&[pod("x", 4799, "UDP")]);
        assert_eq!(found[0].object, "node n1");
        assert!(found[0].what.contains("x/p"), "{}", found[0].what);
    }

    #[test]
    fn pod_security_must_let_node_agents_be() {
        let namespace = |level: &str| -> Namespace {
            serde_json::from_value(
                json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}}),
            )
            .expect("a namespace")
        };
        assert_eq!(pod_security(&namespace("privileged")), None);
        assert!(pod_security(&namespace("baseline")).is_some());
    }
}

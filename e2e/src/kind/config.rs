//! What kind is told about a cluster.

use serde_json::{Value, json};

use crate::state::{ClusterPlan, MachinePlan, NodePlan, Plan, Provider};

/// kind's name of a cluster.
pub(crate) fn cluster_name(plan: &Plan, cluster: &ClusterPlan) -> String {
    format!("{}-{}", plan.name, cluster.spec.name)
}

/// The container that is a machine of the cluster: kind counts a cluster's workers from 1 and names no number 1.
pub(crate) fn container_name(plan: &Plan, cluster: &ClusterPlan, machine: &MachinePlan) -> String {
    let name = cluster_name(plan, cluster);
    let workers = cluster.control_plane_node.iter().flat_map(|_| &cluster.nodes);
    let worker = workers
        .zip(1..)
        .find(|(node, _)| node.machine.name == machine.name);
    match worker {
        None => format!("{name}-control-plane"),
        Some((_, 1)) => format!("{name}-worker"),
        Some((_, n)) => format!("{name}-worker{n}"),
    }
}

/// The cluster's configuration, JSON being YAML.
pub(crate) fn configuration(plan: &Plan, cluster: &ClusterPlan) -> String {
    let joined = |ranges: &[ipnet::IpNet]| {
        let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        ranges.join(",")
    };
    let spec = &cluster.spec;
    let family = match (spec.pod_ranges.len(), spec.pod_ranges.first()) {
        (2, _) => "dual",
        (_, Some(ipnet::IpNet::V6(_))) => "ipv6",
        _ => "ipv4",
    };
    let control_plane = cluster.control_plane_node.as_ref().or(cluster.nodes.first());
    let workers = cluster.control_plane_node.iter().flat_map(|_| &cluster.nodes);
    let upstream = plan.provider == Provider::KindUpstream;
    let mut nodes: Vec<Value> = control_plane
        .map(|n| {
            let mut registration = registration(n, "InitConfiguration");
            if !upstream {
                // As in all arenas there is no DNS, and no image of it. kind itself skips the first.
                registration["skipPhases"] = json!(["preflight", "addon/coredns"]);
            }
            node(n, "control-plane", &registration)
        })
        .into_iter()
        .collect();
    nodes.extend(workers.map(|n| node(n, "worker", &registration(n, "JoinConfiguration"))));
    let config = json!({
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": cluster_name(plan, cluster),
        "networking": {
            "ipFamily": family,
            "podSubnet": joined(&spec.pod_ranges),
            "serviceSubnet": joined(&spec.service_ranges),
            "kubeProxyMode": "nftables",
            // kindnet is in no image of ours; the arena does what a small CNI's agent does.
            "disableDefaultCNI": !upstream,
        },
        "kubeadmConfigPatches": [
            patch(&json!({"kind": "KubeletConfiguration", "failCgroupV1": false})),
            // Who has which range is then known before any node is up.
            patch(&json!({"kind": "ClusterConfiguration", "controllerManager": {"extraArgs": [
                {"name": "enable-hostpath-provisioner", "value": "true"},
                {"name": "allocate-node-cidrs", "value": "false"},
            ]}})),
        ],
        "nodes": nodes,
    });
    format!("{config:#}\n")
}

fn registration(node: &NodePlan, kind: &str) -> Value {
    json!({"kind": kind, "nodeRegistration": {"name": node.machine.name}})
}

fn node(node: &NodePlan, role: &str, registration: &Value) -> Value {
    json!({"role": role, "labels": node.labels, "kubeadmConfigPatches": [patch(registration)]})
}

/// kind takes patches as text.
fn patch(value: &Value) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ArenaSpec;

    fn plan() -> Plan {
        let spec = ArenaSpec::parse_short("t", "hub:1,a:2").unwrap();
        spec.on(Provider::Kind).plan().unwrap()
    }

    #[test]
    fn containers_are_named_as_kind_names_them() {
        let plan = plan();
        let names: Vec<String> = plan
            .clusters
            .iter()
            .flat_map(|c| c.machines().map(|m| container_name(&plan, c, m)))
            .collect();
        assert_eq!(
            names,
            [
                "t-hub-control-plane",
                "t-a-control-plane",
                "t-a-worker",
                "t-a-worker2"
            ]
        );
    }

    #[test]
    fn nodes_keep_the_names_and_ranges_of_the_arena() {
        let plan = plan();
        let config: Value = serde_json::from_str(&configuration(&plan, &plan.clusters[1])).unwrap();
        let roles: Vec<_> = config["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| &n["role"])
            .collect();
        assert_eq!(roles, ["control-plane", "worker", "worker"]);
        let last = config["nodes"][2]["kubeadmConfigPatches"][0].as_str().unwrap();
        assert!(
            last.contains("JoinConfiguration") && last.contains("\"a-n2\""),
            "{last}"
        );
        assert_eq!(
            config["networking"]["podSubnet"],
            "10.244.0.0/16,fd00:10:244::/56"
        );
        let hub: Value = serde_json::from_str(&configuration(&plan, &plan.clusters[0])).unwrap();
        assert_eq!(hub["nodes"].as_array().unwrap().len(), 1);
        assert!(hub["nodes"][0].to_string().contains("hub-n1"));
    }
}

//! Where members reach the hub, when nobody said so: what its Service shows to the outside.

use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::Api;

use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};

/// Nodes named in a join command: enough that one may be down.
const NODES: usize = 3;

/// Endpoints that the hub's Service offers outside its cluster.
pub async fn discover(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let service: Option<Service> = cluster.get(cluster.ours(), "spillway-hub", "Service").await?;
    let Some(service) = service else {
        return Err(
            Failure::new(Exit::NotFound, format!("there is no hub in {}", cluster.name))
                .fix("install it: spillway hub install")
                .fix("or name the hub's cluster with --kubeconfig or --context"),
        );
    };
    let nodes = if kind(&service) == "NodePort" {
        cluster
            .list(Api::<Node>::all(cluster.client.clone()), "nodes")
            .await?
    } else {
        Vec::new()
    };
    let found = offered(&service, &nodes);
    if !found.is_empty() {
        return Ok(found);
    }
    Err(match kind(&service) {
        "LoadBalancer" => Failure::new(Exit::Other, "the hub's load balancer has no address yet")
            .fix("wait for it: kubectl get service -n spillway-system spillway-hub")
            .fix("or name the address yourself: --endpoint HOST:PORT"),
        "NodePort" => Failure::new(
            Exit::Other,
            "no node of the hub's cluster is ready and has an internal address",
        )
        .fix("name the address yourself: --endpoint HOST:PORT"),
        _ => Failure::new(
            Exit::Other,
            "the hub's Service is a ClusterIP, which other clusters can't reach",
        )
        .fix("publish the hub: spillway hub install --service-type LoadBalancer, or NodePort")
        .fix("or, where it is published some other way, name the address: --endpoint HOST:PORT"),
    })
}

fn kind(service: &Service) -> &str {
    service
        .spec
        .as_ref()
        .and_then(|s| s.type_.as_deref())
        .unwrap_or("ClusterIP")
}

/// What `service` offers outside: the load balancer's addresses, or the node port at the first ready nodes.
pub fn offered(service: &Service, nodes: &[Node]) -> Vec<String> {
    let Some(port) = service
        .spec
        .as_ref()
        .and_then(|s| s.ports.as_ref())
        .and_then(|p| p.first())
    else {
        return Vec::new();
    };
    match kind(service) {
        "LoadBalancer" => service
            .status
            .iter()
            .filter_map(|s| s.load_balancer.as_ref())
            .flat_map(|l| l.ingress.iter().flatten())
            .filter_map(|i| i.ip.clone().or_else(|| i.hostname.clone()))
            .map(|host| join(&host, port.port))
            .collect(),
        "NodePort" => {
            let Some(node_port) = port.node_port else {
                return Vec::new();
            };
            nodes
                .iter()
                .filter(|node| is_ready(node))
                .filter_map(internal_address)
                .take(NODES)
                .map(|host| join(&host, node_port))
                .collect()
        }
        _ => Vec::new(),
    }
}

fn is_ready(node: &Node) -> bool {
    node.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

fn internal_address(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses
        .iter()
        .find(|a| a.type_ == "InternalIP")
        .map(|a| a.address.clone())
}

fn join(host: &str, port: i32) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_type_of_service_offers_what_it_has() {
        let service = |value| serde_json::from_value::<Service>(value).expect("a service");
        let node = |address: &str, ready: &str| {
            serde_json::from_value::<Node>(json!({"metadata": {}, "status": {
                "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": ready}],
            }}))
            .expect("a node")
        };
        let cluster_ip = service(json!({"spec": {"type": "ClusterIP", "ports": [{"port": 9443}]}}));
        let node_port =
            service(json!({"spec": {"type": "NodePort", "ports": [{"port": 9443, "nodePort": 30943}]}}));
        let balanced = service(json!({
            "spec": {"type": "LoadBalancer", "ports": [{"port": 9443, "nodePort": 30943}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}, {"hostname": "hub.example.org"}]}},
        }));
        let nodes = [
            node("192.0.2.1", "True"),
            node("192.0.2.2", "False"),
            node("2001:db8::3", "True"),
        ];
        assert!(offered(&cluster_ip, &nodes).is_empty());
        assert_eq!(
            offered(&node_port, &nodes),
            ["192.0.2.1:30943", "[2001:db8::3]:30943"]
        );
        assert_eq!(
            offered(&balanced, &[]),
            ["192.0.2.7:9443", "hub.example.org:9443"]
        );
    }
}

//! Kubernetes itself: ServiceCIDRs, the API servers, kubeadm's record, the controller-manager's flags.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde_json::Value;

use super::found::{Found, name};

/// Ranges of Services, where the cluster serves `ServiceCIDR` (1.33 and later).
pub fn service_ranges<'a>(objects: impl IntoIterator<Item = &'a ServiceCIDR>) -> Found {
    let mut found = Found::default();
    for object in objects {
        let name = object.metadata.name.as_deref().unwrap_or("?");
        for cidr in object.spec.iter().flat_map(|s| s.cidrs.iter().flatten()) {
            found.range(cidr, format_args!("ServiceCIDR {name}, spec.cidrs"));
        }
    }
    found
}

/// Addresses of the API servers.
pub fn api_server<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Found {
    let mut found = Found::default();
    for slice in slices {
        for address in slice.endpoints.iter().flat_map(|e| &e.addresses) {
            found.range(address, "EndpointSlice of default/kubernetes");
        }
    }
    found
}

/// What kubeadm was told: `networking` in `ClusterConfiguration` of ConfigMap `kubeadm-config`. It isn't kept up to
/// date by anybody, so it may be older than the truth.
pub fn kubeadm<'a>(maps: impl IntoIterator<Item = &'a Value>) -> Found {
    let mut found = Found::default();
    for map in maps {
        let place = format!("ConfigMap {}, ClusterConfiguration", name(map));
        let Some(text) = map["data"]["ClusterConfiguration"].as_str() else {
            found.fault(format!("{place}: there is no such key"));
            continue;
        };
        // The document is YAML; budgets of the parser bound what aliases and nesting can cost.
        match serde_saphyr::from_str::<Value>(text) {
            Ok(conf) => {
                for key in ["podSubnet", "serviceSubnet"] {
                    match &conf["networking"][key] {
                        Value::Null => {}
                        Value::String(list) => found.list(list, format_args!("{place}, networking.{key}")),
                        _ => found.fault(format!("{place}, networking.{key} is no string")),
                    }
                }
            }
            Err(error) => {
                let error: String = error.to_string().lines().take(1).collect();
                found.fault(format!("{place} is no YAML: {error}"));
            }
        }
    }
    found
}

/// `--cluster-cidr` and `--service-cluster-ip-range` of kube-controller-manager's pods, where it runs as a pod.
pub fn controller_manager<'a>(pods: impl IntoIterator<Item = &'a Value>) -> Found {
    const FLAGS: [&str; 2] = ["--cluster-cidr", "--service-cluster-ip-range"];
    let mut found = Found::default();
    for pod in pods {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        for container in containers {
            let words: Vec<&str> = ["command", "args"]
                .iter()
                .flat_map(|part| container[*part].as_array().into_iter().flatten())
                .filter_map(Value::as_str)
                .collect();
            for (i, word) in words.iter().enumerate() {
                let (flag, value) = match word.split_once('=') {
                    Some((flag, value)) => (flag, Some(value)),
                    None => (*word, words.get(i + 1).copied()),
                };
                if let (true, Some(value)) = (FLAGS.contains(&flag), value) {
                    found.list(value, format_args!("Pod {}, {flag}", name(pod)));
                }
            }
        }
    }
    found
}

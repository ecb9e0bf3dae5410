//! A node's configuration: containerd, kubelet, kube-proxy, CNI.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::machine::{Await, Bind, Daemon, MachineSpec};
use crate::{
    control_plane::API_PORT,
    pki::{Authority, write_private},
    provision::Toolbox,
    state::{ClusterPlan, Dirs, Enforcer, NodePlan},
};

/// Where containerd listens, inside the node.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Name of the CNI's configuration file.
pub(crate) const CNI_FILE: &str = "10-arena.conflist";

/// The search path inside every machine, the toolbox's programs first.
pub fn search_path(toolbox: &Toolbox, cluster: Option<&ClusterPlan>) -> String {
    let programs = ["containerd", "etcd", "ctr"].map(|p| toolbox.bin(p));
    let mut dirs: Vec<PathBuf> = programs
        .iter()
        .filter_map(|p| p.parent().map(Path::to_path_buf))
        .collect();
    dirs.extend(cluster.and_then(|c| {
        toolbox
            .kubernetes(&c.spec.kubernetes, "kubelet")
            .parent()
            .map(Path::to_path_buf)
    }));
    dirs.retain(|dir| !dir.starts_with("/usr"));
    dirs.sort();
    dirs.dedup();
    let mut path: Vec<String> = dirs.iter().map(|d| d.display().to_string()).collect();
    path.extend(
        [
            "/usr/local/sbin",
            "/usr/local/bin",
            "/usr/sbin",
            "/usr/bin",
            "/sbin",
            "/bin",
        ]
        .map(str::to_owned),
    );
    path.join(":")
}

/// Writes the node's files below its machine directory and says what the machine runs.
pub fn prepare(
    dirs: &Dirs,
    toolbox: &Toolbox,
    cluster: &ClusterPlan,
    node: &NodePlan,
    authority: &Authority,
    sandbox: &str,
) -> Result<MachineSpec> {
    let machine = &node.machine;
    let dir = dirs.machine(&machine.name);
    let root = dir.join("root");
    let name = &machine.name;
    let api = cluster.api_url();

    let kubelet_user = authority.client(&format!("system:node:{name}"), Some("system:nodes"))?;
    let proxy_user = authority.client("system:kube-proxy", Some("system:node-proxier"))?;
    let serving = authority.server(
        &format!("system:node:{name}"),
        &[name],
        &[machine.ipv4.into(), machine.ipv6.into()],
    )?;
    let kubernetes = root.join("etc/kubernetes");
    write_private(&kubernetes.join("pki/ca.crt"), authority.pem())?;
    serving.write(&kubernetes.join("pki"), "kubelet")?;
    write_private(
        &kubernetes.join("kubelet.conf"),
        &kubelet_user.kubeconfig(authority, &api, name),
    )?;
    write_private(
        &kubernetes.join("kube-proxy.conf"),
        &proxy_user.kubeconfig(authority, &api, name),
    )?;
    write_private(&kubernetes.join("kubelet.yaml"), &kubelet(&machine.cgroup))?;
    write_private(&kubernetes.join("kube-proxy.yaml"), &kube_proxy(cluster, name))?;
    write_private(
        &root.join("etc/containerd/config.toml"),
        &containerd(toolbox, sandbox),
    )?;
    write_private(&root.join("etc/cni/net.d").join(CNI_FILE), &cni(node))?;
    install_plugins(&toolbox.cni_dir(), &root.join("opt/cni/bin"))?;

    let binary = |program: &str| {
        toolbox
            .kubernetes(&cluster.spec.kubernetes, program)
            .display()
            .to_string()
    };
    let node_ips: Vec<String> = cluster
        .spec
        .pod_ranges
        .iter()
        .map(|r| machine.address_like(*r).to_string())
        .collect();
    let socket = Await::Path(PathBuf::from(CONTAINERD_SOCKET));
    // Started earlier, both would fail and then wait out their growing pauses.
    let api_up = Await::Listening(SocketAddr::new(cluster.api_address(), API_PORT));
    let enforcer = cluster
        .spec
        .enforcer
        .map(|Enforcer::KubeRouter| kube_router(toolbox, &kubernetes, authority, &api, name))
        .transpose()?
        .map(|command| Daemon {
            name: "kube-router".into(),
            command,
            after: vec![api_up.clone()],
        });
    let mut spec = MachineSpec {
        name: name.clone(),
        machine_id: machine_id(&machine.netns),
        netns: machine.netns.clone(),
        dir,
        logs: dirs.logs(name),
        mark: dirs.mark(),
        binds: vec![Bind::same(toolbox.cache())],
        path: search_path(toolbox, Some(cluster)),
        daemons: vec![
            Daemon {
                name: "containerd".into(),
                command: vec![toolbox.bin("containerd").display().to_string()],
                after: vec![],
            },
            Daemon {
                name: "kubelet".into(),
                command: vec![
                    binary("kubelet"),
                    "--config=/etc/kubernetes/kubelet.yaml".into(),
                    "--kubeconfig=/etc/kubernetes/kubelet.conf".into(),
                    format!("--node-ip={}", node_ips.join(",")),
                    "--v=2".into(),
                ],
                after: vec![socket, api_up.clone()],
            },
            Daemon {
                name: "kube-proxy".into(),
                command: vec![
                    binary("kube-proxy"),
                    "--config=/etc/kubernetes/kube-proxy.yaml".into(),
                    "--v=2".into(),
                ],
                after: vec![api_up],
            },
        ],
    };
    spec.daemons.extend(enforcer);
    Ok(spec)
}

/// kube-router as nothing but a firewall: routes, addresses and Services are others' business.
fn kube_router(
    toolbox: &Toolbox,
    kubernetes: &Path,
    authority: &Authority,
    api: &str,
    name: &str,
) -> Result<Vec<String>> {
    let user = authority.client("kube-router", Some("system:masters"))?;
    write_private(
        &kubernetes.join("kube-router.conf"),
        &user.kubeconfig(authority, api, name),
    )?;
    let mut command = vec![toolbox.kube_router()?.display().to_string()];
    command.extend(
        [
            "--run-firewall=true",
            "--run-router=false",
            "--run-service-proxy=false",
            "--kubeconfig=/etc/kubernetes/kube-router.conf",
            // It looks at everything again this often, and at once when something changes.
            "--iptables-sync-period=1m",
            "--v=1",
        ]
        .map(str::to_owned),
    );
    command.push(format!("--hostname-override={name}"));
    Ok(command)
}

/// A stable number in the form of `/etc/machine-id`; kubelet reports it as the node's.
pub fn machine_id(seed: &str) -> String {
    use sha2::{Digest as _, Sha256};
    hex::encode(&Sha256::digest(seed)[..16])
}

fn kubelet(cgroup: &str) -> String {
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/pki/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/pki/kubelet.key",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "failCgroupV1": false,
        // The tree above the node's own directory is the outer machine's and stays as it is.
        "enforceNodeAllocatable": [],
        "featureGates": {"KubeletInUserNamespace": true},
        "oomScoreAdj": 0,
        "failSwapOn": false,
        "resolvConf": "/dev/null",
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "serializeImagePulls": false,
    });
    format!("{config:#}\n")
}

fn kube_proxy(cluster: &ClusterPlan, name: &str) -> String {
    let ranges: Vec<String> = cluster.spec.pod_ranges.iter().map(ToString::to_string).collect();
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": name,
        "clusterCIDR": ranges.join(","),
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.conf"},
        // Zeros keep it from writing sysctls that belong to the outer machine.
        "conntrack": {
            "maxPerCore": 0, "min": 0,
            "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s", "udpTimeout": "0s", "udpStreamTimeout": "0s",
        },
    });
    format!("{config:#}\n")
}

fn containerd(toolbox: &Toolbox, sandbox: &str) -> String {
    let runc = toolbox.bin("runc");
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{sandbox}"

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{}"
SystemdCgroup = false
"#,
        runc.display()
    )
}

/// The CNI's configuration on a node.
pub(crate) fn cni(node: &NodePlan) -> String {
    let ranges: Vec<_> = node
        .pod_ranges
        .iter()
        .map(|r| json!([{"subnet": r.to_string()}]))
        .collect();
    let routes: Vec<_> = node
        .pod_ranges
        .iter()
        .map(|r| json!({"dst": if r.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" }}))
        .collect();
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "arena",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "mtu": 1500,
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
        }],
    });
    format!("{config:#}\n")
}

/// A node's plugin directory is its own: a DaemonSet may install into it.
fn install_plugins(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read the CNI plugins in {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if !target.exists() {
            fs::copy(entry.path(), &target).with_context(|| format!("install {}", target.display()))?;
        }
    }
    Ok(())
}

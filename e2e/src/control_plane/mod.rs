//! A cluster's control plane: etcd, API server, controller-manager and scheduler, with the flags a production cluster
//! made by kubeadm would have where they matter to its users.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use ipnet::IpNet;

use crate::{
    node::{
        config::{machine_id, search_path},
        machine::{Await, Bind, Daemon, MachineSpec},
    },
    pki::{Authority, write_private, write_token_key},
    provision::Toolbox,
    state::{ClusterPlan, Dirs},
};

/// Port of every API server.
pub const API_PORT: u16 = 6443;

/// Directory of the certificates inside the control plane's machine.
const PKI: &str = "/etc/kubernetes/pki";

/// Makes the cluster's certificates, writes the administrator's kubeconfig, and says what the machine runs.
pub fn prepare(dirs: &Dirs, toolbox: &Toolbox, cluster: &ClusterPlan) -> Result<(MachineSpec, Authority)> {
    let machine = &cluster.control_plane;
    let name = &cluster.spec.name;
    let dir = dirs.machine(&machine.name);
    let kubernetes = dir.join("root/etc/kubernetes");
    let pki = kubernetes.join("pki");

    let authority = Authority::generate(&format!("{name}-ca"))?;
    authority.write(&pki)?;
    authority.write(&dirs.pki(name))?;
    authority
        .server("kube-apiserver", &API_NAMES, &api_addresses(cluster)?)?
        .write(&pki, "apiserver")?;
    authority
        .client("kube-apiserver-kubelet-client", Some("system:masters"))?
        .write(&pki, "apiserver-kubelet-client")?;
    write_token_key(&pki)?;
    // As kubeadm has it, for API servers that are added by a user.
    let front_proxy = Authority::generate(&format!("{name}-front-proxy-ca"))?;
    write_private(&pki.join("front-proxy-ca.crt"), front_proxy.pem())?;
    front_proxy
        .client("front-proxy-client", None)?
        .write(&pki, "front-proxy-client")?;
    let local = format!("https://127.0.0.1:{API_PORT}");
    for component in ["kube-controller-manager", "kube-scheduler"] {
        let user = authority.client(&format!("system:{component}"), None)?;
        write_private(
            &kubernetes.join(format!("{component}.conf")),
            &user.kubeconfig(&authority, &local, name),
        )?;
    }
    let admin = authority.client("kubernetes-admin", Some("system:masters"))?;
    let from_outside = format!("https://127.0.0.1:{}", cluster.api_port);
    write_private(
        &dirs.kubeconfig(name),
        &admin.kubeconfig(&authority, &from_outside, name),
    )?;
    // For whoever works on a machine of the arena, such as `arena exec a-cp -- kubectl …`.
    write_private(
        &dir.join("root/root/.kube/config"),
        &admin.kubeconfig(&authority, &cluster.api_url(), name),
    )?;

    let binary = |program: &str| toolbox.kubernetes(&cluster.spec.kubernetes, program);
    // What both components need first, and are refused until the API server has made its roles: they would end and
    // be started again.
    let authorized = Await::Succeeds(vec![
        binary("kubectl").display().to_string(),
        "--kubeconfig=/etc/kubernetes/kube-controller-manager.conf".to_owned(),
        "get".to_owned(),
        "--raw=/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication".to_owned(),
    ]);
    let api_up = vec![Await::Listening(([127, 0, 0, 1], API_PORT).into()), authorized];
    let daemon = |program: PathBuf, flags: Vec<String>, after: Vec<Await>| Daemon {
        name: program
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default(),
        command: std::iter::once(program.display().to_string())
            .chain(flags)
            .collect(),
        after,
    };
    let spec = MachineSpec {
        name: machine.name.clone(),
        machine_id: machine_id(&machine.netns),
        netns: machine.netns.clone(),
        dir,
        logs: dirs.logs(&machine.name),
        mark: dirs.mark(),
        binds: vec![Bind::same(toolbox.cache())],
        path: search_path(toolbox, Some(cluster)),
        daemons: vec![
            daemon(toolbox.bin("etcd"), etcd(), vec![]),
            daemon(
                binary("kube-apiserver"),
                api_server(cluster),
                vec![Await::Listening(([127, 0, 0, 1], 2379).into())],
            ),
            daemon(
                binary("kube-controller-manager"),
                controller_manager(cluster),
                api_up.clone(),
            ),
            daemon(binary("kube-scheduler"), scheduler(), api_up),
        ],
    };
    Ok((spec, authority))
}

const API_NAMES: [&str; 5] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

fn api_addresses(cluster: &ClusterPlan) -> Result<Vec<IpAddr>> {
    let machine = &cluster.control_plane;
    let mut addresses: Vec<IpAddr> = vec![
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        machine.ipv4.into(),
        machine.ipv6.into(),
    ];
    for range in &cluster.spec.service_ranges {
        addresses.push(api_service(*range)?);
    }
    Ok(addresses)
}

/// The address of the API server's own Service: the first of the service range.
pub fn api_service(range: IpNet) -> Result<IpAddr> {
    let first = range.hosts().find(|h| *h != range.network());
    first.with_context(|| format!("service range {range} has no address"))
}

fn etcd() -> Vec<String> {
    [
        "--name=arena",
        "--data-dir=/var/lib/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=arena=http://127.0.0.1:2380",
        // A test cluster may lose its last writes with the whole machine, not with the process.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    .map(str::to_owned)
    .into()
}

fn joined(ranges: &[IpNet]) -> String {
    ranges
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn api_server(cluster: &ClusterPlan) -> Vec<String> {
    let mut flags = vec![
        format!("--advertise-address={}", cluster.api_address()),
        "--bind-address=::".to_owned(),
        format!("--secure-port={API_PORT}"),
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!(
            "--service-cluster-ip-range={}",
            joined(&cluster.spec.service_ranges)
        ),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
    ];
    for (flag, file) in [
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("kubelet-client-certificate", "apiserver-kubelet-client.crt"),
        ("kubelet-client-key", "apiserver-kubelet-client.key"),
        ("requestheader-client-ca-file", "front-proxy-ca.crt"),
        ("proxy-client-cert-file", "front-proxy-client.crt"),
        ("proxy-client-key-file", "front-proxy-client.key"),
    ] {
        flags.push(format!("--{flag}={PKI}/{file}"));
    }
    flags.extend(
        [
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            // The default prefers the node's name, which no DNS here knows.
            "--kubelet-preferred-address-types=InternalIP",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            "--enable-aggregator-routing=true",
            "--v=2",
        ]
        .map(str::to_owned),
    );
    flags
}

fn controller_manager(cluster: &ClusterPlan) -> Vec<String> {
    vec![
        "--kubeconfig=/etc/kubernetes/kube-controller-manager.conf".to_owned(),
        "--authentication-kubeconfig=/etc/kubernetes/kube-controller-manager.conf".to_owned(),
        "--authorization-kubeconfig=/etc/kubernetes/kube-controller-manager.conf".to_owned(),
        format!("--cluster-name={}", cluster.spec.name),
        format!(
            "--service-cluster-ip-range={}",
            joined(&cluster.spec.service_ranges)
        ),
        // The arena hands the ranges out itself: which node has which is then known before any is up.
        "--allocate-node-cidrs=false".to_owned(),
        "--leader-elect=false".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        format!("--service-account-private-key-file={PKI}/sa.key"),
        format!("--root-ca-file={PKI}/ca.crt"),
        format!("--cluster-signing-cert-file={PKI}/ca.crt"),
        format!("--cluster-signing-key-file={PKI}/ca.key"),
        "--bind-address=127.0.0.1".to_owned(),
        "--flex-volume-plugin-dir=/var/lib/flex-volumes".to_owned(),
        // The default of 20 a second makes its some forty controllers queue for seconds when they start.
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
        "--v=2".to_owned(),
    ]
}

fn scheduler() -> Vec<String> {
    [
        "--kubeconfig=/etc/kubernetes/kube-scheduler.conf",
        "--authentication-kubeconfig=/etc/kubernetes/kube-scheduler.conf",
        "--authorization-kubeconfig=/etc/kubernetes/kube-scheduler.conf",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        "--v=2",
    ]
    .map(str::to_owned)
    .into()
}

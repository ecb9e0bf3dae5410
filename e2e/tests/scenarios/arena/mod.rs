//! Group `arena`: the arena itself, and what the other scenarios take for granted about it.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    core::v1 as core,
};
use kube::{Api, api::PostParams};
use spillway_e2e::{
    Arena, ArenaSpec, Cluster, Node, Pod, Protocol, Record, eventually, lifecycle,
    node::process,
    state::Dirs,
    wire::{
        address::{ECHO_PORT, OUTSIDE_V4, OUTSIDE_V6},
        netns,
    },
};

use crate::shared::{Scenario, scenario};

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!("arena", alone self::two_clusters_with_equal_ranges_leave_as_their_nodes_and_go_without_a_trace),
        scenario!("arena", alone self::a_killed_up_is_cleaned_up_by_down),
    ]
}

/// An arena of this test run's own.
fn spec(clusters: &str) -> Result<ArenaSpec> {
    ArenaSpec::parse_short(&format!("t{}", std::process::id()), clusters)
}

/// What the outside server noted under `tag`, once it has.
async fn seen(arena: &Arena, mark: spillway_e2e::Mark, proto: Protocol, tag: &str) -> Result<Record> {
    eventually(
        Duration::from_secs(5),
        &format!("{tag} is recorded outside"),
        || async {
            let records = arena.outside().tagged_since(mark, tag)?;
            records.into_iter().find(|r| r.proto == proto).context("not yet")
        },
    )
    .await
}

/// Sends by TCP, UDP and ping over both families from the pod, and checks the source that the outside server notes.
async fn leaves_as(arena: &Arena, pod: &Pod, node: &Node) -> Result<()> {
    let server: [(IpAddr, IpAddr); 2] = [
        (OUTSIDE_V4[0].into(), node.plan().ipv4.into()),
        (OUTSIDE_V6[1].into(), node.plan().ipv6.into()),
    ];
    for (server, expected) in server {
        let mark = arena.outside().mark()?;
        let socket = std::net::SocketAddr::new(server, ECHO_PORT).to_string();
        for (verb, target, proto) in [
            ("tcp", socket.as_str(), Protocol::Tcp),
            ("udp", &socket, Protocol::Udp),
            ("ping", &server.to_string(), Protocol::Icmp),
        ] {
            let tag = format!("{}-{verb}", pod.name());
            pod.exec(&["probe", verb, target, "--tag", &tag])
                .await?
                .success()?;
            let record = seen(arena, mark, proto, &tag).await?;
            ensure!(
                record.src == expected,
                "{verb} from {} left as {}, not {expected}",
                pod.name(),
                record.src
            );
        }
    }
    Ok(())
}

async fn is_ready(cluster: &Cluster, node: &str) -> Result<bool> {
    let node = Api::<core::Node>::all(cluster.client()).get(node).await?;
    let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
    Ok(conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn two_clusters_with_equal_ranges_leave_as_their_nodes_and_go_without_a_trace() -> Result<()> {
    let arena = Arena::up(&spec("a:1,b:1")?).await?;
    let (plan, dirs) = (arena.plan().clone(), arena.dirs().clone());
    let (a, b) = (arena.cluster("a").await?, arena.cluster("b").await?);

    let in_a = a.pod("default", "in-a", &[("app", "client")], None).await?;
    let in_b = b.pod("default", "in-b", &[("app", "client")], None).await?;
    assert_eq!(
        in_a.addresses(),
        in_b.addresses(),
        "equal pod ranges must give equal addresses"
    );
    leaves_as(&arena, &in_a, &arena.node("a-n1")?).await?;
    leaves_as(&arena, &in_b, &arena.node("b-n1")?).await?;

    // The short way into a pod sends the same packets.
    let mark = arena.outside().mark()?;
    let target = format!("{}:{ECHO_PORT}", OUTSIDE_V4[0]);
    in_a.run(&["probe", "tcp", &target, "--tag", "short"])
        .await?
        .success()?;
    assert_eq!(
        seen(&arena, mark, Protocol::Tcp, "short").await?.src,
        IpAddr::from(arena.node("a-n1")?.plan().ipv4)
    );
    // A command that fails says so.
    assert_eq!(in_a.exec(&["sh", "-c", "echo no >&2; exit 3"]).await?.code, 3);

    kubernetes_is_whole(&a, &in_a).await?;
    power_cycle(&arena, &a, &in_a).await?;
    faults(&arena, &a, &in_a).await?;

    arena.down().await?;
    let left = lifecycle::leftovers(&dirs, &plan)?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Parts that only show when used: logs, service account tokens, a Service, a hostPath mount, admission policies.
async fn kubernetes_is_whole(cluster: &Cluster, pod: &Pod) -> Result<()> {
    cluster
        .apply(
            r#"
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec: {selector: {app: echo}, ports: [{port: 80, targetPort: 7000}], ipFamilyPolicy: RequireDualStack}
---
apiVersion: v1
kind: Pod
metadata: {name: echo, namespace: default, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: probe, image: "docker.io/spillway/probe:dev", imagePullPolicy: Never, args: [serve]}
---
apiVersion: v1
kind: Pod
metadata: {name: privileged, namespace: default}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: probe
    image: docker.io/spillway/probe:dev
    imagePullPolicy: Never
    command: [sh, -c, "echo hello; touch /host/etc/cni/net.d/touched /host/opt/cni/bin/touched; exec probe sleep"]
    securityContext: {privileged: true}
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: /}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-teapots}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]}
  validations: [{expression: "object.metadata.name != 'teapot'", message: "no teapots here"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-teapots}
spec: {policyName: no-teapots, validationActions: [Deny]}
"#,
        )
        .await?;
    cluster
        .kubectl(&[
            "wait",
            "--for=condition=Ready",
            "pod/echo",
            "pod/privileged",
            "--timeout=60s",
        ])
        .await?;
    let service = cluster
        .kubectl(&["get", "service", "echo", "-o", "jsonpath={.spec.clusterIPs[*]}"])
        .await?;
    for address in service.split_whitespace().map(str::parse::<IpAddr>) {
        let target = std::net::SocketAddr::new(address?, 80).to_string();
        eventually(Duration::from_secs(20), "the Service answers", || async {
            pod.exec(&["probe", "tcp", &target]).await?.success()
        })
        .await?;
    }
    let logs = cluster.kubectl(&["logs", "privileged"]).await?;
    ensure!(logs.trim() == "hello", "kubectl logs: {logs:?}");
    let node = pod.node()?;
    node.exec(&[
        "ls",
        "/etc/cni/net.d/touched",
        "/opt/cni/bin/touched",
        "/var/log/pods",
    ])
    .await?
    .success()?;
    ensure!(
        !std::path::Path::new("/etc/cni/net.d/touched").exists(),
        "a node writes into the machine's own /etc"
    );
    let token = pod
        .exec(&["cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"])
        .await?
        .success()?;
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token),
            ..Default::default()
        },
        ..Default::default()
    };
    let review = Api::<TokenReview>::all(cluster.client())
        .create(&PostParams::default(), &review)
        .await?;
    let user = review.status.and_then(|s| s.user).and_then(|u| u.username);
    ensure!(
        user.as_deref() == Some("system:serviceaccount:default:default"),
        "the pod's token is {user:?}'s"
    );
    eventually(
        Duration::from_secs(30),
        "the admission policy refuses a teapot",
        || async {
            let refused = cluster
                .kubectl(&["create", "configmap", "teapot", "--dry-run=server"])
                .await;
            let text = refused.err().map(|e| format!("{e:#}")).unwrap_or_default();
            ensure!(text.contains("no teapots here"), "not refused: {text:?}");
            Ok(())
        },
    )
    .await
}

async fn power_cycle(arena: &Arena, cluster: &Cluster, pod: &Pod) -> Result<()> {
    let node = pod.node()?;
    let other = arena.node("b-n1")?;
    let ping = ["ping", "-c1", "-W1", &node.plan().ipv4.to_string()].map(str::to_owned);
    let ping: Vec<&str> = ping.iter().map(String::as_str).collect();
    other.exec(&ping).await?.success()?;
    node.exec(&["nft", "add", "table", "ip", "volatile"])
        .await?
        .success()?;

    node.power_off().await?;
    ensure!(
        !node.is_on() && node.exec(&["true"]).await.is_err(),
        "a machine that is off runs a command"
    );
    ensure!(
        other.exec(&ping).await?.code != 0,
        "a machine that is off answers ARP"
    );

    node.power_on().await?;
    eventually(Duration::from_secs(60), "the node's pod is back", || async {
        ensure!(is_ready(cluster, node.name()).await?, "node isn't Ready");
        pod.exec(&["true"]).await?.success()
    })
    .await?;
    other.exec(&ping).await?.success()?;
    ensure!(
        node.exec(&["nft", "list", "table", "ip", "volatile"]).await?.code != 0,
        "kernel state outlived the power cut"
    );
    Ok(())
}

/// Killed daemons, a pulled cable, a hung machine, a control plane without power: each is felt, and each can be undone.
async fn faults(arena: &Arena, cluster: &Cluster, pod: &Pod) -> Result<()> {
    let (node, other) = (pod.node()?, arena.node("b-n1")?);
    let address = node.plan().ipv4.to_string();
    let ping = ["ping", "-c1", "-W1", address.as_str()];

    let kubelets = |node: &Node| -> Result<Vec<i32>> {
        Ok(node.processes("kubelet")?.iter().map(|p| p.id.pid).collect())
    };
    let before = kubelets(&node)?;
    node.kill("kubelet")?;
    eventually(
        Duration::from_secs(10),
        "the kubelet is started again",
        || async {
            let now = kubelets(&node)?;
            ensure!(!now.is_empty() && now != before, "{now:?}");
            Ok(())
        },
    )
    .await?;

    node.cable(false)?;
    ensure!(
        other.exec(&ping).await?.code != 0,
        "a pulled cable carries packets"
    );
    node.cable(true)?;
    eventually(
        Duration::from_secs(10),
        "the cable carries packets again",
        || async { other.exec(&ping).await?.success() },
    )
    .await?;

    node.hang(true)?;
    other
        .exec(&ping)
        .await?
        .success()
        .context("a hung machine's kernel answers")?;
    let hung = tokio::time::timeout(Duration::from_secs(1), pod.exec(&["true"])).await;
    ensure!(!matches!(hung, Ok(Ok(_))), "a hung kubelet runs a command");
    node.hang(false)?;

    let control_plane = cluster.control_plane()?;
    control_plane.power_off().await?;
    ensure!(
        cluster
            .kubectl(&["get", "--raw=/readyz", "--request-timeout=1s"])
            .await
            .is_err(),
        "no API server answers"
    );
    pod.run(&["probe", "ping", &OUTSIDE_V4[0].to_string()])
        .await?
        .success()
        .context("pods carry on without it")?;
    control_plane.power_on().await?;
    eventually(
        Duration::from_secs(60),
        "the API server is back with what it had",
        || async { pod.exec(&["true"]).await?.success() },
    )
    .await?;
    Ok(())
}

/// A process of `arena up` is killed at a moment when half of everything exists; `down` still finds all of it.
async fn a_killed_up_is_cleaned_up_by_down() -> Result<()> {
    let spec = ArenaSpec::parse_short(&format!("k{}", std::process::id()), "a:1")?;
    let (plan, dirs) = (spec.plan()?, Dirs::new(&spec.name)?);
    let mut up = tokio::process::Command::new(env!("CARGO_BIN_EXE_arena"))
        .args(["--name", &spec.name, "up", "--clusters", "a:1"])
        .kill_on_drop(true)
        .spawn()?;
    eventually(Duration::from_secs(120), "the node is being started", || async {
        ensure!(netns::path(&plan.machine("a-n1")?.netns).exists(), "not yet");
        Ok(())
    })
    .await?;
    up.kill().await?;
    let name = spec.name.clone();
    tokio::task::spawn_blocking(move || lifecycle::down(&name)).await??;
    let left = lifecycle::leftovers(&dirs, &plan)?;
    assert!(left.is_empty(), "{left:?}");
    assert!(process::marked(&dirs.mark()).is_empty());
    Ok(())
}

//! Group `arena`: the arena itself, and what the other scenarios take for granted about it.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    core::v1 as core,
};
use kube::{Api, api::PostParams};
use spillway_e2e::{
    Arena, ArenaSpec, Cluster, Need, Node, Pod, Protocol, Record, eventually, lifecycle,
    node::process,
    state::Dirs,
    wire::{
        Direction,
        address::{ECHO_PORT, OUTSIDE_V4, OUTSIDE_V6},
        netns,
    },
};

use crate::shared::{Scenario, scenario};

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!("arena", alone self::two_clusters_with_equal_ranges_leave_as_their_nodes_and_go_without_a_trace)
            .needing(&[Need::Namespaces]),
        scenario!("arena", alone self::a_killed_up_is_cleaned_up_by_down).needing(&[Need::Namespaces]),
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
    half_open(&arena, &in_a).await?;
    narrower_path(&arena, &in_a).await?;
    whole_cluster_off(&arena, &b, &in_b).await?;

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
    let ping = ping_of(&address);

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

/// What a node received by its card and sent by it, in packets.
async fn counters(node: &Node) -> Result<(u64, u64)> {
    let said = node
        .exec(&[
            "sh",
            "-c",
            "cat /sys/class/net/eth0/statistics/rx_packets /sys/class/net/eth0/statistics/tx_packets",
        ])
        .await?
        .success()?;
    let (received, sent) = said.split_once('\n').context("two counters")?;
    Ok((received.trim().parse()?, sent.trim().parse()?))
}

/// Each direction alone is dropped, the other passes, both links stay up; a flapping cable ends plugged in.
async fn half_open(arena: &Arena, pod: &Pod) -> Result<()> {
    let (node, other) = (pod.node()?, arena.node("b-n1")?);
    let address = node.plan().ipv4.to_string();
    let ping = ping_of(&address);
    let target = format!("{}:{ECHO_PORT}", OUTSIDE_V4[0]);
    for direction in [Direction::Receive, Direction::Send] {
        // Neighbours are known beforehand: what follows is about the packets themselves.
        other.exec(&ping).await?.success()?;
        pod.run(&["probe", "udp", &target]).await?.success()?;
        node.half_open(Some(direction))?;
        let (mark, before) = (arena.outside().mark()?, counters(&node).await?);
        let tag = format!("half-{direction:?}");
        let datagram = ["probe", "udp", &target, "--tag", &tag, "--timeout", "300ms"];
        let (answer, reply) = tokio::join!(pod.run(&datagram), other.exec(&ping));
        ensure!(
            answer?.code != 0 && reply?.code != 0,
            "{direction:?} is dropped and yet there are answers"
        );
        let (after, arrived) = (counters(&node).await?, arena.outside().tagged_since(mark, &tag)?);
        match direction {
            Direction::Receive => {
                ensure!(arrived.len() == 1, "what the node sends doesn't arrive");
                ensure!(after.0 == before.0, "the node receives: {before:?} {after:?}");
            }
            Direction::Send => {
                ensure!(arrived.is_empty(), "what the node sends arrives: {arrived:?}");
                ensure!(after.0 > before.0, "the node receives nothing");
            }
        }
        node.exec(&["grep", "-q", "1", "/sys/class/net/eth0/carrier"])
            .await?
            .success()
            .context("the node was told")?;
        node.half_open(None)?;
        other.exec(&ping).await?.success()?;
    }
    node.flap(Duration::from_millis(40), 3).await?;
    eventually(
        Duration::from_secs(10),
        "the cable carries packets after flapping",
        || async { other.exec(&ping).await?.success() },
    )
    .await
    .map(drop)
}

fn ping_of(address: &str) -> [&str; 4] {
    ["ping", "-c1", "-W1", address]
}

/// A path that gets narrower says so to both ends, and all bytes arrive.
async fn narrower_path(arena: &Arena, pod: &Pod) -> Result<()> {
    let told = async |v6: bool| -> Result<u64> {
        let (file, name) = if v6 {
            ("/proc/net/snmp6", "Icmp6InPktTooBigs")
        } else {
            ("/proc/net/snmp", "InDestUnreachs")
        };
        let said = pod.exec(&["cat", file]).await?.success()?;
        let lines: Vec<Vec<&str>> = said.lines().map(|l| l.split_whitespace().collect()).collect();
        let value = if v6 {
            lines.iter().find(|l| l[0] == name).map(|l| l[1])
        } else {
            let mut icmp = lines.iter().filter(|l| l[0] == "Icmp:");
            let (names, values) = (icmp.next().context("names")?, icmp.next().context("values")?);
            names.iter().position(|n| *n == name).map(|at| values[at])
        };
        Ok(value.context("a counter")?.parse()?)
    };
    let transfer = async |v6: bool| -> Result<()> {
        let host = if v6 {
            format!("[{}]", OUTSIDE_V6[0])
        } else {
            OUTSIDE_V4[0].to_string()
        };
        for (verb, port) in [("send", 7002), ("recv", 7003)] {
            pod.run(&["probe", verb, &format!("{host}:{port}"), "--bytes", "1000000"])
                .await?
                .success()?;
        }
        Ok(())
    };
    for v6 in [false, true] {
        let before = told(v6).await?;
        transfer(v6).await?;
        ensure!(told(v6).await? == before, "a wide path was called too narrow");
        arena.set_path_mtu(Some(1300))?;
        let narrow = transfer(v6).await;
        arena.set_path_mtu(None)?;
        narrow.context("through the narrow path")?;
        ensure!(told(v6).await? > before, "nobody was told of the narrow path");
    }
    Ok(())
}

/// All machines of a cluster lose power together, and it comes back with what it had.
async fn whole_cluster_off(arena: &Arena, cluster: &Cluster, pod: &Pod) -> Result<()> {
    cluster.power_off().await?;
    for machine in [pod.node()?, cluster.control_plane()?] {
        let address = machine.plan().ipv4.to_string();
        let answer = arena.node("a-n1")?.exec(&ping_of(&address)).await?;
        ensure!(
            answer.code != 0 && !machine.is_on(),
            "{} answers without power",
            machine.name()
        );
    }
    cluster.power_on().await?;
    eventually(Duration::from_secs(60), "the cluster is back", || async {
        ensure!(is_ready(cluster, pod.node()?.name()).await?, "node isn't Ready");
        pod.exec(&["true"]).await?.success()
    })
    .await
    .map(drop)
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

//! Objects as real clusters have them, cut to what matters, and hostile ones.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use proptest::prelude::*;
use serde_json::{Value, json};
use spillway_crds::member::{ClusterNetworkSpec, SourceState, StrayPod};

use super::*;
use crate::node::fixtures;

type Source = fn(&[Value]) -> Found;

/// Every source that reads objects of others.
const SOURCES: [(&str, Source); 9] = [
    ("calico", |o| calico(o)),
    ("flannel", |o| flannel(o)),
    ("weave", |o| weave(o)),
    ("spider_pools", |o| spider_pools(o)),
    ("spider_coordinators", |o| spider_coordinators(o)),
    ("cilium_config", |o| cilium_config(o)),
    ("cilium_nodes", |o| cilium_nodes(o)),
    ("cilium_pools", |o| cilium_pools(o)),
    ("kubeadm", |o| kubeadm(o)),
];

fn ranges(found: &Found) -> String {
    let list: Vec<_> = found.ranges.iter().map(ToString::to_string).collect();
    list.join(" ")
}

/// What a source makes of objects: its ranges, and a piece of each fault.
#[track_caller]
fn check(source: Source, objects: &[Value], expected: &str, faults: &[&str]) {
    let found = source(objects);
    assert_eq!(ranges(&found), expected, "{objects:?}");
    assert_eq!(found.faults.len(), faults.len(), "{:?}", found.faults);
    for (fault, piece) in found.faults.iter().zip(faults) {
        assert!(fault.contains(piece), "{fault:?} lacks {piece:?}");
    }
}

fn config_map(name: &str, key: &str, text: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {key: text}})
}

#[test]
fn calicos_pools() {
    let pool = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    check(
        |o| calico(o),
        &[
            pool(
                "default-ipv4-ippool",
                json!({"cidr": "192.168.0.0/16", "blockSize": 26, "ipipMode": "Always", "natOutgoing": true,
                       "nodeSelector": "all()", "vxlanMode": "Never", "allowedUses": ["Workload", "Tunnel"]}),
            ),
            pool("v6", json!({"cidr": "fd00:10:244::/64", "blockSize": 122})),
            pool("old", json!({"cidr": "10.1.0.0/16", "disabled": true})),
            pool(
                "lb",
                json!({"cidr": "203.0.113.0/24", "allowedUses": ["LoadBalancer"]}),
            ),
        ],
        "10.1.0.0/16 192.168.0.0/16 fd00:10:244::/64",
        &[],
    );
    check(
        |o| calico(o),
        &[
            pool("all", json!({"cidr": "0.0.0.0/0"})),
            pool("none", json!({})),
            pool("number", json!({"cidr": 10})),
            pool("good", json!({"cidr": "10.2.0.0/16"})),
        ],
        "10.2.0.0/16",
        &[
            "IPPool all, spec.cidr: 0.0.0.0/0 is wider",
            "IPPool none",
            "IPPool number",
        ],
    );
}

#[test]
fn flannels_net_conf() {
    let conf = |text: &str| config_map("kube-flannel-cfg", "net-conf.json", text);
    check(
        |o| flannel(o),
        &[conf(
            "{\n  \"Network\": \"10.244.0.0/16\",\n  \"EnableNFTables\": false,\n  \"Backend\": {\"Type\": \"vxlan\"}\n}\n",
        )],
        "10.244.0.0/16",
        &[],
    );
    check(
        |o| flannel(o),
        &[conf(
            r#"{"Network": "10.42.0.0/16", "EnableIPv6": true, "IPv6Network": "2001:cafe:42::/56"}"#,
        )],
        "10.42.0.0/16 2001:cafe:42::/56",
        &[],
    );
    check(
        |o| flannel(o),
        &[conf(r#"{"Network": "", "EnableIPv4": false}"#)],
        "",
        &[],
    );
    check(|o| flannel(o), &[conf("{")], "", &["is no JSON"]);
    check(|o| flannel(o), &[conf("[1]")], "", &[]);
    check(
        |o| flannel(o),
        &[config_map("kube-flannel-cfg", "cni-conf.json", "{}")],
        "",
        &["no such key"],
    );
}

#[test]
fn weaves_environment() {
    let weave_net = |env: Value| {
        json!({"metadata": {"name": "weave-net"}, "spec": {"template": {"spec": {"containers": [
            {"name": "weave", "env": env}, {"name": "weave-npc", "env": [{"name": "IPALLOC_RANGE", "value": "1.0.0.0/9"}]},
        ]}}}})
    };
    let host = json!({"name": "HOSTNAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}});
    check(|o| weave(o), &[weave_net(json!([host]))], "10.32.0.0/12", &[]);
    check(|o| weave(o), &[weave_net(Value::Null)], "10.32.0.0/12", &[]);
    let set = json!([host, {"name": "IPALLOC_RANGE", "value": "10.50.0.0/16"}]);
    check(|o| weave(o), &[weave_net(set)], "10.50.0.0/16", &[]);
    let elsewhere =
        json!([{"name": "IPALLOC_RANGE", "valueFrom": {"configMapKeyRef": {"name": "w", "key": "r"}}}]);
    check(
        |o| weave(o),
        &[weave_net(elsewhere)],
        "",
        &["comes from elsewhere"],
    );
    check(|o| weave(o), &[], "", &[]);
}

#[test]
fn spiderpools_pools_and_coordinators() {
    let pool = |spec: Value| json!({"metadata": {"name": "p"}, "spec": spec});
    check(
        |o| spider_pools(o),
        &[
            pool(
                json!({"ipVersion": 4, "subnet": "172.31.192.0/20", "gateway": "172.31.207.253",
                "ips": ["172.31.199.180-172.31.199.183", "172.31.199.205"], "excludeIPs": ["172.31.199.181"]}),
            ),
            pool(json!({"subnet": "172.18.0.0/24"})),
            pool(json!({"ipVersion": 6, "subnet": "fd00:172::/64", "ips": ["fd00:172::10-fd00:172::11"]})),
        ],
        "172.18.0.0/24 172.31.199.180/30 172.31.199.205/32 fd00:172::10/127",
        &[],
    );
    check(
        |o| spider_pools(o),
        &[
            pool(json!({"subnet": "10.0.0.0/24", "ips": ["0.0.0.0-255.255.255.255"]})),
            pool(
                json!({"subnet": "10.0.0.0/24", "ips": ["10.0.0.9-10.0.0.1", "10.0.0.9-fd00::1", "a-b-c", 7]}),
            ),
        ],
        "",
        &["wider than /8", "no range", "no range", "no range", "no string"],
    );
    let coordinator = |status: Value| json!({"metadata": {"name": "default"}, "spec": {"podCIDRType": "calico"}, "status": status});
    check(
        |o| spider_coordinators(o),
        &[coordinator(
            json!({"phase": "Synced", "overlayPodCIDR": ["10.222.64.0/18", "10.223.64.0/18"],
            "serviceCIDR": ["10.233.0.0/18"]}),
        )],
        "10.222.64.0/18 10.223.64.0/18 10.233.0.0/18",
        &[],
    );
    check(
        |o| spider_coordinators(o),
        &[coordinator(
            json!({"phase": "NotReady", "overlayPodCIDR": [], "serviceCIDR": "x"}),
        )],
        "",
        &["is no list", "is NotReady"],
    );
}

#[test]
fn ciliums_objects() {
    check(
        |o| cilium_config(o),
        &[json!({"metadata": {"name": "cilium-config"}, "data": {
            "ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.0.0.0/8 10.128.0.0/9", "cluster-pool-ipv4-mask-size": "24",
            "cluster-pool-ipv6-cidr": "fd00::/104", "ipv4-native-routing-cidr": "172.16.0.0/12"}})],
        "10.0.0.0/8 10.128.0.0/9 fd00::/104",
        &[],
    );
    check(
        |o| cilium_nodes(o),
        &[
            json!({"metadata": {"name": "n1"}, "spec": {"addresses": [{"ip": "192.0.2.7", "type": "InternalIP"},
                {"ip": "10.0.1.99", "type": "CiliumInternalIP"}], "ipam": {"podCIDRs": ["10.0.1.0/24", "fd00::100/120"]}}}),
            json!({"metadata": {"name": "n2"}, "spec": {"ipam": {"pools": {"allocated": [
                {"pool": "default", "cidrs": ["10.10.4.0/27"]}, {"pool": "mars", "cidrs": [{"cidr": "10.20.0.0/27"}]}]}}}}),
            json!({"metadata": {"name": "eni"}, "spec": {"ipam": {"pool": {"10.9.0.4": {"resource": "eni-1"}}}}}),
        ],
        "10.0.1.0/24 10.0.1.99/32 10.9.0.4/32 10.10.4.0/27 10.20.0.0/27 192.0.2.7/32 fd00::100/120",
        &[],
    );
    check(
        |o| cilium_pools(o),
        &[
            json!({"metadata": {"name": "mars"}, "spec": {"ipv4": {"cidrs": ["10.20.0.0/16"], "maskSize": 27},
            "ipv6": {"cidrs": ["fd00:20::/64"], "maskSize": 80}}}),
        ],
        "10.20.0.0/16 fd00:20::/64",
        &[],
    );
}

#[test]
fn kubeadms_record() {
    let record = |text: &str| config_map("kubeadm-config", "ClusterConfiguration", text);
    check(
        |o| kubeadm(o),
        &[record(
            "apiServer: {}\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.34.0\n\
             networking:\n  dnsDomain: cluster.local\n  podSubnet: 10.244.0.0/16,fd00:10:244::/56\n  serviceSubnet: 10.96.0.0/16\n",
        )],
        "10.96.0.0/16 10.244.0.0/16 fd00:10:244::/56",
        &[],
    );
    check(
        |o| kubeadm(o),
        &[record("networking: {serviceSubnet: 10.96.0.0/12}\n")],
        "10.96.0.0/12",
        &[],
    );
    check(
        |o| kubeadm(o),
        &[record("networking: {podSubnet: [1]}\n")],
        "",
        &["is no string"],
    );
    check(|o| kubeadm(o), &[record("a: [\n")], "", &["is no YAML"]);
    // A billion laughs.
    let line = |i: i32| {
        let alias = format!("*a{},", i - 1).repeat(10);
        format!("a{i}: &a{i} [{}]\n", alias.trim_end_matches(','))
    };
    let lines: String = (1..12).map(line).collect();
    let bomb = format!("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n{lines}");
    check(|o| kubeadm(o), &[record(&bomb)], "", &["is no YAML"]);
    let deep = format!("a: {}", "[".repeat(100_000));
    check(|o| kubeadm(o), &[record(&deep)], "", &["is no YAML"]);
}

#[test]
fn the_controller_managers_flags() {
    let pod = |command: Value, args: Value| json!({"metadata": {"name": "kube-controller-manager-cp"}, "spec": {"containers": [{"command": command, "args": args}]}});
    let flags = |pods: &[Value]| controller_manager(pods);
    check(
        flags,
        &[pod(
            json!([
                "kube-controller-manager",
                "--allocate-node-cidrs=true",
                "--cluster-cidr=10.244.0.0/16,fd00::/56",
                "--cluster-name=kubernetes",
                "--service-cluster-ip-range=10.96.0.0/12"
            ]),
            Value::Null,
        )],
        "10.96.0.0/12 10.244.0.0/16 fd00::/56",
        &[],
    );
    check(
        flags,
        &[pod(
            json!(["/bin/kcm"]),
            json!(["--cluster-cidr", "10.1.0.0/16", "--cluster-cidr"]),
        )],
        "10.1.0.0/16",
        &[],
    );
    check(
        flags,
        &[pod(json!(["--cluster-cidr=no"]), json!(7))],
        "",
        &["Pod kube-controller-manager-cp, --cluster-cidr"],
    );
}

#[test]
fn nodes_annotations() {
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": "n1", "annotations": {
            "kube-router.io/pod-cidrs": "10.5.1.0/24,fd00:5:1::/64", "kube-router.io/pod-cidr": "10.5.1.0/24",
            "flannel.alpha.coreos.com/public-ip": "192.0.2.9", "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1}"}},
        "spec": {"podCIDR": "10.5.1.0/24", "podCIDRs": ["10.5.1.0/24", "bad"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}, {"type": "Hostname", "address": "n1"}]},
    }))
    .expect("a node");
    assert_eq!(
        ranges(&node_annotations([&node])),
        "10.5.1.0/24 192.0.2.9/32 fd00:5:1::/64"
    );
    let pods = node_pod_ranges([&node]);
    assert_eq!(ranges(&pods), "10.5.1.0/24");
    assert_eq!(
        pods.faults,
        ["Node n1, spec.podCIDRs: \"bad\" is neither a CIDR nor an address"]
    );
    assert_eq!(ranges(&node_addresses([&node])), "192.0.2.9/32");
}

#[test]
fn a_node_annotates_no_more_than_a_node_can_have() {
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1", "annotations": {
        "kube-router.io/pod-cidrs": "198.51.0.0/16, 10.5.16.0/20", "flannel.alpha.coreos.com/public-ip": "198.51.100.0/24"}}}))
    .expect("a node");
    let found = node_annotations([&node]);
    assert_eq!(ranges(&found), "10.5.16.0/20");
    assert_eq!(found.faults.len(), 2, "{:?}", found.faults);
    assert!(found.faults[0].contains("198.51.0.0/16 is wider than /20"));
}

fn read(list: &str) -> Reading {
    let mut found = Found::default();
    found.list(list, "there");
    Reading::Read(found)
}

fn outcome(before: Option<&ClusterNetworkSpec>, readings: &[(&'static str, Reading)]) -> Option<Outcome> {
    combine(before, readings.iter().cloned().collect())
}

fn given(outcome: &Outcome) -> BTreeMap<&str, String> {
    let sources = outcome.spec.sources.iter();
    sources.map(|s| (s.source.as_str(), s.cidrs.join(" "))).collect()
}

#[test]
fn a_source_that_fails_keeps_what_it_gave_and_one_that_is_gone_doesnt() {
    let first = outcome(None, &[("a", read("10.1.0.0/16")), ("b", read("10.2.0.0/16"))]).expect("all read");
    assert_eq!(
        outcome(
            Some(&first.spec),
            &[("a", Reading::Pending), ("b", read("10.3.0.0/16"))]
        ),
        None
    );
    for failed in [Reading::Failed("away".into()), Reading::Forbidden("no".into())] {
        let later = outcome(Some(&first.spec), &[("a", failed), ("b", read("10.3.0.0/16"))]).expect("known");
        assert_eq!(
            given(&later),
            [("a", "10.1.0.0/16".into()), ("b", "10.3.0.0/16".into())].into()
        );
    }
    let faulty = outcome(Some(&first.spec), &[("a", read("10.9.0.0/16 0.0.0.0/0"))]).expect("known");
    assert_eq!(given(&faulty)["a"], "10.1.0.0/16 10.9.0.0/16");
    assert_eq!(faulty.sources[0].state, SourceState::Faulty);
    let gone = outcome(Some(&first.spec), &[("a", Reading::NotThere), ("b", read(""))]).expect("known");
    assert_eq!((gone.spec.sources.len(), gone.sources.len()), (0, 2));
}

#[test]
fn too_many_neighbours_are_merged_and_too_many_ranges_are_said() {
    let many = |step: u32| {
        let ranges = (0..5000u32)
            .map(|i| parse(&std::net::Ipv4Addr::from(0x0a00_0000 + i * step).to_string()).expect("range"));
        Reading::Read(Found {
            ranges: ranges.collect(),
            faults: Vec::new(),
        })
    };
    let merged = outcome(None, &[("a", many(1))]).expect("read");
    assert!(merged.spec.sources[0].cidrs.len() < 20);
    assert_eq!(merged.sources[0].state, SourceState::Read);
    let cut = outcome(None, &[("a", many(2))]).expect("read");
    assert_eq!(cut.spec.sources[0].cidrs.len(), 4096);
    assert_eq!(cut.sources[0].state, SourceState::Faulty);
    assert!(cut.sources[0].message.starts_with("904 ranges are left out"));
}

#[test]
fn the_condition_names_what_is_wrong_and_the_worst_first() {
    let sources = |readings: &[(&'static str, Reading)]| outcome(None, readings).expect("known").sources;
    let good = sources(&[("a", read("10.1.0.0/16")), ("b", Reading::NotThere)]);
    let verdict_of = |sources: &[_], strays: &[(&str, &StrayPod)]| {
        let v = verdict(sources, strays);
        (v.status, v.reason, v.message)
    };
    assert_eq!(
        verdict_of(&good, &[]),
        (Some(true), "Complete".into(), "1 ranges from 1 sources".into())
    );
    let bad = sources(&[
        ("a", Reading::Forbidden("ippools is forbidden".into())),
        ("b", read("x")),
        ("c", Reading::Failed("503".into())),
    ]);
    let (status, reason, message) = verdict_of(&bad, &[]);
    assert_eq!((status, reason.as_str()), (Some(false), "SourceFaulty"));
    assert!(
        message.contains("\"x\" is neither") && message.contains("localRanges"),
        "{message}"
    );
    let stray = StrayPod {
        namespace: "shop".into(),
        name: "client".into(),
        address: "10.9.0.7".into(),
    };
    let (status, reason, message) = verdict_of(&bad, &[("n1", &stray), ("n2", &stray)]);
    assert_eq!((status, reason.as_str()), (Some(false), "RangesIncomplete"));
    for piece in ["shop/client", "n1", "10.9.0.7", "localRanges", "(1 more like it)"] {
        assert!(message.contains(piece), "{message}");
    }
}

#[test]
fn a_pod_outside_of_all_ranges_is_a_stray() {
    let mut inputs = fixtures::source();
    assert_eq!(strays(&inputs), []);
    let mut pod = inputs.pods[0].clone();
    pod.addresses = ["10.244.0.9", "192.168.77.3", "fd77::3"]
        .map(|a| a.parse().expect("address"))
        .into();
    inputs.pods.push(pod.clone());
    let found: Vec<_> = strays(&inputs).into_iter().map(|s| s.address).collect();
    assert_eq!(found, ["192.168.77.3", "fd77::3"]);
    for hide in [
        |p: &mut crate::node::inputs::Pod| p.host_network = true,
        |p: &mut crate::node::inputs::Pod| p.finished = true,
    ] {
        let mut hidden = inputs.clone();
        hide(hidden.pods.last_mut().expect("a pod"));
        assert_eq!(strays(&hidden), []);
    }
    inputs.network.sources[0]
        .cidrs
        .extend(["192.168.77.0/24".into(), "fd77::/64".into()]);
    assert_eq!(strays(&inputs), []);
    inputs.network.sources.clear();
    assert_eq!(strays(&inputs).len(), 4, "a bounded number");
    inputs.plan = None;
    assert_eq!(strays(&inputs), []);
}

/// Any JSON, with the keys that sources look for.
fn wild() -> impl Strategy<Value = Value> {
    const KEYS: [&str; 24] = [
        "metadata",
        "name",
        "spec",
        "status",
        "data",
        "cidr",
        "cidrs",
        "ipam",
        "pools",
        "allocated",
        "podCIDRs",
        "pool",
        "addresses",
        "ip",
        "ips",
        "subnet",
        "template",
        "containers",
        "env",
        "value",
        "ipv4",
        "overlayPodCIDR",
        "net-conf.json",
        "ClusterConfiguration",
    ];
    let text = prop_oneof![
        any::<String>(),
        Just("10.0.0.0/16".to_owned()),
        Just("0.0.0.0/0".to_owned()),
        Just("::-ffff::".to_owned()),
        Just("{\"Network\": []}".to_owned()),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        let key = prop_oneof![
            prop::sample::select(&KEYS[..]).prop_map(str::to_owned),
            any::<String>()
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..6).prop_map(|m| m.into_iter().collect::<Value>()),
        ]
    })
}

proptest! {
    #[test]
    fn no_object_breaks_a_source_or_takes_everything(objects in prop::collection::vec(wild(), 0..4)) {
        let flags = controller_manager(&objects);
        for found in SOURCES.iter().map(|(_, source)| source(&objects)).chain([flags]) {
            prop_assert!(found.ranges.iter().all(|r| r.prefix_len() >= 8 && *r == r.trunc()));
            prop_assert!(found.faults.len() <= 8);
        }
    }
}

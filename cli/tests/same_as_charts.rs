//! What the CLI installs is what the charts install: both rendered with the same values and compared,
//! object by object. Needs helm: `HELM`, the arena's cache, or PATH.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use spillway_cli::manifest;
use spillway_cli::values::{HubValues, MemberValues};

fn helm() -> PathBuf {
    if let Some(path) = std::env::var_os("HELM") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_default();
    let built = std::fs::read_dir(cache.join("spillway/bin"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("helm"))
        .find(|path| path.is_file());
    // Where it is nowhere, running it says so.
    built.unwrap_or_else(|| "helm".into())
}

fn chart(side: &str, set: &[&str]) -> BTreeMap<String, Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/charts")
        .join(format!("spillway-{side}"));
    let mut command = Command::new(helm());
    command
        .arg("template")
        .arg(format!("spillway-{side}"))
        .arg(folder);
    // Only helm reads the annotation that `crds.keep` adds.
    command.args([
        "--namespace",
        "spillway-system",
        "--kube-version",
        "1.34.0",
        "--set",
        "crds.keep=false",
    ]);
    for value in set {
        command.args(["--set", value]);
    }
    let output = command
        .output()
        .expect("helm runs; `make e2e` builds one, and HELM names another");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    by_title(serde_saphyr::from_multiple(&text).expect("YAML"))
}

fn by_title(objects: Vec<Value>) -> BTreeMap<String, Value> {
    objects
        .into_iter()
        .filter(|object| !object.is_null() && manifest::kind(object) != "Namespace")
        .map(|object| (manifest::title(&object), object))
        .collect()
}

fn assert_same(chart: &BTreeMap<String, Value>, own: &BTreeMap<String, Value>, set: &[&str]) {
    assert_eq!(
        chart.keys().collect::<Vec<_>>(),
        own.keys().collect::<Vec<_>>(),
        "with {set:?}"
    );
    for (title, object) in chart {
        assert_eq!(
            object, &own[title],
            "{title} with {set:?}; if a template changed: `make generate`"
        );
    }
}

const IMAGE: [&str; 3] = [
    "image.registry=registry.example.org:5000/team",
    "image.tag=v7",
    "image.pullPolicy=Always",
];

#[test]
fn the_hub_is_the_charts() {
    let cases: [&[&str]; 5] = [
        &[],
        &IMAGE,
        &["replicas=3", "log=debug"],
        &["service.type=NodePort", "service.nodePort=30943"],
        &[
            "service.type=LoadBalancer",
            "endpoints={hub.example.org:9443,192.0.2.1:443}",
        ],
    ];
    for set in cases {
        let mut values = HubValues::default();
        for assignment in set {
            values
                .set(&assignment.parse().expect("an assignment"))
                .expect("a value of the chart");
        }
        assert_same(
            &chart("hub", set),
            &by_title(values.render().expect("renders")),
            set,
        );
    }
}

#[test]
fn the_member_is_the_charts() {
    let cases: [&[&str]; 8] = [
        &[],
        &IMAGE,
        &["nodeAgent.metricsPort=9465"],
        &["nodeAgent.metricsPort=0"],
        &["log=debug", "logFormat=json"],
        &["localRanges={10.32.0.0/12,fd00::/48}"],
        &["cni.mode=Off", "cni.waitSeconds=7"],
        &["cni.binDir=/usr/libexec/cni", "cni.confDir=/etc/cni/multus.d"],
    ];
    for set in cases {
        let mut values = MemberValues::default();
        for assignment in set {
            values
                .set(&assignment.parse().expect("an assignment"))
                .expect("a value of the chart");
        }
        assert_same(
            &chart("member", set),
            &by_title(values.render().expect("renders")),
            set,
        );
    }
}

#[test]
fn the_schema_refuses_what_no_chart_can_use() {
    for (side, wrong) in [
        ("hub", "replicas=0"),
        ("hub", "endpoints={hub}"),
        ("hub", "service.type=Ingress"),
        ("hub", "replica=2"),
        ("member", "image.pullPolicy=Sometimes"),
        ("member", "localRanges={10.0.0.0}"),
        ("member", "nodeAgent.metricsPort=70000"),
        ("member", "cni.mode=Maybe"),
        ("member", "cni.confDir=net.d"),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../deploy/charts")
            .join(format!("spillway-{side}"));
        let output = Command::new(helm())
            .arg("template")
            .arg("x")
            .arg(folder)
            .args(["--set", wrong])
            .output()
            .expect("helm runs");
        assert!(!output.status.success(), "{wrong} was taken");
    }
}

/// The CLI installs images of its own version, the charts those of their appVersion.
#[test]
fn chart_and_program_have_one_version() {
    for side in ["hub", "member"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../deploy/charts")
            .join(format!("spillway-{side}"))
            .join("Chart.yaml");
        let chart: Value =
            serde_saphyr::from_str(&std::fs::read_to_string(path).expect("Chart.yaml")).expect("YAML");
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    }
}

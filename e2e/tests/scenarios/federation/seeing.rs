//! What an operator sees: metrics, `spillway check`, `spillway gather`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use serde_json::Value;
use spillway_e2e::eventually;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE};
use spillway_telemetry::text::{Scrape, parse};

/// A gateway that no node forms: what is sent there is dropped, and counted.
const NOWHERE: &str = "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: nowhere}
spec:
  nodes: [{member: b, selector: {matchLabels: {no-node: has-this}}}]
  addresses: {ipv4: [203.0.113.42]}
";

/// A Secret of somebody else's in our namespace. No word of it may be in an archive.
const PLANTED: &str = "planted-0123456789-nobody-may-read-this";

/// All agents' metrics say what there is, the check has nothing to complain about, and the archive has everything but
/// secrets.
pub(crate) async fn metrics_check_and_gather_say_what_there_is(fed: &Federation) -> Result<()> {
    let story = fed.story("seeing").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.13",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.13")).await?;
    fed.apply_hub(NOWHERE).await?;
    story
        .policy("lost", "app=lost", "198.51.100.0/24", "nowhere", "203.0.113.42")
        .await?;
    let lost = story.pod_on("b", "lost", "app=lost", pod.node()).await?;
    lost.is_blocked(OUTSIDE).await?;
    story.programmed("bank").await?;

    let outcome = seen(fed, pod.node()).await;
    fed.hub().kubectl(&["delete", "egressgateway", "nowhere"]).await?;
    outcome?;
    story.end().await
}

async fn seen(fed: &Federation, node: &str) -> Result<()> {
    for cluster in ["hub", "a", "b"] {
        // Plans that were just published are on their way for a moment.
        eventually(PATIENCE, "the check has nothing to complain about", || async {
            let output = fed.spillway(cluster, &["check", "-o", "json"]).await?;
            let findings: Vec<Value> = serde_json::from_str(&output.stdout).context("findings")?;
            // The gateway without nodes and its policy are as wrong as they were meant to be.
            let wrong: Vec<_> = findings
                .iter()
                .filter(|f| {
                    !["gateway nowhere", "policy seeing/lost"]
                        .contains(&f["object"].as_str().unwrap_or_default())
                })
                .collect();
            ensure!(wrong.is_empty(), "{cluster}: {wrong:#?}");
            ensure!(
                (cluster == "hub") != findings.is_empty(),
                "{cluster}: {findings:#?}"
            );
            Ok(())
        })
        .await?;
    }
    for cluster in ["hub", "a", "b"] {
        let archive = gather(fed, cluster).await?;
        let nodes = fed.cluster(cluster)?.plan()?.kubernetes_nodes().count();
        complete(cluster, &archive, nodes)?;
        secrets_are_not_in(fed, cluster, &archive).await?;
        metrics(cluster, node, &archive, nodes)?;
    }
    Ok(())
}

type Archive = BTreeMap<String, String>;

async fn gather(fed: &Federation, cluster: &str) -> Result<Archive> {
    let kubectl = fed.cluster(cluster)?;
    let literal = format!("--from-literal=word={PLANTED}");
    kubectl
        .kubectl(&[
            "-n",
            "spillway-system",
            "create",
            "secret",
            "generic",
            "planted",
            &literal,
        ])
        .await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("archive.tar.gz");
    let name = file.to_str().context("a path")?;
    let gathered = fed.spillway_ok(cluster, &["gather", "--file", name]).await;
    kubectl
        .kubectl(&["-n", "spillway-system", "delete", "secret", "planted"])
        .await?;
    gathered?;
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(&file)
        .arg("-C")
        .arg(directory.path())
        .status()?;
    ensure!(unpacked.success(), "the archive can't be unpacked");
    let mut files = Archive::new();
    for entry in std::fs::read_dir(directory.path())? {
        let root = entry?.path();
        if root.is_dir() {
            read(&root, &root, &mut files)?;
        }
    }
    Ok(files)
}

fn read(root: &Path, directory: &Path, files: &mut Archive) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            read(root, &path, files)?;
        } else {
            let name = path.strip_prefix(root)?.display().to_string();
            files.insert(name, std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// Nothing is missing, and what is there is what it is called.
fn complete(cluster: &str, archive: &Archive, nodes: usize) -> Result<()> {
    let manifest: Value = serde_json::from_str(archive.get("manifest.json").context("a manifest")?)?;
    ensure!(
        manifest["missing"] == serde_json::json!([]),
        "{cluster}: {:#}",
        manifest["missing"]
    );
    let names: Vec<&String> = archive.keys().collect();
    let group = if cluster == "hub" {
        "spillway.io"
    } else {
        "member.spillway.io"
    };
    for wanted in [
        format!("objects/{group}-v1alpha1/"),
        "cluster/events.json".into(),
        "cluster/pods.json".into(),
        "check.json".into(),
        "logs/spillway-".into(),
    ] {
        ensure!(
            names.iter().any(|n| n.starts_with(&wanted)),
            "{cluster}: no {wanted} in {names:#?}"
        );
    }
    if cluster != "hub" {
        let shown = archive.iter().filter(|(n, _)| n.ends_with("/show.txt"));
        let whole = shown
            .filter(|(_, text)| text.contains("table inet spillway"))
            .count();
        ensure!(whole == nodes, "{cluster}: {whole} of {nodes} nodes are shown");
    }
    Ok(())
}

/// Fields of Secrets that are none: names, times, and certificates, which are public.
const PUBLIC: [&str; 13] = [
    "member",
    "expires",
    "used",
    "labels",
    "partition",
    "rejoin",
    "serials",
    "used-by",
    "epoch",
    "hub-id",
    "hub_id",
    "ca.crt",
    "tls.crt",
];

/// No line of any Secret is in the archive.
async fn secrets_are_not_in(fed: &Federation, cluster: &str, archive: &Archive) -> Result<()> {
    let secrets = fed
        .cluster(cluster)?
        .kubectl(&["-n", "spillway-system", "get", "secrets", "-o", "json"])
        .await?;
    let secrets: Value = serde_json::from_str(&secrets)?;
    let mut looked_for = vec![PLANTED.to_owned()];
    for secret in secrets["items"].as_array().context("secrets")? {
        for (key, value) in secret["data"].as_object().into_iter().flatten() {
            let coded = value.as_str().unwrap_or_default();
            let plain = base64::engine::general_purpose::STANDARD.decode(coded)?;
            let plain = String::from_utf8_lossy(&plain).into_owned();
            if !PUBLIC.contains(&key.as_str()) {
                looked_for.push(coded.to_owned());
                let lines = plain.lines().filter(|l| l.len() >= 16 && !l.starts_with("-----"));
                looked_for.extend(lines.map(str::to_owned));
            }
        }
    }
    for (name, text) in archive {
        let found = looked_for
            .iter()
            .position(|secret| text.contains(secret.as_str()));
        ensure!(
            found.is_none(),
            "{cluster}: {name} holds a secret, number {found:?}"
        );
        for mark in ["spw1.", "PRIVATE KEY-----"] {
            ensure!(!text.contains(mark), "{cluster}: {name} holds {mark}");
        }
    }
    ensure!(looked_for.len() > 2, "{cluster} has no secrets");
    Ok(())
}

/// Counts are whole.
fn is(value: f64, wanted: f64) -> bool {
    (value - wanted).abs() < 0.5
}

/// What each daemon's metrics must say in a federation that works.
fn metrics(cluster: &str, node: &str, archive: &Archive, count: usize) -> Result<()> {
    let of = |prefix: &str| -> Result<Vec<(&String, Scrape)>> {
        let all = archive.iter();
        let wanted =
            all.filter(|(n, _)| n.starts_with(&format!("pods/{prefix}")) && n.ends_with("metrics.txt"));
        wanted
            .map(|(n, text)| Ok((n, parse(text).map_err(|e| anyhow::anyhow!("{n}: {e}"))?)))
            .collect()
    };
    let holds = |what: bool, scrape: &(&String, Scrape), why: &str| -> Result<()> {
        ensure!(what, "{cluster}: {}: {why}: {:#?}", scrape.0, scrape.1.all());
        Ok(())
    };
    if cluster == "hub" {
        let hubs = of("spillway-hub")?;
        let sum = |name: &str| -> f64 { hubs.iter().filter_map(|(_, s)| s.value(name, &[])).sum() };
        ensure!(
            is(sum("spillway_hub_leader"), 1.0),
            "not one leader among {}",
            hubs.len()
        );
        ensure!(is(sum("spillway_hub_streams"), 2.0), "not two streams");
        ensure!(
            sum("spillway_hub_plan_acknowledge_seconds_count") >= 2.0,
            "no plan was timed"
        );
        for hub in &hubs {
            for member in ["a", "b"] {
                let connected = hub
                    .1
                    .value("spillway_hub_member_connected", &[("member", member)]);
                holds(connected == Some(1.0), hub, "a member isn't connected")?;
            }
            holds(
                hub.1.value("spillway_hub_unreadable_objects", &[]) == Some(0.0),
                hub,
                "held",
            )?;
        }
        return Ok(());
    }
    let members = of("spillway-member-agent")?;
    ensure!(members.len() == 1, "{} member agents", members.len());
    for member in &members {
        let value = |name: &str| member.1.value(name, &[]).unwrap_or_default();
        holds(
            is(value("spillway_member_connected"), 1.0),
            member,
            "not connected",
        )?;
        holds(
            is(value("spillway_member_plan_matches"), 1.0),
            member,
            "the plan isn't whole",
        )?;
        holds(
            value("spillway_member_certificate_expiry_timestamp_seconds") > 1.6e9,
            member,
            "no expiry",
        )?;
    }
    let nodes = of("spillway-node-agent")?;
    ensure!(
        nodes.len() == count,
        "{} node agents on {count} nodes",
        nodes.len()
    );
    let total = |name: &str, labels: &[(&str, &str)]| -> f64 {
        nodes.iter().filter_map(|(_, s)| s.value(name, labels)).sum()
    };
    for agent in &nodes {
        let value = |name: &str| agent.1.value(name, &[]).unwrap_or_default();
        holds(is(value("spillway_node_plan_current"), 1.0), agent, "not current")?;
        holds(
            value("spillway_node_last_apply_timestamp_seconds") > 1.6e9,
            agent,
            "nothing applied",
        )?;
        holds(
            agent.1.all().len() < 200,
            agent,
            "more series than a small federation has",
        )?;
    }
    if cluster == "b" {
        let blocked = total("spillway_node_dropped_packets_total", &[("reason", "blocked")]);
        ensure!(blocked > 0.0, "what {node} dropped wasn't counted");
        let granted = [("egress_ip", "203.0.113.13"), ("state", "granted")];
        ensure!(
            total("spillway_node_egress_ip_ports", &granted) > 0.0,
            "no ports of 203.0.113.13"
        );
        let added = total("spillway_node_cni_adds_total", &[("result", "programmed")]);
        ensure!(added >= 2.0, "{added} pods were programmed before they started");
    }
    Ok(())
}

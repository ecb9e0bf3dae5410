//! The table of `arena status`.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use comfy_table::{Table, presets::NOTHING};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};

use crate::{
    connect::connect,
    node::machine::Machine,
    state::{ClusterPlan, Dirs, MachinePlan, Plan},
};

/// How long an API server may take to answer before it counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(3);

/// A line a machine: power, readiness, addresses, pod ranges.
pub async fn table(dirs: &Dirs, plan: &Plan) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "CLUSTER",
        "MACHINE",
        "POWER",
        "STATE",
        "KUBERNETES",
        "ADDRESSES",
        "PODS",
    ]);
    for cluster in &plan.clusters {
        let nodes = tokio::time::timeout(PATIENCE, nodes(dirs, cluster)).await;
        let nodes = match nodes {
            Ok(Ok(nodes)) => Some(nodes),
            _ => None,
        };
        let version = cluster.spec.kubernetes.to_string();
        let mut row = |machine: &MachinePlan, state: &str, ranges: String| {
            let on = Machine::new(&machine.name, dirs.machine(&machine.name))
                .init()
                .is_some();
            table.add_row([
                cluster.spec.name.clone(),
                machine.name.clone(),
                if on { "on" } else { "off" }.to_owned(),
                state.to_owned(),
                version.clone(),
                format!("{}, {}", machine.ipv4, machine.ipv6),
                ranges,
            ]);
        };
        // Where it is one of the nodes it has its line as that.
        if cluster.machines().count() > cluster.nodes.len() {
            row(
                &cluster.control_plane,
                if nodes.is_some() {
                    "answers"
                } else {
                    "doesn't answer"
                },
                String::new(),
            );
        }
        for node in &cluster.nodes {
            let state = nodes.as_ref().map_or("?", |n| {
                n.get(&node.machine.name).map_or("not registered", String::as_str)
            });
            let ranges: Vec<_> = node.pod_ranges.iter().map(ToString::to_string).collect();
            row(&node.machine, state, ranges.join(", "));
        }
    }
    table
        .to_string()
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

async fn nodes(dirs: &Dirs, cluster: &ClusterPlan) -> Result<BTreeMap<String, String>> {
    let api: Api<Node> = Api::all(connect(&dirs.kubeconfig(&cluster.spec.name)).await?);
    let list = api.list(&ListParams::default()).await?;
    Ok(list
        .items
        .into_iter()
        .filter_map(|node| {
            let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
            let ready = conditions
                .iter()
                .find(|c| c.type_ == "Ready")
                .map(|c| c.status.as_str());
            let state = match ready {
                Some("True") => "Ready",
                Some("False") => "NotReady",
                _ => "Unknown",
            };
            Some((node.metadata.name?, state.to_owned()))
        })
        .collect())
}

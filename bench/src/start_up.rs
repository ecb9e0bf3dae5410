//! What the CNI plugin adds to a pod's start.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, Story};

use super::figures::Figures;

/// Sandboxes that are made and measured.
const SANDBOXES: usize = 100;
/// Where they are made.
const NODE: &str = "b-n1";

/// Makes sandboxes as the runtime does: the CNI's own plugin, then ours, each timed in microseconds. Arguments: how many,
/// namespace, pod, uid, the first plugin's configuration, ours without its end.
const CHAIN: &str = r#"
mkdir -p /var/run/netns
for n in $(seq "$1"); do
  ip netns add "bench$n"
  export CNI_CONTAINERID="bench$n" CNI_NETNS="/var/run/netns/bench$n" CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin
  export CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=$2;K8S_POD_NAME=$3;K8S_POD_UID=$4" CNI_COMMAND=ADD
  begin=$EPOCHREALTIME
  result=$(/opt/cni/bin/bridge <<< "$5") || { echo "$result"; exit 1; }
  middle=$EPOCHREALTIME
  said=$(/opt/cni/bin/spillway-cni <<< "$6,\"prevResult\":$result}") || { echo "$said"; exit 1; }
  end=$EPOCHREALTIME
  echo $((${middle/./} - ${begin/./})) $((${end/./} - ${middle/./}))
  export CNI_COMMAND=DEL
  /opt/cni/bin/spillway-cni <<< "$6,\"prevResult\":$result}"
  /opt/cni/bin/bridge <<< "$5"
  ip netns del "bench$n"
done
"#;

/// The plugin's part of a sandbox's start, beside that of the CNI's own plugin, for pods that a policy selects and for pods of
/// a namespace without one.
pub(crate) async fn by_the_cni_plugin(federation: &Federation, figures: &mut Figures) -> Result<()> {
    let story = federation.story("bench-cni").await?;
    let free = federation.story("bench-free").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.10",
        )
        .await?;
    story.programmed("bank").await?;
    for (story, what) in [
        (&story, "a pod that a policy selects"),
        (&free, "a pod of no policy"),
    ] {
        let (own, ours) = sandboxes(federation, story).await?;
        figures.percentiles(
            &format!("start of {what}: added by the CNI plugin"),
            &ours,
            "ms",
            Some(("the CNI's own plugin (bridge, host-local)", &own)),
        );
    }
    free.end().await?;
    story.end().await
}

/// Milliseconds that the CNI's own plugin and ours took for each sandbox of a pod of `story`.
async fn sandboxes(federation: &Federation, story: &Story<'_>) -> Result<(Vec<f64>, Vec<f64>)> {
    let pod = story.pod_on("b", "host", "app=billing", NODE).await?;
    // The sandboxes stand in for the first one's; the other's stays, as on a node that has pods of the policy already.
    let _stays = story.pod_on("b", "stays", "app=billing", NODE).await?;
    // Its node has seen it, as it has when a pod's first sandbox is made.
    let selected = story.namespace() == "bench-cni";
    let egress = if selected {
        Egress::Ip("203.0.113.10")
    } else {
        Egress::Node
    };
    pod.leaves_from(OUTSIDE, egress).await?;
    let list: Value = serde_json::from_str(&federation.cni_chain(NODE).await?)?;
    let plugins = list["plugins"].as_array().context("a list of plugins")?;
    let [own, ours] = &plugins[..] else {
        anyhow::bail!("a chain of two plugins was expected: {list}")
    };
    let configuration = |plugin: &Value| {
        let mut plugin = plugin.clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["name"] = json!("bench");
        plugin.to_string()
    };
    // Other addresses than the node's pods have.
    let mut own = own.clone();
    own["bridge"] = json!("bench0");
    own["ipam"] = json!({"type": "host-local", "ranges": [[{"subnet": "10.199.0.0/24"}]]});
    let (own, ours) = (configuration(&own), configuration(ours));
    let uid = federation
        .cluster("b")?
        .kubectl(&[
            "-n",
            story.namespace(),
            "get",
            "pod",
            "host",
            "-o",
            "jsonpath={.metadata.uid}",
        ])
        .await?;
    let count = SANDBOXES.to_string();
    let command = [
        "bash",
        "-c",
        CHAIN,
        "chain",
        &count,
        story.namespace(),
        "host",
        &uid,
        &own,
        ours.trim_end_matches('}'),
    ];
    let said = federation.node(NODE)?.exec(&command).await?.success()?;
    let mut times = (Vec::new(), Vec::new());
    for line in said.lines() {
        let (own, ours) = line
            .split_once(' ')
            .with_context(|| format!("two numbers, not {line:?}"))?;
        times
            .0
            .push(own.parse::<f64>().with_context(|| line.to_owned())? / 1e3);
        times
            .1
            .push(ours.parse::<f64>().with_context(|| line.to_owned())? / 1e3);
    }
    ensure!(
        times.0.len() == SANDBOXES,
        "{} sandboxes were timed",
        times.0.len()
    );
    pod.delete().await?;
    Ok(times)
}

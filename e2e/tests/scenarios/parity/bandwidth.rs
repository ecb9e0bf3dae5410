//! A policy whose pods may send so much only.

use anyhow::{Context as _, Result, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, StoryPod};
use spillway_e2e::probe::Throughput;

const EIP: &str = "203.0.113.12";
/// Of `rate: 20M`, a second.
const RATE: f64 = 2_500_000.0;
const SIZE: &str = "10000000";

fn policy(bandwidth: &str) -> String {
    format!(
        "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: metered}}
spec:
  pods: {{matchLabels: {{app: metered}}}}
  to: {{cidrs: [198.51.100.0/24]}}
  through: [{{gateway: frankfurt, egressIP: {{ipv4: {EIP}}}}}]
  {bandwidth}
"
    )
}

/// Moves [`SIZE`] bytes; answers how many seconds that took.
async fn moves(pod: &StoryPod<'_>, verb: &str) -> Result<f64> {
    let port = if verb == "send" { 7002 } else { 7003 };
    let target = format!("198.51.100.10:{port}");
    let said = pod.pod().run(&["probe", verb, &target, "--bytes", SIZE]).await?;
    let result: Throughput = serde_json::from_str(&said.success()?)?;
    ensure!(result.wrong.is_none(), "{result:?}");
    eprintln!(
        "      {}: {verb} {SIZE} bytes in {:.1} s",
        pod.node(),
        result.seconds
    );
    Ok(result.seconds)
}

/// Bytes that the node's limit has dropped, by its own table.
async fn dropped(fed: &Federation, node: &str) -> Result<u64> {
    let table = fed
        .node(node)?
        .exec(&["nft", "list", "table", "inet", "spillway"])
        .await?
        .success()?;
    let rule = table
        .lines()
        .find(|l| l.contains("limit rate over"))
        .context("no limit")?;
    let bytes = rule.split_whitespace().skip_while(|w| *w != "bytes").nth(1);
    Ok(bytes.with_context(|| rule.to_owned())?.parse()?)
}

/// The pods of one node share what their policy gives it, another node has as much for itself, nothing is limited of what they
/// receive, and an agent that starts anew leaves connections and limit alone.
pub(crate) async fn pods_of_a_node_share_their_policys_bandwidth(fed: &Federation) -> Result<()> {
    let story = fed.story("metered").await?;
    story.apply(&policy("bandwidth: {rate: 20M}")).await?;
    story.programmed("metered").await?;
    let (one, two, other) = (
        story.pod("a", "one", "app=metered").await?,
        story.pod("a", "two", "app=metered").await?,
        story.pod("b", "other", "app=metered").await?,
    );
    for pod in [&one, &two, &other] {
        pod.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;
    }
    // What a second gives passes at once.
    let least = |bytes: f64| (bytes - 1.1 * RATE) / RATE;
    let size: f64 = SIZE.parse()?;
    let (first, second, elsewhere) =
        futures::try_join!(moves(&one, "send"), moves(&two, "send"), moves(&other, "send"))?;
    ensure!(
        first.max(second) >= least(2.0 * size),
        "together {first} and {second} s are less than the limit allows"
    );
    ensure!(
        (least(size)..first.max(second)).contains(&elsewhere),
        "the other node took {elsewhere} s"
    );
    for node in [one.node(), other.node()] {
        ensure!(dropped(fed, node).await? > 0, "nothing was dropped on {node}");
    }
    let received = moves(&one, "recv").await?;
    ensure!(
        received < least(size),
        "what is received is limited: {received} s"
    );

    let (sent, restarted) = futures::join!(moves(&one, "send"), fed.restart_node_agent(one.node()));
    restarted?;
    let sent = sent?;
    ensure!(
        sent >= least(size),
        "the agent's restart lifted the limit: {sent} s"
    );

    story.apply(&policy("")).await?;
    story.programmed("metered").await?;
    let free = moves(&one, "send").await?;
    ensure!(free < least(size), "still limited: {free} s");
    story.end().await
}

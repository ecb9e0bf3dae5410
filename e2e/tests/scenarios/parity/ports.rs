//! Policies for some ports of a destination.

use anyhow::{Result, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, OUTSIDE_V6, Story};

const WEB: &str = "203.0.113.11";
const WEB_V6: &str = "2001:db8:113::11";
const NAMES: &str = "203.0.113.12";
const REST: &str = "203.0.113.20";
/// The same server as [`OUTSIDE`] at another port that answers with whom it saw.
const OTHER_PORT: &str = "198.51.100.10:7005";

fn policy(name: &str, ports: &str, gateway: &str, egress_ip: &str) -> String {
    format!(
        "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: {name}}}
spec:
  pods: {{matchLabels: {{app: billing}}}}
  to:
    cidrs: [198.51.100.0/24, '2001:db8:51::/64']
    ports: {ports}
  through: [{{gateway: {gateway}, egressIP: {egress_ip}}}]
"
    )
}

async fn effective(story: &Story<'_>, name: &str, reason: &str, word: &str) -> Result<()> {
    let condition = ("Effective", "True", reason);
    story.says("federatedegresspolicy", name, condition, word).await
}

/// One server: TCP 7000 is one policy's, UDP another one's, and all else leaves with the nodes' addresses until a third one
/// without ports takes it, before and after the node's agent starts anew.
pub(crate) async fn each_port_leaves_as_its_policy_says(fed: &Federation) -> Result<()> {
    let story = fed.story("ports").await?;
    let web = format!("{{ipv4: {WEB}, ipv6: '{WEB_V6}'}}");
    story
        .apply(&policy("web", "[{protocol: TCP, port: 7000}]", "frankfurt", &web))
        .await?;
    story.programmed("web").await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    let node = fed.node(pod.node())?.plan().ipv4.to_string();
    pod.leaves_from(OUTSIDE, Egress::Ip(WEB)).await?;
    pod.leaves_from(OUTSIDE_V6, Egress::Ip(WEB_V6)).await?;
    pod.leaves_from(OTHER_PORT, Egress::Node).await?;
    pod.sends_udp_from(OUTSIDE, &node).await?;
    pod.pings_from("198.51.100.10", &node).await?;

    let names = format!("{{ipv4: {NAMES}}}");
    let some = "[{protocol: UDP}, {protocol: TCP, port: 7001, endPort: 7009}]";
    story.apply(&policy("names", some, "frankfurt", &names)).await?;
    story.programmed("names").await?;
    effective(&story, "names", "Effective", "").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(WEB)).await?;
    pod.leaves_from(OTHER_PORT, Egress::Ip(NAMES)).await?;
    pod.sends_udp_from(OUTSIDE, NAMES).await?;
    pod.pings_from("198.51.100.10", &node).await?;

    // It is the first by priority, and the others name the ports.
    let rest = policy("rest", "[]", "vienna", &format!("{{ipv4: {REST}}}"));
    story.apply(&format!("{rest}  priority: 1\n")).await?;
    story.programmed("rest").await?;
    effective(&story, "rest", "PartlyShadowed", "ports/names, ports/web").await?;
    pod.pings_from("198.51.100.10", REST).await?;
    fed.restart_node_agent(pod.node()).await?;
    fed.restart_member_agent("b").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(WEB)).await?;
    pod.leaves_from(OTHER_PORT, Egress::Ip(NAMES)).await?;
    pod.sends_udp_from(OUTSIDE, NAMES).await?;
    pod.pings_from("198.51.100.10", REST).await?;

    // Without its policy a port is the next one's.
    story.delete_policy("web").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(REST)).await?;
    let listed = fed
        .cluster("hub")?
        .kubectl(&["get", "federatedegresspolicies", "-n", "ports"])
        .await?;
    ensure!(listed.contains("Part by ports/names"), "{listed}");
    story.end().await
}

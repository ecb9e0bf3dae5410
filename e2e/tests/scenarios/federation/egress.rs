//! Who leaves with which address.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, OUTSIDE_OTHER, OUTSIDE_V6};

/// The first thing a user tries.
pub(crate) async fn before_after_and_without_a_policy(fed: &Federation) -> Result<()> {
    let story = fed.story("before-after").await?;
    for member in ["a", "b"] {
        let pod = story.pod(member, "billing", "app=billing").await?;
        pod.leaves_from(OUTSIDE, Egress::Node).await?;
    }
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.10",
        )
        .await?;
    for member in ["a", "b"] {
        story
            .pod_named(member, "billing")?
            .leaves_from(OUTSIDE, Egress::Ip("203.0.113.10"))
            .await?;
    }
    story.programmed("bank").await?;
    story.delete_policy("bank").await?;
    for member in ["a", "b"] {
        story
            .pod_named(member, "billing")?
            .leaves_from(OUTSIDE, Egress::Node)
            .await?;
    }
    story.end().await
}

/// Two pods with the very same address, in two clusters, use one gateway and one egress IP together.
pub(crate) async fn equal_pod_addresses_in_two_members_at_once(fed: &Federation) -> Result<()> {
    let story = fed.story("equal-ranges").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.10",
        )
        .await?;
    let (in_a, in_b) = story.pods_with_equal_address("app=billing").await?;
    ensure!(in_a.ip() == in_b.ip(), "the pods were to have one address");
    in_a.leaves_from(OUTSIDE, Egress::Ip("203.0.113.10")).await?;
    in_b.leaves_from(OUTSIDE, Egress::Ip("203.0.113.10")).await?;
    // At once: both hold a connection open through the same gateway, and each gets its own bytes back.
    let (a, b) = futures::join!(in_a.talk(OUTSIDE, "from a", 20), in_b.talk(OUTSIDE, "from b", 20));
    ensure!(
        a?.starts_with("203.0.113.10") && b?.starts_with("203.0.113.10"),
        "a source other than the egress IP"
    );
    story.end().await
}

/// The check that all others rely on can fail: with both tables of the pod's node gone it leaves with the node's
/// address; with the gateway's grants taken out nothing arrives from the egress IP, and nothing from elsewhere.
pub(crate) async fn the_check_fails_when_the_gateway_is_bypassed(fed: &Federation) -> Result<()> {
    let story = fed.story("bypass").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.10",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.10")).await?;

    // Bypass: the source node's agent is stopped and its tables deleted, so nothing steers or stops the pod any more.
    let frozen = fed.freeze_node_agent(pod.node())?;
    for table in ["spillway", "spillway_seal"] {
        fed.node(pod.node())?
            .exec(&["nft", "delete", "table", "inet", table])
            .await?
            .success()?;
    }
    let seen = pod
        .leaves_from_within(Duration::from_secs(3), OUTSIDE, Egress::Ip("203.0.113.10"))
        .await;
    if seen.is_ok() {
        bail!("the check found the egress IP although nothing steers the pod: the check is worthless");
    }
    pod.leaves_from(OUTSIDE, Egress::Node).await?;
    frozen.thaw()?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.10")).await?;

    // Break the gateway itself: its agent is stopped and its set of granted ports emptied.
    let gateway = "a-n2";
    let frozen = fed.freeze_node_agent(gateway)?;
    fed.node(gateway)?
        .exec(&["sh", "-c", "nft flush set inet spillway out4"])
        .await?
        .success()?;
    let mark = fed.outside_mark()?;
    let seen = pod
        .leaves_from_within(Duration::from_secs(3), OUTSIDE, Egress::Ip("203.0.113.10"))
        .await;
    ensure!(
        seen.is_err(),
        "the check found the egress IP although the gateway grants nothing"
    );
    let leaked = fed.outside_sources_since(mark, "bypass")?;
    ensure!(
        leaked.is_empty(),
        "packets left with {leaked:?} while the gateway was broken"
    );
    frozen.thaw()?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.10")).await?;
    story.end().await
}

/// A policy takes what it names and nothing else.
pub(crate) async fn exceptions_and_other_destinations_leave_as_ever(fed: &Federation) -> Result<()> {
    let story = fed.story("except").await?;
    story
        .apply(
            "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {name: bank}
spec:
  pods: {matchLabels: {app: billing}}
  to: {cidrs: [198.51.100.0/24], except: [198.51.100.11/32]}
  through: [{gateway: frankfurt, egressIP: {ipv4: 203.0.113.10}}]
",
        )
        .await?;
    let billing = story.pod("a", "billing", "app=billing").await?;
    let other = story.pod("a", "other", "app=other").await?;
    billing.leaves_from(OUTSIDE, Egress::Ip("203.0.113.10")).await?;
    billing.leaves_from(OUTSIDE_OTHER, Egress::Node).await?;
    other.leaves_from(OUTSIDE, Egress::Node).await?;
    billing.reaches(&other).await?;
    billing.reaches_the_api_server().await?;
    story.end().await
}

/// Not only TCP over IPv4.
pub(crate) async fn udp_icmp_and_ipv6_leave_with_the_egress_ip(fed: &Federation) -> Result<()> {
    let story = fed.story("protocols").await?;
    story
        .apply(
            "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {name: bank}
spec:
  pods: {matchLabels: {app: billing}}
  to: {cidrs: [198.51.100.0/24, '2001:db8:51::/64']}
  through: [{gateway: frankfurt, egressIP: {ipv4: 203.0.113.10, ipv6: '2001:db8:113::10'}}]
",
        )
        .await?;
    for member in ["a", "b"] {
        let pod = story.pod(member, "billing", "app=billing").await?;
        pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.10")).await?;
        pod.sends_udp_from(OUTSIDE, "203.0.113.10").await?;
        pod.pings_from("198.51.100.10", "203.0.113.10").await?;
        pod.leaves_from(OUTSIDE_V6, Egress::Ip("2001:db8:113::10"))
            .await?;
        pod.sends_udp_from(OUTSIDE_V6, "2001:db8:113::10").await?;
    }
    story.end().await
}

//! Objects that contradict themselves or each other.

use anyhow::Result;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE};

/// Each bad object says what is wrong with it and how to mend it; the good one beside them is untouched.
pub(crate) async fn contradictions_get_a_condition_and_harm_nobody(fed: &Federation) -> Result<()> {
    let story = fed.story("contradictions").await?;
    story
        .policy(
            "good",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.13",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.13")).await?;
    let untouched = fed.rules_of(pod.node()).await?;

    story
        .policy(
            "unknown",
            "app=other",
            "198.51.100.0/24",
            "atlantis",
            "203.0.113.13",
        )
        .await?;
    story
        .not_accepted(
            "federatedegresspolicy",
            "unknown",
            "UnknownGateway",
            "spec.through[0].gateway",
        )
        .await?;
    story
        .policy(
            "foreign",
            "app=other",
            "198.51.100.0/24",
            "frankfurt",
            "192.0.2.77",
        )
        .await?;
    story
        .not_accepted(
            "federatedegresspolicy",
            "foreign",
            "AddressNotInPool",
            "spec.through[0].egressIP",
        )
        .await?;
    fed.apply_hub(
        "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: overlapping}
spec:
  nodes: [{member: b, selector: {matchLabels: {egress: 'true'}}}]
  addresses: {ipv4: [203.0.113.13-203.0.113.16]}
",
    )
    .await?;
    story
        .not_accepted("egressgateway", "overlapping", "AddressOverlap", "frankfurt")
        .await?;
    fed.apply_hub(
        "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: nobody}
spec:
  nodes: [{member: zurich, selector: {}}]
  addresses: {ipv4: [203.0.113.40]}
",
    )
    .await?;
    story
        .not_accepted("egressgateway", "nobody", "UnknownMember", "spec.nodes[0].member")
        .await?;

    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.13")).await?;
    anyhow::ensure!(
        fed.rules_of(pod.node()).await? == untouched,
        "a bad object changed the kernel of an uninvolved node"
    );
    fed.hub()
        .kubectl(&["delete", "egressgateway", "overlapping", "nobody"])
        .await?;
    story.end().await
}

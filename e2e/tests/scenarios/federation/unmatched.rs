//! Selectors and names that match nothing.

use anyhow::{Result, ensure};
use spillway_e2e::eventually;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE};

const POLICY: &str = "federatedegresspolicy";

const EIP: &str = "203.0.113.13";

/// The parts of a node's kernel, without what is about egress IPs of earlier stories: their ports drain for a while.
fn mine(kernel: &str) -> Vec<String> {
    let parts = kernel.split([',', '{', '}', '\n']).map(str::trim);
    parts
        .filter(|part| !part.is_empty() && (part.contains(EIP) || !part.contains("203.0.113.")))
        .map(str::to_owned)
        .collect()
}

/// A gateway without nodes, a policy without members and one for a namespace that a member doesn't have:
/// each says so, and their neighbours notice nothing.
pub(crate) async fn what_matches_nothing_says_so_and_harms_nobody(fed: &Federation) -> Result<()> {
    let story = fed.story("unmatched").await?;
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
    story.programmed("good").await?;
    let watch = pod.watch(OUTSIDE)?;
    let untouched = mine(&fed.rules_of(pod.node()).await?);

    story
        .apply(
            "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {name: nowhere}
spec:
  members: {matchLabels: {region: antarctica}}
  pods: {matchLabels: {app: billing}}
  through: [{gateway: frankfurt, egressIP: {ipv4: 203.0.113.13}}]
",
        )
        .await?;
    story
        .says(
            POLICY,
            "nowhere",
            ("Programmed", "False", "NoMemberSelected"),
            "spec.members",
        )
        .await?;
    story
        .says(POLICY, "nowhere", ("Accepted", "True", "Accepted"), "")
        .await?;

    fed.apply_hub(
        "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: dark}
spec:
  nodes: [{member: b, selector: {matchLabels: {egress: never}}}]
  addresses: {ipv4: [203.0.113.50]}
",
    )
    .await?;
    story
        .says(
            "egressgateway",
            "dark",
            ("Programmed", "False", "NoMatchingNode"),
            "spec.nodes",
        )
        .await?;

    eventually(
        PATIENCE,
        "the uninvolved node's kernel is what it was",
        || async {
            let now = mine(&fed.kernel_of(pod.node()).await?);
            ensure!(
                now == untouched,
                "what matches nothing changed it: {now:?}, not {untouched:?}"
            );
            Ok(())
        },
    )
    .await?;

    // A namespace that only the hub has.
    let haunted = fed.story("ghosts").await?;
    for member in ["a", "b"] {
        fed.cluster(member)?
            .kubectl(&["delete", "namespace", "ghosts"])
            .await?;
    }
    haunted
        .policy(
            "ghost",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.14",
        )
        .await?;
    haunted.programmed("ghost").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.13")).await?;

    // The namespace comes to be.
    fed.cluster("b")?.namespace("ghosts", &[]).await?;
    haunted
        .pod("b", "billing", "app=billing")
        .await?
        .leaves_from(OUTSIDE, Egress::Ip("203.0.113.14"))
        .await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.13")).await?;

    watch.only_ever_from("203.0.113.13")?;

    // A policy through the gateway without nodes blocks; one with a fallback takes that.
    let dark = "{gateway: dark}";
    for (through, expected) in [
        (dark.to_owned(), None),
        (
            format!("{dark}, {{gateway: frankfurt, egressIP: {{ipv4: 203.0.113.15}}}}"),
            Some("203.0.113.15"),
        ),
    ] {
        story
            .apply(&format!(
                "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: good}}
spec:
  pods: {{matchLabels: {{app: billing}}}}
  to: {{cidrs: [198.51.100.0/24]}}
  through: [{through}]
"
            ))
            .await?;
        match expected {
            None => {
                story
                    .says(POLICY, "good", ("Programmed", "False", "NoReadyNode"), "")
                    .await?;
                pod.is_blocked(OUTSIDE).await?;
            }
            Some(address) => pod.leaves_from(OUTSIDE, Egress::Ip(address)).await?,
        }
    }
    fed.cluster("a")?.namespace("ghosts", &[]).await?;
    haunted.end().await?;
    story.end().await?;
    fed.hub()
        .kubectl(&["delete", "egressgateway", "dark"])
        .await
        .map(drop)
}

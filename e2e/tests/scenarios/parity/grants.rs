//! Gateways that not everybody may use.

use anyhow::Result;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE};

const EIP: &str = "203.0.113.70";

fn gateway(allow: &str) -> String {
    format!(
        "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {{name: granted}}
spec:
  nodes: [{{member: a, selector: {{matchLabels: {{egress: 'true'}}}}}}]
  addresses: {{ipv4: [{EIP}]}}
  {allow}
"
    )
}

const POLICY: &str = "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {name: tenant}
spec:
  pods: {matchLabels: {app: tenant}}
  to: {cidrs: [198.51.100.0/24]}
  through: [{gateway: granted}]
";

/// Members and namespaces without a grant are blocked and told, whatever their policies ask for; with one they leave; when it is
/// taken back they are blocked again, and others notice nothing.
pub(crate) async fn a_gateway_is_used_by_whom_it_is_granted_to(fed: &Federation) -> Result<()> {
    let story = fed.story("granted").await?;
    let a_alone = "allow: [{namespaces: [granted], members: {matchLabels: {name: a}}}]";
    label_members(fed).await?;
    fed.apply_hub(&gateway("allow: [{namespaces: [elsewhere]}]"))
        .await?;
    story.apply(POLICY).await?;
    let refused =
        |word: &'static str| story.not_accepted("federatedegresspolicy", "tenant", "NotGranted", word);
    refused("namespace granted in a, b").await?;
    let (a, b) = (
        story.pod("a", "tenant", "app=tenant").await?,
        story.pod("b", "tenant", "app=tenant").await?,
    );
    a.is_blocked(OUTSIDE).await?;
    b.is_blocked(OUTSIDE).await?;

    fed.apply_hub(&gateway(a_alone)).await?;
    a.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;
    refused("namespace granted in b;").await?;
    b.is_blocked(OUTSIDE).await?;

    fed.apply_hub(&gateway("allow: [{}]")).await?;
    story.programmed("tenant").await?;
    b.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;

    let watched = a.watch(OUTSIDE)?;
    fed.apply_hub(&gateway(a_alone)).await?;
    refused("namespace granted in b;").await?;
    b.is_blocked(OUTSIDE).await?;
    watched.only_ever_from(EIP)?;
    story.end().await?;
    fed.cluster("hub")?
        .kubectl(&["delete", "egressgateway", "granted"])
        .await
        .map(drop)
}

/// What the grants select by.
async fn label_members(fed: &Federation) -> Result<()> {
    for member in ["a", "b"] {
        let label = format!("name={member}");
        fed.cluster("hub")?
            .kubectl(&["label", "member", member, &label, "--overwrite"])
            .await?;
    }
    Ok(())
}

//! Which egress IPs policies get, and that they stay what they are.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use spillway_e2e::eventually;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE, Story};

/// The gateway of this story alone, with a pool that its edits narrow.
fn gateway(pool: &str) -> String {
    format!(
        "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {{name: parity}}
spec:
  nodes: [{{member: a, selector: {{matchLabels: {{egress: 'true'}}}}}}]
  addresses: {pool}
"
    )
}

const WHOLE: &str = "{ipv4: [203.0.113.60-203.0.113.69], default: {ipv4: 203.0.113.65}}";
const DEFAULT: &str = "203.0.113.65";

/// A policy for `app=NAME`.
fn policy(name: &str, through: &str) -> String {
    format!(
        "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: {name}}}
spec:
  pods: {{matchLabels: {{app: {name}}}}}
  to: {{cidrs: [198.51.100.0/24]}}
  through: [{{gateway: parity{through}}}]
"
    )
}

/// What the policy's status says that it leaves with.
async fn recorded(fed: &Federation, story: &Story<'_>, name: &str) -> Result<String> {
    let object = fed
        .hub_object(&["federatedegresspolicy", "-n", story.namespace(), name])
        .await?;
    let address = object["status"]["egress"][0]["egressIP"]["ipv4"].as_str();
    Ok(address
        .with_context(|| format!("{name}: {}", object["status"]))?
        .to_owned())
}

async fn given(fed: &Federation, story: &Story<'_>, name: &str, through: &str) -> Result<String> {
    story.apply(&policy(name, through)).await?;
    story.programmed(name).await?;
    recorded(fed, story, name).await
}

/// Deletes a status by hand.
async fn wipe(fed: &Federation, kind: &str, name: &str, namespace: &[&str]) -> Result<()> {
    let patch = [
        "patch",
        kind,
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":null}"#,
    ];
    fed.cluster("hub")?
        .kubectl(&[&patch[..], namespace].concat())
        .await
        .map(drop)
}

/// The default address is everybody's; an address of the pool stays a policy's through edits of the pool, another leader and
/// wiped statuses; one that is reserved is nobody else's; one in use can't be taken out of the pool.
pub(crate) async fn addresses_are_given_kept_and_reserved(fed: &Federation) -> Result<()> {
    let story = fed.story("addresses").await?;
    fed.apply_hub(&gateway(WHOLE)).await?;
    ensure!(
        given(fed, &story, "usual", "").await? == DEFAULT,
        "not the gateway's default"
    );
    let spread = given(fed, &story, "spread", ", allocation: Pool").await?;
    let own = given(fed, &story, "own", ", allocation: Pool, exclusive: true").await?;
    ensure!(
        spread != DEFAULT && own != DEFAULT && own != spread,
        "{spread} and {own}"
    );
    for (name, address) in [("usual", DEFAULT), ("spread", &spread), ("own", &own)] {
        let pod = story.pod("b", name, &format!("app={name}")).await?;
        pod.leaves_from(OUTSIDE, Egress::Ip(address)).await?;
    }

    // One that is reserved, and one that others leave with.
    story
        .apply(&policy("intruder", &format!(", egressIP: {{ipv4: {own}}}")))
        .await?;
    story
        .not_accepted(
            "federatedegresspolicy",
            "intruder",
            "AddressTaken",
            "addresses/own",
        )
        .await?;
    let pod = story.pod("b", "intruder", "app=intruder").await?;
    pod.is_blocked(OUTSIDE).await?;
    let greedy = format!(", egressIP: {{ipv4: {DEFAULT}}}, exclusive: true");
    story.apply(&policy("intruder", &greedy)).await?;
    story
        .not_accepted(
            "federatedegresspolicy",
            "intruder",
            "AddressInUse",
            "addresses/usual",
        )
        .await?;
    story.delete_policy("intruder").await?;

    // Nothing moves because a status is wiped or another replica leads.
    let statuses = ["usual", "spread", "own"];
    for name in statuses {
        wipe(fed, "federatedegresspolicy", name, &["-n", story.namespace()]).await?;
    }
    wipe(fed, "egressgateway", "parity", &[]).await?;
    let leader = fed.hub_leader().await?;
    fed.kill_hub_replica(&leader).await?;
    fed.hub_leader_other_than(&leader).await?;
    for (name, address) in [("usual", DEFAULT), ("spread", &spread), ("own", &own)] {
        story.programmed(name).await?;
        ensure!(
            recorded(fed, &story, name).await? == address,
            "{name} got another address"
        );
        story
            .pod_named("b", name)?
            .leaves_from(OUTSIDE, Egress::Ip(address))
            .await?;
    }

    // An address in use isn't taken out.
    let last: u8 = spread.rsplit('.').next().context("an address")?.parse()?;
    let left: Vec<String> = (60..70_u8)
        .filter(|n| *n != last)
        .map(|n| format!("203.0.113.{n}"))
        .collect();
    let narrow = format!("{{ipv4: [{}], default: {{ipv4: {DEFAULT}}}}}", left.join(", "));
    fed.apply_hub(&gateway(&narrow)).await?;
    story
        .not_accepted("egressgateway", "parity", "AddressInUse", "addresses/spread")
        .await?;
    story
        .pod_named("b", "spread")?
        .leaves_from(OUTSIDE, Egress::Ip(&spread))
        .await?;
    let used = fed.hub_object(&["egressgateway", "parity"]).await?["status"]["used"].clone();
    let by = |address: &str| -> Value {
        let entries = used.as_array().cloned().unwrap_or_default();
        entries
            .into_iter()
            .find(|u| u["egressIP"]["ipv4"] == *address)
            .unwrap_or_default()
    };
    ensure!(
        by(&spread)["by"] == "addresses/spread" && by(&own)["exclusive"] == true,
        "{used}"
    );
    story.delete_policy("spread").await?;
    eventually(PATIENCE, "the gateway is as it was asked for", || async {
        let gateway = fed.hub_object(&["egressgateway", "parity"]).await?;
        let accepted = gateway["status"]["conditions"]
            .as_array()
            .and_then(|c| c.iter().find(|c| c["type"] == "Accepted"))
            .cloned();
        ensure!(
            accepted.as_ref().is_some_and(|c| c["status"] == "True"),
            "{accepted:?}"
        );
        Ok(())
    })
    .await?;
    story.end().await?;
    fed.cluster("hub")?
        .kubectl(&["delete", "egressgateway", "parity"])
        .await
        .map(drop)
}

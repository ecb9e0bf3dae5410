//! The hub's cluster loses all that it stored.

use anyhow::{Result, ensure};
use serde_json::Value;
use spillway_e2e::eventually;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE};

const EIP: &str = "203.0.113.14";

/// Everything of the hub is deleted, and restored from a backup that is older than a member's certificate. Nobody joins
/// again, no address moves, and a connection is held over all of it.
pub(crate) async fn the_hub_is_lost_and_restored(fed: &Federation) -> Result<()> {
    let story = fed.story("loss").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;
    story.programmed("bank").await?;
    let before = fed.allocations().await?;

    let folder = tempfile::tempdir()?;
    let file = folder.path().join("hub.yaml").to_string_lossy().into_owned();
    fed.spillway_ok("hub", &["hub", "backup", "--file", &file])
        .await?;
    renew(fed, "b").await?;

    let lost_and_found = async {
        let uninstall = ["hub", "uninstall", "--delete-policies", "--force", "--yes"];
        fed.spillway_ok("hub", &uninstall).await?;
        pod.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;
        fed.spillway_ok("hub", &["hub", "restore", "--file", &file, "--yes"])
            .await?;
        fed.install_hub().await?;
        fed.connected("a").await?;
        fed.connected("b").await
    };
    let (outcome, held) = tokio::join!(lost_and_found, pod.talk(OUTSIDE, "loss", 3_000));
    outcome?;
    let held = held?;
    ensure!(
        held.starts_with(&format!("{EIP}:")),
        "the connection left from {held}"
    );
    ensure!(fed.allocations().await? == before, "allocations moved");
    pod.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;

    // The hub decides again, and once more after it was restored over itself.
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.15",
        )
        .await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.15")).await?;
    fed.spillway_ok("hub", &["hub", "restore", "--file", &file, "--yes"])
        .await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;
    story.programmed("bank").await?;
    story.end().await
}

/// Makes the hub ask a member to renew its certificate, and waits until it uses the new one.
async fn renew(fed: &Federation, member: &str) -> Result<()> {
    let status = async || -> Result<Value> {
        let object = fed
            .hub()
            .kubectl(&["get", "member", member, "-o", "json"])
            .await?;
        let object: Value = serde_json::from_str(&object)?;
        Ok(object["status"].clone())
    };
    let old = status().await?["certificateSerial"].clone();
    let forget = r#"{"status":{"certificateIssuer":null}}"#;
    let args = [
        "patch",
        "member",
        member,
        "--subresource=status",
        "--type=merge",
        "-p",
        forget,
    ];
    fed.hub().kubectl(&args).await?;
    eventually(PATIENCE, &format!("{member} has a new certificate"), || async {
        let now = status().await?;
        ensure!(now["certificateSerial"] != old, "it has the old one");
        ensure!(
            now["serialInUse"] == now["certificateSerial"],
            "it doesn't use the new one"
        );
        Ok(())
    })
    .await
}

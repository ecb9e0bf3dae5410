//! One CA of the hub follows another.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use spillway_e2e::eventually;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, PATIENCE};

/// A connection is held over the whole of it, the streams of both members are back, and nothing of the CA before is
/// left anywhere.
pub(crate) async fn the_ca_is_replaced_while_everything_runs(fed: &Federation) -> Result<()> {
    let story = fed.story("rotate").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.14",
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.14")).await?;
    let before = pin(fed).await?;

    let rotation = fed.spillway_ok("hub", &["hub", "rotate-ca", "--yes"]);
    let (rotated, held) = tokio::join!(rotation, pod.talk(OUTSIDE, "rotate", 1_000));
    rotated?;
    let held = held?;
    ensure!(
        held.starts_with("203.0.113.14:"),
        "the connection left from {held}"
    );
    let after = pin(fed).await?;
    ensure!(before != after, "the pin is what it was");
    only_trust(fed, &after).await?;
    // Its `spec.caPin` is still the one of before.
    fed.restart_member_agent("a").await?;
    fed.connected("a").await?;

    // A join command with the pin of before leads nowhere.
    fed.leave("b").await?;
    let token = fed.token("b", &["region=eu"]).await?;
    fed.join_fails("b", &token.with_pin(&before), &["the token was not sent"])
        .await?;
    fed.join("b", &token).await?;
    pod.leaves_from(OUTSIDE, Egress::Ip("203.0.113.14")).await?;
    story.end().await
}

/// A member's agent is off: nothing goes on without it, and everything as soon as it is back.
pub(crate) async fn a_member_that_is_away_is_waited_for(fed: &Federation) -> Result<()> {
    let before = pin(fed).await?;
    let mistaken = fed
        .spillway("hub", &["hub", "rotate-ca", "--yes", "--without", "nobody"])
        .await?;
    ensure!(mistaken.stderr.contains("no such member"), "{}", mistaken.stderr);
    let scale = async |replicas: &str| {
        let count = format!("--replicas={replicas}");
        let args = [
            "-n",
            "spillway-system",
            "scale",
            "deployment/spillway-member-agent",
            &count,
        ];
        fed.cluster("b")?.kubectl(&args).await.map(drop)
    };
    scale("0").await?;
    let gone = [
        "-n",
        "spillway-system",
        "wait",
        "pod",
        "-l",
        "app.kubernetes.io/name=spillway-member-agent",
        "--for=delete",
        "--timeout=60s",
    ];
    fed.cluster("b")?.kubectl(&gone).await?;
    let impatient = fed
        .spillway("hub", &["hub", "rotate-ca", "--yes", "--timeout", "8s"])
        .await?;
    ensure!(
        impatient.code != 0,
        "it was over without b:\n{}",
        impatient.stderr
    );
    ensure!(
        impatient.stderr.contains("missing: b"),
        "b isn't named:\n{}",
        impatient.stderr
    );
    ensure!(
        pin(fed).await? == before,
        "the next CA signs although b doesn't know it"
    );
    scale("1").await?;
    fed.spillway_ok("hub", &["hub", "rotate-ca", "--yes"]).await?;
    let after = pin(fed).await?;
    ensure!(before != after, "the pin is what it was");
    only_trust(fed, &after).await
}

async fn pin(fed: &Federation) -> Result<String> {
    let path = "jsonpath={.data.ca_pin}";
    let args = [
        "-n",
        "spillway-system",
        "get",
        "configmap",
        "spillway-hub-info",
        "-o",
        path,
    ];
    fed.hub().kubectl(&args).await
}

/// Hub and members hold one CA, and members certificates of it.
async fn only_trust(fed: &Federation, pin: &str) -> Result<()> {
    let ours = data(&fed.hub().kubectl(&secret("spillway-hub-ca")).await?)?;
    let names: Vec<_> = ours.keys().map(String::as_str).collect();
    ensure!(
        names == ["ca.crt", "ca.key", "epoch", "hub_id"],
        "the hub's Secret has {names:?}"
    );
    for name in ["a", "b"] {
        eventually(PATIENCE, &format!("{name} has only the new CA"), || async {
            let member = fed.hub().kubectl(&["get", "member", name, "-o", "json"]).await?;
            let member: Value = serde_json::from_str(&member)?;
            let status = &member["status"];
            ensure!(
                status["certificateIssuer"] == pin,
                "issuer: {}",
                status["certificateIssuer"]
            );
            ensure!(
                status["trustedAuthorities"] == serde_json::json!([pin]),
                "{status}"
            );
            ensure!(status["serialInUse"] == status["certificateSerial"], "{status}");
            let theirs = fed
                .cluster(name)?
                .kubectl(&secret("spillway-member-identity"))
                .await?;
            ensure!(
                data(&theirs)?["ca.crt"] == ours["ca.crt"],
                "another bundle than the hub's"
            );
            Ok(())
        })
        .await?;
        fed.connected(name).await?;
    }
    Ok(())
}

fn secret(name: &str) -> [&str; 7] {
    ["-n", "spillway-system", "get", "secret", name, "-o", "json"]
}

/// Of a Secret as JSON, the data as they are encoded.
fn data(json: &str) -> Result<BTreeMap<String, String>> {
    let object: Value = serde_json::from_str(json)?;
    serde_json::from_value(object["data"].clone()).context("the Secret has no data")
}

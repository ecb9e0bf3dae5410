//! `make demo`: three real clusters, joined, under one policy, and who leaves with which address.
#![expect(clippy::print_stdout, reason = "the program's output")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use spillway_e2e::federation::{Egress, Federation, OUTSIDE, Shape, Story, StoryPod};
use spillway_e2e::{Arena, Provider, eventually};

const NAME: &str = "demo";
const POLICY: &str = include_str!("demo-policy.yaml");

#[tokio::main]
async fn main() -> Result<()> {
    let begin = Instant::now();
    let provider = Provider::from_environment()?;
    println!("Spillway demo: a hub and two member clusters, real Kubernetes, on this machine.\n");

    if spillway_e2e::lifecycle::down(NAME)? {
        println!("  (took down the arena of an earlier demo)");
    }
    let made_by = match provider {
        Provider::Namespaces => "",
        Provider::Kind | Provider::KindUpstream => ", made by kind",
    };
    step(
        begin,
        &format!("Clusters{made_by}: hub (1 node), a (2 nodes), b (2 nodes); all with pods 10.244.0.0/16"),
    );
    let arena = Arena::up(&Federation::arena_spec(NAME, provider)).await?;
    let federation = Federation::on(arena, Shape::Standard).await?;

    step(
        begin,
        "The hub: two replicas, installed with the command its operator types",
    );
    let endpoint = federation.endpoint()?;
    command(&format!(
        "spillway hub install --endpoint {endpoint} --service-type NodePort --node-port 30943"
    ));
    federation.install_hub().await?;

    for member in ["a", "b"] {
        step(
            begin,
            &format!("Cluster {member} joins: the hub prints one command, {member}'s operator pastes it"),
        );
        command(&format!("spillway token create {member} --label region=eu"));
        let token = federation.token(member, &["region=eu"]).await?;
        let said = federation.join(member, &token).await?;
        print!("{}", indent(&said));
    }

    step(
        begin,
        "A gateway on node a-n2, with a pool of egress IPs; pods in both members",
    );
    federation.offer_gateways().await?;
    let story = federation.story("payments").await?;
    let (twin_a, twin_b) = story.pods_with_equal_address("app=billing").await?;
    let other = story.pod("b", "reports", "app=reports").await?;
    let pods = [
        ("a", "billing", twin_a),
        ("b", "billing", twin_b),
        ("b", "reports", other),
    ];

    let mut columns = vec![seen(&pods, |_| Egress::Node).await.context("before the policy")?];

    step(begin, "One policy, applied once, on the hub");
    print!("{}", indent(POLICY));
    story.apply(POLICY).await?;
    let wanted = |app: &str| {
        if app == "billing" {
            Egress::Ip("203.0.113.10")
        } else {
            Egress::Node
        }
    };
    columns.push(seen(&pods, wanted).await.context("under the policy")?);
    story.programmed("bank").await?;
    print!(
        "{}",
        indent(&federation.hub().kubectl(&["get", "fep", "-A"]).await?)
    );

    step(begin, "The policy is deleted");
    story.delete_policy("bank").await?;
    columns.push(seen(&pods, |_| Egress::Node).await.context("after the policy")?);

    println!(
        "\nWho left with which source address, as recorded by the server {OUTSIDE} outside the clusters:\n"
    );
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header([
        "cluster",
        "pod",
        "address",
        "on node",
        "before",
        "with the policy",
        "policy deleted",
    ]);
    for (i, (member, app, pod)) in pods.iter().enumerate() {
        let mut row = vec![
            (*member).to_owned(),
            format!("app={app}"),
            pod.ip().to_string(),
            pod.node().to_owned(),
        ];
        row.extend(columns.iter().map(|column| column[i].clone()));
        table.add_row(row);
    }
    println!("{table}\n");
    finish(&story, &federation)?;
    drop(pods);
    drop(story);
    let _left_standing = federation.into_arena().keep();
    println!(
        "Took {:.0} s. The clusters stay up; `target/debug/arena down --name {NAME}` removes them.",
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The source that the outside server sees of each pod, once it is the expected one.
async fn seen(
    pods: &[(&str, &str, StoryPod<'_>)],
    expected: impl Fn(&str) -> Egress<'static>,
) -> Result<Vec<String>> {
    let mut sources = Vec::new();
    for (_, app, pod) in pods {
        pod.leaves_from(OUTSIDE, expected(app)).await?;
        let source = eventually(Duration::from_secs(10), "the pod connects", || {
            pod.source(OUTSIDE)
        })
        .await?;
        sources.push(source);
    }
    Ok(sources)
}

fn finish(story: &Story<'_>, federation: &Federation) -> Result<()> {
    let hub = federation.arena().kubeconfig("hub")?;
    let file = federation.arena().dirs().state().join("bank.yaml");
    std::fs::write(&file, POLICY)?;
    println!("Try next:");
    command(&format!(
        "target/debug/spillway status --kubeconfig {}",
        hub.display()
    ));
    command(&format!(
        "target/debug/arena --name {NAME} kubectl hub apply -n {} -f {}",
        story.namespace(),
        file.display()
    ));
    command(&format!(
        "target/debug/arena --name {NAME} kubectl b exec -n {} reports -- probe tcp {OUTSIDE}",
        story.namespace()
    ));
    println!();
    Ok(())
}

fn step(begin: Instant, what: &str) {
    println!("\n[{:>4.0} s] {what}", begin.elapsed().as_secs_f64());
}

fn command(line: &str) {
    println!("         $ {line}");
}

fn indent(text: &str) -> String {
    let mut indented = String::new();
    for line in text.trim().lines() {
        indented.push_str("         ");
        indented.push_str(line);
        indented.push('\n');
    }
    indented
}

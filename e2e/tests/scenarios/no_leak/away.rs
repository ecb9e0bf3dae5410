//! The node agent is away.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use spillway_e2e::PodRequest;
use spillway_e2e::federation::{Egress, Federation, OUTSIDE};

use super::CROWD;
use super::start::SOURCES;

const EIP: &str = "203.0.113.15";
const NODE: &str = "b-n1";

/// Pods of a namespace without policies start as ever. In one with a policy nobody knows the labels of a new pod, so
/// it waits, and says why.
///
/// A plugin that lets everybody go on fails at `only_from`; one that holds everybody fails at the free crowd's time.
pub(crate) async fn only_pods_that_a_policy_may_select_wait_for_an_agent(fed: &Federation) -> Result<()> {
    let story = fed.story("held").await?;
    let free = fed.story("free").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    story.programmed("bank").await?;
    let node_address = fed.node(NODE)?.plan().ipv4.to_string();
    let timed = async |name: &str| -> Result<Duration> {
        let began = Instant::now();
        let crowd = free.crowd(name, "app=other", 8, &[NODE], 1).await?;
        crowd.all_arrive_from(&node_address, CROWD).await?;
        Ok(began.elapsed())
    };
    let alive = timed("alive").await?;
    let down = fed.keep_node_agents_down(&[NODE]).await?;
    let without = async {
        let held = story.crowd("held", "app=billing", 10, &[NODE], 5).await?;
        let dead = timed("dead").await?;
        eprintln!("    eight pods of no policy: {alive:?} with an agent, {dead:?} without");
        ensure!(
            dead < alive * 2 + Duration::from_secs(1),
            "eight pods of no policy took {dead:?} without an agent, {alive:?} with one"
        );
        ensure!(
            held.started().await? == 0,
            "pods of the policy started without an agent"
        );
        held.arrivals()?.only_from(&[&node_address])?;
        spillway_e2e::eventually(CROWD, "the pods say why they are held", || async {
            let events = held.events("FailedCreatePodSandBox").await?;
            let says =
                |e: &String| e.contains("Spillway holds pod held/held-") && e.contains("spillway-node-agent");
            ensure!(events.iter().any(says), "{events:?}");
            Ok(())
        })
        .await?;
        Ok(held)
    };
    let held = without.await;
    let mark = fed.outside_mark()?;
    down.release().await?;
    let held = held?;
    held.all_arrive_from(EIP, CROWD).await?;
    held.ended(CROWD).await?;
    let tagged = fed.outside_sources_since(mark, "held/held-")?;
    ensure!(tagged == [EIP], "the held pods were seen from {tagged:?}");
    free.end().await?;
    story.end().await
}

/// A node is switched on, and its agent doesn't come up for a while: kubelet starts the pods that were there, and none
/// that a policy may select gets a network.
///
/// Without the cache on the node's disk they arrive from the node's address within seconds.
pub(crate) async fn a_node_boots_before_its_agent(fed: &Federation) -> Result<()> {
    let story = fed.story("boot").await?;
    let free = fed.story("boot-free").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    story.programmed("bank").await?;
    let sender = |namespace: &str, name: &str, app: &str, tag: &str| {
        PodRequest::new(namespace, name)
            .label("app", app)
            .on(NODE)
            .command(&[
                "probe",
                "watch",
                "udp",
                OUTSIDE,
                "--interval",
                "50ms",
                "--timeout",
                "50ms",
                "--tag",
                tag,
            ])
    };
    let cluster = fed.member_of(NODE)?;
    for n in 0..5 {
        let request = sender(
            story.namespace(),
            &format!("billing-{n}"),
            "billing",
            "boot-selected",
        );
        cluster.create_pod(&request).await?;
    }
    cluster
        .create_pod(&sender(free.namespace(), "other", "other", "boot-other"))
        .await?;
    let machine = fed.node(NODE)?;
    let node_address = machine.plan().ipv4.to_string();
    let mark = fed.outside_mark()?;
    let down = fed.keep_node_agents_down(&[NODE]).await?;
    let booted = async {
        machine.power_off().await?;
        let after = fed.outside_mark()?;
        machine.power_on().await?;
        spillway_e2e::eventually(
            CROWD,
            "the pod of no policy sends from the booted node",
            || async {
                let sources = fed.outside_sources_since(after, "boot-other")?;
                ensure!(sources == [node_address.as_str()], "{sources:?}");
                Ok(())
            },
        )
        .await?;
        // The others were to be started at the same time.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let sources = fed.outside_sources_since(after, "boot-selected")?;
        ensure!(
            sources.is_empty(),
            "without an agent selected pods sent from {sources:?}"
        );
        Ok(after)
    };
    let after = booted.await;
    down.release().await?;
    let after = after?;
    spillway_e2e::eventually(CROWD, "the selected pods send again", || async {
        let sources = fed.outside_sources_since(after, "boot-selected")?;
        ensure!(sources == [EIP], "{sources:?}");
        Ok(())
    })
    .await?;
    let sources = fed.outside_sources_since(mark, "boot-selected")?;
    ensure!(sources == [EIP], "{sources:?}");
    let pod = story.pod_on("b", "after", "app=billing", NODE).await?;
    pod.leaves_from(OUTSIDE, Egress::Ip(EIP)).await?;
    for node in SOURCES {
        fed.cni_chained(node).await?;
    }
    free.end().await?;
    story.end().await
}

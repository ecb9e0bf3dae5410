//! How long a change takes to reach the wire.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use spillway_e2e::federation::{Federation, OUTSIDE, PATIENCE, Story};
use spillway_e2e::probe::Attempt;
use spillway_e2e::{PodRequest, eventually};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::figures::Figures;

/// Edits of one policy that are measured.
const EDITS: usize = 60;
/// Pods that are created and measured.
const PODS: usize = 30;

/// From the begin of the write on the hub to the first packet outside with the new egress IP.
pub(crate) async fn policy_changes(federation: &Federation, figures: &mut Figures) -> Result<()> {
    let story = federation.story("bench-policy").await?;
    let addresses = ["203.0.113.10", "203.0.113.11"];
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            addresses[0],
        )
        .await?;
    let pod = story.pod("b", "billing", "app=billing").await?;
    pod.leaves_from(OUTSIDE, spillway_e2e::federation::Egress::Ip(addresses[0]))
        .await?;

    // The attempt that is under way when the address changes has lost its connection. Until it is given up nothing
    // is seen of those that would succeed.
    let command = pod.pod().command(&[
        "probe",
        "watch",
        "tcp",
        OUTSIDE,
        "--interval",
        "2ms",
        "--timeout",
        "20ms",
        "--json",
    ])?;
    let mut probe = Command::from(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut attempts = BufReader::new(probe.stdout.take().context("the probe has no output")?).lines();
    let mut milliseconds = Vec::new();
    for edit in 1..=EDITS {
        let wanted = addresses[edit % 2];
        let begin = Instant::now();
        let wait = async {
            while let Some(line) = attempts.next_line().await? {
                let attempt: Attempt = serde_json::from_str(&line)?;
                if attempt.src.is_some_and(|s| s.ip().to_string() == wanted) {
                    return Ok(begin.elapsed());
                }
            }
            bail!("the probe ended")
        };
        let (applied, seen) = tokio::join!(story.set_egress_ip("bank", wanted), timeout(PATIENCE, wait));
        applied?;
        milliseconds.push(
            seen.with_context(|| format!("edit {edit} never showed outside"))??
                .as_secs_f64()
                * 1e3,
        );
    }
    figures.percentiles(
        "policy edited on the hub → first packet with the new egress IP",
        &milliseconds,
        "ms",
        None,
    );
    story.end().await
}

/// A pod that sends from its first moment: when its first packet arrives outside, and when the first
/// one with the egress IP does.
pub(crate) async fn pod_creation(federation: &Federation, figures: &mut Figures) -> Result<()> {
    let story = federation.story("bench-pods").await?;
    story
        .policy(
            "bank",
            "app=billing",
            "198.51.100.0/24",
            "frankfurt",
            "203.0.113.10",
        )
        .await?;
    story.programmed("bank").await?;
    let (mut selected, mut plain, mut leaking) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..PODS {
        let (first, enforced) = first_packets(
            federation,
            &story,
            &format!("billing-{n}"),
            "billing",
            Some("203.0.113.10"),
        )
        .await?;
        selected.push(enforced);
        leaking.push(enforced - first);
        plain.push(
            first_packets(federation, &story, &format!("other-{n}"), "other", None)
                .await?
                .0,
        );
    }
    figures.percentiles(
        "pod created → first packet with the egress IP",
        &selected,
        "ms",
        Some(("first packet of a pod of no policy", &plain)),
    );
    figures.percentiles(
        "pod's first packet → first with the egress IP (leaks until then)",
        &leaking,
        "ms",
        None,
    );
    story.end().await
}

/// Milliseconds from creating a pod to its first packet outside, and to the first with `wanted`.
async fn first_packets(
    federation: &Federation,
    story: &Story<'_>,
    name: &str,
    app: &str,
    wanted: Option<&str>,
) -> Result<(f64, f64)> {
    let cluster = federation.cluster("b")?;
    let tag = format!("first-{name}");
    let mark = federation.outside_mark()?;
    let request = PodRequest::new(story.namespace(), name)
        .label("app", app)
        .on("b-n1")
        .command(&[
            "probe",
            "watch",
            "tcp",
            OUTSIDE,
            "--interval",
            "5ms",
            "--timeout",
            "200ms",
            "--tag",
            &tag,
        ]);
    let begin = jiff::Timestamp::now();
    let pod = cluster.create_pod(&request).await?;
    let outcome = eventually(PATIENCE, "the pod's packets arrive", || async {
        let records = federation.arena().outside().tagged_since(mark, &tag)?;
        let since = |r: &spillway_e2e::Record| r.time.duration_since(begin).as_secs_f64() * 1e3;
        let first = records.first().map(since).context("nothing arrived")?;
        let enforced = records
            .iter()
            .find(|r| wanted.is_none_or(|w| r.src.to_string() == w))
            .map(since);
        Ok((first, enforced.context("nothing arrived with the egress IP")?))
    })
    .await;
    pod.delete().await?;
    outcome
}

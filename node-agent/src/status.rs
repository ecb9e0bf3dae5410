//! `EgressNode.status`, written when it differs from what the API server has and at no other time.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use spillway_crds::ConditionType;
use spillway_crds::condition::{self, Verdict};
use spillway_crds::hub::{HeldAddress, PortUse, WireGuardStatus};
use spillway_crds::member::{EgressNode, EgressNodeStatus, FirstPackets, LackingFeature, StrayPod};
use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::cluster::{Own, watch_own};
use crate::failover::Holding;

/// Field manager of the status.
const MANAGER: &str = "spillway-node-agent";

/// Longest time that one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Longest condition message, in characters; API servers take 32,768.
const MESSAGE_LIMIT: usize = 2_000;

/// What there is to report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Report {
    /// Digest of the plan in the kernel.
    pub(crate) programmed: Option<String>,
    /// Everything was taken out, as asked.
    pub(crate) torn_down: bool,
    /// What the node's kernel can do.
    pub(crate) features: Vec<String>,
    /// What it can't or may not.
    pub(crate) lacking: Vec<LackingFeature>,
    /// Egress IPs that the node answers for.
    pub(crate) held: Vec<Holding>,
    /// Pods outside of the cluster's known ranges.
    pub(crate) strays: Vec<StrayPod>,
    /// How pods' first packets are kept in.
    pub(crate) first_packets: FirstPackets,
    /// The `Programmed` condition.
    pub(crate) verdict: Verdict,
}

/// The status that says `report`, given what stands there. As long as no ports were counted, what an earlier agent said
/// of them stands, and so with encrypted paths.
fn wanted(
    report: &Report,
    ports: Option<&[PortUse]>,
    wireguard: Option<&WireGuardStatus>,
    own: &Own,
    now: Timestamp,
) -> EgressNodeStatus {
    let old = own.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.clone();
    let verdict = Verdict {
        message: report.verdict.message.chars().take(MESSAGE_LIMIT).collect(),
        ..report.verdict.clone()
    };
    condition::set(&mut conditions, own.generation, &verdict, now);
    // Under this manager the list holds our one condition; others' belong to them.
    conditions.retain(|c| c.type_ == ConditionType::Programmed.as_str());
    EgressNodeStatus {
        features: report.features.clone(),
        lacking: report.lacking.clone(),
        held: report.held.iter().map(|h| held(h, &old.held)).collect(),
        first_packets: Some(report.first_packets),
        port_use: ports.map_or(old.port_use, <[PortUse]>::to_vec),
        wireguard: wireguard.cloned().or(old.wireguard),
        programmed: report.programmed.clone(),
        backend: Some("nftables".into()),
        agent_version: Some(env!("CARGO_PKG_VERSION").into()),
        torn_down: report.torn_down,
        stray_pods: report.strays.clone(),
        conditions,
    }
}

/// One egress IP. Who took it before this agent began has said why.
fn held(holding: &Holding, old: &[HeldAddress]) -> HeldAddress {
    let address = holding.address.to_string();
    if holding.reason.is_none()
        && let Some(said) = old.iter().find(|h| h.address == address)
    {
        return said.clone();
    }
    HeldAddress {
        address,
        since: holding.since.to_string(),
        reason: holding
            .reason
            .clone()
            .unwrap_or_else(|| "this node is the first in rank for it".into()),
    }
}

/// True where `status` already says what `wanted` says.
fn says(status: Option<&EgressNodeStatus>, wanted: &EgressNodeStatus) -> bool {
    status.is_some_and(|s| {
        s.programmed == wanted.programmed
            && s.backend == wanted.backend
            && s.agent_version == wanted.agent_version
            && s.torn_down == wanted.torn_down
            && s.features == wanted.features
            && s.lacking == wanted.lacking
            && s.held == wanted.held
            && s.port_use == wanted.port_use
            && s.stray_pods == wanted.stray_pods
            && s.first_packets == wanted.first_packets
            && s.wireguard == wanted.wireguard
            && wanted.conditions.iter().all(|c| s.conditions.contains(c))
    })
}

async fn write(api: &Api<EgressNode>, node: &str, status: &EgressNodeStatus) -> anyhow::Result<()> {
    let patch = json!({
        "apiVersion": "member.spillway.io/v1alpha1",
        "kind": "EgressNode",
        "metadata": {"name": node},
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(&patch);
    tokio::time::timeout(CALL_LIMIT, api.patch_status(node, &params, &patch)).await??;
    Ok(())
}

/// Keeps the status of `node` for ever.
pub(crate) async fn keep(
    client: Client,
    node: String,
    mut reports: watch::Receiver<Option<Report>>,
    mut ports: watch::Receiver<Option<Vec<PortUse>>>,
    mut wireguard: watch::Receiver<Option<WireGuardStatus>>,
) {
    let (mirror, mut changes) = watch_own(&client, &node);
    let api = Api::all(client);
    let mut backoff = Backoff::up_to_seconds(30);
    loop {
        let report = reports.borrow_and_update().clone();
        let used = ports.borrow_and_update().clone();
        let encrypted = wireguard.borrow_and_update().clone();
        changes.mark_unchanged();
        let status = report
            .as_ref()
            .zip(mirror.get(&node))
            .map(|(report, own)| {
                let now = Timestamp::now();
                (
                    wanted(report, used.as_deref(), encrypted.as_ref(), &own, now),
                    own,
                )
            })
            .filter(|(wanted, own)| !says(own.status.as_ref(), wanted));
        let mut retry = None;
        if let Some((status, _)) = status {
            match write(&api, &node, &status).await {
                Ok(()) => {
                    tracing::debug!(node, "status written");
                    backoff.reset();
                }
                Err(error) => {
                    tracing::warn!(node, %error, "status can't be written; it will be tried again");
                    retry = backoff.next();
                }
            }
        }
        let again = async {
            match retry {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = reports.changed() => if event.is_err() { return },
            event = ports.changed() => if event.is_err() { return },
            event = wireguard.changed() => if event.is_err() { return },
            // Our own write comes back as a change too, and then there is nothing left to say.
            event = changes.changed() => if event.is_err() { return },
            () = again => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_already_said_is_not_written_again() {
        let report = Report {
            programmed: Some("d".repeat(64)),
            torn_down: false,
            features: vec!["egress-hook".into()],
            lacking: Vec::new(),
            held: Vec::new(),
            strays: Vec::new(),
            first_packets: FirstPackets::Chain,
            verdict: Verdict::yes(ConditionType::Programmed, "Programmed", ""),
        };
        let now = Timestamp::from_second(1).expect("in range");
        let own = Own {
            generation: Some(1),
            status: None,
        };
        let first = wanted(&report, None, None, &own, now);
        assert!(!says(None, &first));
        let own = Own {
            status: Some(first.clone()),
            ..own
        };
        let later = Timestamp::from_second(9).expect("in range");
        assert!(says(
            own.status.as_ref(),
            &wanted(&report, None, None, &own, later)
        ));
        let ports = [PortUse {
            address: "203.0.113.10".into(),
            ..PortUse::default()
        }];
        let counted = wanted(&report, Some(&ports), None, &own, later);
        assert!(!says(own.status.as_ref(), &counted));
        let own = Own {
            status: Some(counted),
            ..own
        };
        assert!(
            says(own.status.as_ref(), &wanted(&report, None, None, &own, later)),
            "what was said of ports stands until they are counted again"
        );
        let failed = Report {
            verdict: Verdict::no(ConditionType::Programmed, "ApplyFailed", "nft: no"),
            ..report
        };
        assert!(!says(
            own.status.as_ref(),
            &wanted(&failed, None, None, &own, later)
        ));
    }
}

//! `spillway hub rotate-ca`.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use spillway_crds::hub::Member;
use tokio::time::Instant;

use crate::args::{HubRotateCa, Target};
use crate::cluster::{Cluster, HubInfo};
use crate::failure::{Exit, Failure};
use crate::ui::Ui;
use crate::wait;

/// The hub's CA.
const SECRET: &str = "spillway-hub-ca";
/// Asks the hub for a new one; the value says who isn't waited for.
const ASKED: &str = "hub.spillway.io/rotate-ca";

/// Asks the hub to replace its CA, and waits until no trace of the old one is left.
pub async fn run(target: &Target, rotate: &HubRotateCa, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let before = info(&cluster).await?;
    if before.rotation.is_some() {
        ui.say("a rotation is under way already; waiting for its end");
    } else {
        known(&cluster, &rotate.without).await?;
        if !rotate.yes {
            ui.confirm(&format!(
                "the CA of hub {} is replaced; join commands printed before are void. Go on?",
                before.hub_id
            ))?;
        }
        ask(&cluster, &rotate.without).await?;
    }
    let deadline = Instant::now() + rotate.timeout;
    let mut phase = ui.phase("CA rotated");
    let mut last = before.clone();
    let begun = before.rotation.is_some();
    let done = async || {
        last = info(&cluster).await?;
        if let Some(rotation) = &last.rotation {
            phase.update(&rotation.describe());
        }
        // Before the first step there is no rotation to be seen either.
        let over = last.rotation.is_none() && (begun || last.pin != before.pin);
        Ok(over.then_some(()))
    };
    let waited = wait::until(deadline, done, || Failure::new(Exit::TimedOut, String::new())).await;
    match waited {
        Ok(()) => {
            phase.done(&format!("members join by the pin {} from now on", last.pin));
            Ok(())
        }
        Err(failure) if failure.exit == Exit::TimedOut => Err(late(&last)),
        Err(failure) => Err(failure),
    }
}

async fn info(cluster: &Cluster) -> Result<HubInfo, Failure> {
    cluster.hub_info().await?.ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            format!("{} has no hub that has run", cluster.name),
        )
        .fix("name the hub's cluster with --kubeconfig or --context")
    })
}

/// A name that nobody has is a mistake, and the one that was meant would be waited for.
async fn known(cluster: &Cluster, without: &[String]) -> Result<(), Failure> {
    let members: Api<Member> = Api::all(cluster.client.clone());
    for name in without {
        if cluster.get(members.clone(), name, "Member").await?.is_none() {
            return Err(Failure::new(
                Exit::NotFound,
                format!("--without {name}: there is no such member"),
            )
            .fix("see which there are: spillway status"));
        }
    }
    Ok(())
}

async fn ask(cluster: &Cluster, without: &[String]) -> Result<(), Failure> {
    let patch = json!({"metadata": {"annotations": {ASKED: without.join(",")}}});
    let secrets = cluster.ours::<Secret>();
    match secrets
        .patch_metadata(SECRET, &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(err) => Err(Failure::kube(&format!("annotating Secret {SECRET}"), &err)),
    }
}

fn late(last: &HubInfo) -> Failure {
    match &last.rotation {
        None => Failure::new(Exit::TimedOut, "the hub hasn't begun")
            .fix("see whether a replica of it runs: spillway status"),
        Some(rotation) => Failure::new(
            Exit::TimedOut,
            format!("the rotation isn't over: {}", rotation.describe()),
        )
        .fix("nothing is broken meanwhile, and it goes on as soon as these members are connected: spillway status")
        .fix("a member that won't come back is waited for until it is deleted: kubectl delete member NAME")
        .fix("to go on waiting, run this once more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::CaRotation;

    #[test]
    fn who_is_late_is_named_with_what_to_do() {
        let mut info = HubInfo {
            hub_id: "h".into(),
            endpoints: Vec::new(),
            pin: "sha256:0".into(),
            rotation: None,
        };
        assert!(late(&info).to_string().contains("hasn't begun"));
        info.rotation = Some(CaRotation {
            phase: "Distributing".into(),
            waits_for: vec!["fra-1".into()],
            count: 3,
        });
        let text = late(&info).to_string();
        assert!(text.contains("missing: fra-1 and 2 more"), "{text}");
    }
}

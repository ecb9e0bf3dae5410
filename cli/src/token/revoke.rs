//! `spillway token revoke`.

use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;

use super::record;
use crate::args::{Target, TokenRevoke};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::ui::Ui;

/// Deletes the tokens' records: the hub then doesn't know them.
pub async fn run(target: &Target, revoke: &TokenRevoke, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let records = record::all(&cluster).await?;
    let matching: Vec<_> = records
        .iter()
        .filter(|r| r.member == revoke.name || r.id == revoke.name)
        .collect();
    if matching.is_empty() {
        return Err(
            Failure::new(Exit::NotFound, format!("there is no token for {}", revoke.name))
                .fix("see which there are: spillway token list"),
        );
    }
    for record in matching {
        let name = format!("spillway-token-{}", record.id);
        match cluster
            .ours::<Secret>()
            .delete(&name, &DeleteParams::default())
            .await
        {
            Ok(_) => ui.say(format!("revoked {} of {}", record.id, record.member)),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(err) => return Err(Failure::kube("deleting the token's record", &err)),
        }
    }
    Ok(())
}

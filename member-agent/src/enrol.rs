//! The join phase: a token becomes an identity.

use std::time::Duration;

use spillway_crds::ConditionType;
use spillway_crds::condition::Verdict;
use spillway_crds::member::HubConnectionSpec;

use crate::backoff::Backoff;
use crate::identity::{IdentityStore, Stored};
use crate::progress::{Progress, enrolled, enrolling};
use crate::published::Published;
use crate::uplink::{self, EnrolFailure};

/// Longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Tries until the hub has given an identity, which is stored when this returns, or has refused for good.
/// The conditions tell of every failed attempt. Dropping this between attempts loses nothing.
pub(crate) async fn enrol(
    spec: &HubConnectionSpec,
    token: &str,
    identities: &IdentityStore,
    progress: &Published<Progress>,
) -> Result<Stored, EnrolFailure> {
    let mut backoff = Backoff::up_to(LONGEST_WAIT);
    progress.edit(|p| p.enrolled = enrolling(format!("asking the hub to accept {}", spec.member)));
    tracing::info!(member = spec.member, endpoints = ?spec.endpoints, "enrolling");
    loop {
        let failure = match uplink::enrol(spec, token).await {
            Ok(stored) => {
                keep(identities, &stored).await;
                progress.edit(|p| p.enrolled = enrolled(&spec.member));
                tracing::info!(member = spec.member, expires = ?stored.expires().map(uplink::rfc3339), "enrolled");
                return Ok(stored);
            }
            Err(failure) => failure,
        };
        progress.edit(|p| {
            p.enrolled = Verdict::no(ConditionType::Enrolled, failure.reason, failure.message.clone());
        });
        tracing::warn!(
            member = spec.member,
            reason = failure.reason,
            message = failure.message,
            retry = failure.retry,
            "not enrolled"
        );
        if !failure.retry {
            return Err(failure);
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// Stores the identity and throws the token away, in a task of its own: the token is used up, so this must
/// come to its end whatever happens to the caller.
async fn keep(identities: &IdentityStore, stored: &Stored) {
    let (identities, stored) = (identities.clone(), stored.clone());
    let saving = tokio::spawn(async move {
        identities.save_surely(&stored).await;
        if let Err(error) = identities.delete_token().await {
            tracing::warn!(%error, "the used token stays in its Secret; it is worth nothing");
        }
    });
    if let Err(error) = saving.await {
        tracing::error!(%error, "the task that stores the identity broke");
    }
}

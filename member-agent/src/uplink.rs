//! The seam to `spillway-link`: this agent's storage behind the link's trait, and the link's words in ours.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use spillway_crds::ConditionType;
use spillway_crds::condition::Verdict;
use spillway_crds::member::HubConnectionSpec;
use spillway_link::hub::EnrollRefusal;
use spillway_link::member::{
    EnrollError, EnrollParams, Held, MemberBackend, MemberConfig, RefusedUpdate, StoreError, VerifiedUpdate,
};
use tokio::sync::watch;

pub(crate) use spillway_link::MemberReport;
pub(crate) use spillway_link::member::{ConnectionState, DisconnectReason, Link, LinkHandle};
pub(crate) use spillway_link::pki::{MemberIdentity, Pin, Secret, Token};

use crate::identity::{IdentityStore, Stored};
use crate::observed::Observed;
use crate::plan::{ApplyError, Store, Update};
use crate::progress::Progress;
use crate::published::Published;

/// Longest time for one endpoint of the hub while enrolling.
const ENROL_LIMIT: Duration = Duration::from_secs(10);

/// The link's storage.
pub(crate) struct Backend {
    store: Arc<Store>,
    reports: watch::Receiver<MemberReport>,
    identities: IdentityStore,
    token_id: String,
    joined_by: String,
    progress: Published<Progress>,
    observed: Observed,
}

#[async_trait]
impl MemberBackend for Backend {
    fn held(&self) -> Held {
        let contents = self.store.contents();
        let (hub_id, epoch) = contents
            .head
            .as_ref()
            .map(|h| (h.hub_id.clone(), h.epoch))
            .unwrap_or_default();
        Held {
            hub_id,
            epoch,
            digests: contents.digests(),
        }
    }

    async fn apply(&self, update: VerifiedUpdate) -> Result<(), RefusedUpdate> {
        let update = Update {
            hub_id: update.hub_id,
            epoch: update.epoch,
            target: update.target,
            upserts: update.upserts,
            removes: update.removes.into_iter().collect(),
            full: update.full,
        };
        self.store.apply(&update).await.map_err(|error| {
            tracing::error!(digest = %update.target, %error, "plan refused; the plan before it stays");
            let resource = match &error {
                ApplyError::Refused { key, .. } => key.clone(),
                ApplyError::Unfit(_) => None,
            };
            RefusedUpdate {
                resource,
                reason: error.to_string().chars().take(1000).collect(),
            }
        })
    }

    fn reports(&self) -> watch::Receiver<MemberReport> {
        self.reports.clone()
    }

    async fn store_identity(&self, identity: &MemberIdentity) -> Result<(), StoreError> {
        let stored = Stored {
            identity: identity.clone(),
            token_id: self.token_id.clone(),
            joined_by: self.joined_by.clone(),
        };
        self.identities
            .save(&stored)
            .await
            .map_err(|e| StoreError(e.to_string()))?;
        self.observed.0.renewals.inc();
        self.progress.edit(|p| p.expires = stored.expires());
        let expires = stored.expires().map(rfc3339);
        tracing::info!(?expires, "certificate renewed");
        Ok(())
    }
}

/// A link for `spec` that isn't running yet.
pub(crate) fn link(
    spec: &HubConnectionSpec,
    stored: &Stored,
    store: Arc<Store>,
    reports: watch::Receiver<MemberReport>,
    identities: IdentityStore,
    progress: Published<Progress>,
    observed: Observed,
) -> (Link, LinkHandle) {
    let mut config = MemberConfig::new(spec.endpoints.clone(), env!("CARGO_PKG_VERSION"));
    // A member waits at most this long after its hub came back.
    config.backoff_limit = Duration::from_secs(5);
    let backend = Backend {
        store,
        reports,
        identities,
        token_id: stored.token_id.clone(),
        // It has passed the check by this pin.
        joined_by: spec.ca_pin.clone(),
        progress,
        observed,
    };
    Link::new(config, stored.identity.clone(), Arc::new(backend))
}

/// Why an enrolment failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EnrolFailure {
    /// Reason of the `Enrolled` condition.
    pub(crate) reason: &'static str,
    /// For the person who must act.
    pub(crate) message: String,
    /// Trying again with the same token can help.
    pub(crate) retry: bool,
}

/// One attempt to become `spec.member`.
pub(crate) async fn enrol(spec: &HubConnectionSpec, token: &str) -> Result<Stored, EnrolFailure> {
    let never = |reason, message: String| EnrolFailure {
        reason,
        message,
        retry: false,
    };
    let token: Token = token
        .parse()
        .map_err(|e: spillway_link::pki::NotAToken| never("TokenUnknown", e.to_string()))?;
    let pin: Pin = spec
        .ca_pin
        .parse()
        .map_err(|e: spillway_link::pki::NotAPin| never("PinMismatch", e.to_string()))?;
    let token_id = token.id().to_owned();
    let params = EnrollParams {
        endpoints: spec.endpoints.clone(),
        pin,
        token,
        member: spec.member.clone(),
        limit: ENROL_LIMIT,
    };
    match spillway_link::member::enroll(params).await {
        Ok(identity) => Ok(Stored {
            identity,
            token_id,
            joined_by: spec.ca_pin.clone(),
        }),
        Err(error) => Err(explain(&error)),
    }
}

fn explain(error: &EnrollError) -> EnrolFailure {
    let (reason, advice, retry) = match error {
        EnrollError::HubUnreachable { .. } => (
            "HubUnreachable",
            "check that the endpoint is right and that this cluster may connect to it",
            true,
        ),
        EnrollError::PinMismatch { .. } => (
            "PinMismatch",
            "the token was not sent; copy the whole join command again, and find out who answers there",
            true,
        ),
        EnrollError::NotTheHub { .. } => (
            "HubUnreachable",
            "the token was not sent; check that the endpoint is the hub's and that nothing on the way ends TLS",
            true,
        ),
        EnrollError::Protocol(_) => ("HubUnreachable", "check the versions of hub and agent", true),
        EnrollError::Refused(refusal) => match refusal {
            EnrollRefusal::TokenUnknown => (
                "TokenUnknown",
                "make a new one on the hub: spillway token create",
                false,
            ),
            EnrollRefusal::TokenUsed => (
                "TokenUsed",
                "make a new one on the hub: spillway token create",
                false,
            ),
            EnrollRefusal::TokenExpired => (
                "TokenExpired",
                "make a new one on the hub: spillway token create",
                false,
            ),
            EnrollRefusal::TokenForOtherMember => (
                "TokenForOtherMember",
                "use the name that the token was made for, or make a token for this name",
                false,
            ),
            EnrollRefusal::NameTaken => (
                "NameTaken",
                "choose another name, or make a token that lets this one join again: spillway token create --rejoin",
                false,
            ),
            EnrollRefusal::Invalid(_) => ("RequestInvalid", "check the versions of hub and agent", false),
            EnrollRefusal::Unavailable(_) => ("HubUnavailable", "trying again", true),
        },
    };
    EnrolFailure {
        reason,
        message: format!("{error}; {advice}"),
        retry,
    }
}

/// True where one of the identity's CAs has the pin `pin`.
pub(crate) fn has_pin(identity: &MemberIdentity, pin: &str) -> bool {
    CertificateDer::pem_slice_iter(identity.ca_pem.as_bytes())
        .filter_map(Result::ok)
        .filter_map(|ca| Pin::of(&ca).ok())
        .any(|p| p.to_string() == pin)
}

/// A time as API objects have it, in whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0));
    Timestamp::from_second(seconds).map_or_else(|_| String::new(), |t| t.to_string())
}

/// The `Connected` condition for a state of the link.
pub(crate) fn connected(state: &ConnectionState, member: &str) -> Verdict {
    let kind = ConditionType::Connected;
    match state {
        ConnectionState::Connected { endpoint, .. } => {
            Verdict::yes(kind, "Connected", format!("connected to {endpoint} as {member}"))
        }
        ConnectionState::Connecting { reason: None } => Verdict {
            kind,
            status: None,
            reason: "Connecting".into(),
            message: "connecting to the hub".into(),
        },
        ConnectionState::Connecting { reason: Some(reason) } => {
            let name = match reason {
                DisconnectReason::Unreachable { .. } => "HubUnreachable",
                DisconnectReason::NotOurHub { .. } => "NotOurHub",
                DisconnectReason::NotAccepted(_) => "CertificateNotAccepted",
                DisconnectReason::Revoked(_) => "Revoked",
                DisconnectReason::StaleHub { .. } => "StaleHub",
                DisconnectReason::Expired(_) => "CertificateExpired",
                DisconnectReason::BadIdentity(_) => "IdentityUnusable",
                DisconnectReason::Closed(_) => "StreamEnded",
                DisconnectReason::Silent => "HubSilent",
                DisconnectReason::Renewed => "Renewing",
            };
            Verdict::no(
                kind,
                name,
                format!("{reason}; the plan in place stays in force meanwhile"),
            )
        }
        ConnectionState::Left => Verdict::no(kind, "Left", "the hub has let this member go"),
        ConnectionState::Stopped => Verdict::no(kind, "Stopped", "the link isn't running"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waiting_can_mend_is_tried_again() {
        let refused = |r| explain(&EnrollError::Refused(r));
        assert!(!refused(EnrollRefusal::TokenUsed).retry);
        assert_eq!(refused(EnrollRefusal::NameTaken).reason, "NameTaken");
        assert!(refused(EnrollRefusal::Unavailable("no leader".into())).retry);
        let away = explain(&EnrollError::HubUnreachable {
            endpoint: "hub:9443".into(),
            cause: "connection refused".into(),
        });
        assert!(away.retry);
        assert!(away.message.contains("hub:9443") && away.message.contains("connection refused"));
    }

    #[tokio::test]
    async fn what_is_no_token_is_refused_without_repeating_it() {
        let failure = enrol(&HubConnectionSpec::default(), "spw1.secretstuff").await;
        let failure = failure.expect_err("no token");
        assert_eq!((failure.reason, failure.retry), ("TokenUnknown", false));
        assert!(!failure.message.contains("secretstuff"));
    }

    #[test]
    fn times_are_written_in_whole_seconds() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        assert_eq!(rfc3339(time), "1970-01-01T00:00:01Z");
    }
}

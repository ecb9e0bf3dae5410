//! When the certificate is renewed, and how.

use std::time::{Duration, SystemTime};

use tonic::Status;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::MemberBackend;
use super::channel::chain;
use crate::pki::{CertificateInfo, KeyAndCsr, MemberIdentity, PkiError};
use crate::proto;
use crate::proto::link_client::LinkClient;

/// Longest time for the call.
const LIMIT: Duration = Duration::from_secs(30);

/// Why there is no new certificate yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewError {
    #[error("the hub doesn't renew it: {}", chain(.0))]
    Hub(Status),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the renewed identity {0}")]
    Store(#[from] super::StoreError),
    #[error("the hub's answer is empty")]
    Empty,
    #[error("the hub's new certificate is for {0:?}")]
    OtherName(String),
}

/// How long the certificate is valid in all.
pub(super) fn life(certificate: &CertificateInfo) -> Duration {
    certificate
        .not_after
        .duration_since(certificate.not_before)
        .unwrap_or_default()
}

/// How long until the certificate is to be renewed: at half its life, give or take a tenth, so that
/// members that joined together don't renew together.
pub(super) fn due_in(certificate: &CertificateInfo, now: SystemTime, jitter: f64) -> Duration {
    let at = certificate.not_before + life(certificate).mul_f64(0.45 + 0.1 * jitter.clamp(0.0, 1.0));
    at.duration_since(now).unwrap_or_default()
}

/// How long to wait after a renewal failed: often enough to succeed before the end.
pub(super) fn retry_in(certificate: &CertificateInfo, now: SystemTime) -> Duration {
    let left = certificate.not_after.duration_since(now).unwrap_or_default();
    (left / 20).clamp(Duration::from_secs(1), Duration::from_secs(600))
}

/// Gets a certificate for a new key and stores both. The old identity stays good until its end, so a
/// failure at any step loses nothing.
pub(super) async fn renew(
    channel: Channel,
    old: &CertificateInfo,
    backend: &dyn MemberBackend,
) -> Result<MemberIdentity, RenewError> {
    let key = KeyAndCsr::generate()?;
    let mut request = tonic::Request::new(proto::RenewRequest { csr_der: key.csr_der });
    request.set_timeout(LIMIT);
    let answer = LinkClient::new(channel)
        .renew(request)
        .await
        .map_err(RenewError::Hub)?;
    let certificate = answer.into_inner().certificate.ok_or(RenewError::Empty)?;
    let identity = MemberIdentity {
        key_pem: key.key_pem,
        chain_pem: certificate.chain_pem,
        ca_pem: certificate.ca_pem,
    };
    identity.check()?;
    let new = identity.certificate()?;
    if new.member != old.member {
        return Err(RenewError::OtherName(new.member));
    }
    if let Err(e) = backend.store_identity(&identity).await {
        warn!(error = %e, "the renewed certificate can't be stored; the old one stays in use");
        return Err(e.into());
    }
    info!(old = old.serial, new = new.serial, "the certificate was renewed");
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_around_half_life_and_at_once_after_it() {
        let start = SystemTime::UNIX_EPOCH;
        let hours = |h: u64| Duration::from_secs(h * 3600);
        let certificate = CertificateInfo {
            member: "m".into(),
            serial: String::new(),
            not_before: start,
            not_after: start + hours(100),
        };
        for (jitter, due) in [(0.0, 45), (0.5, 50), (1.0, 55)] {
            assert_eq!(due_in(&certificate, start, jitter).as_secs() / 3600, due);
        }
        assert_eq!(due_in(&certificate, start + hours(60), 0.5), Duration::ZERO);
        assert_eq!(retry_in(&certificate, start + hours(200)), Duration::from_secs(1));
        assert_eq!(retry_in(&certificate, start), Duration::from_secs(600));
    }
}

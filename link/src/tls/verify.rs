//! Two checks that rustls doesn't have: the pin of a CA not yet known, and members whose certificate has
//! ended and who come to renew it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::provider;
use crate::pki::{CertificateInfo, Pin};

/// What a pin check saw, for the error message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum PinOutcome {
    /// The pinned CA was there; other checks may still have failed.
    Matched,
    /// Another CA, or none.
    Mismatch { got: Option<Pin> },
}

/// Accepts a server that shows the pinned CA and a certificate, signed by it, for the asked name.
#[derive(Debug)]
pub(super) struct PinVerifier {
    pub(super) pin: Pin,
    pub(super) outcome: Arc<OnceLock<PinOutcome>>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The leaf itself is never the CA: that would let whoever holds any key pinned by mistake in.
        let pinned = |c: &&CertificateDer<'_>| Pin::of(c).is_ok_and(|p| p == self.pin);
        let Some(authority) = intermediates.iter().find(pinned) else {
            let got = intermediates.last().and_then(|c| Pin::of(c).ok());
            let _ = self.outcome.set(PinOutcome::Mismatch { got });
            return Err(CertificateError::UnknownIssuer.into());
        };
        let _ = self.outcome.set(PinOutcome::Matched);
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 isn't spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Lets members in whose certificate ended less than `grace` ago. What they may do then is for the
/// services to decide: renew, and nothing else.
#[derive(Debug)]
pub(super) struct GraceVerifier {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) grace: Duration,
}

impl ClientCertVerifier for GraceVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verdict = self.inner.verify_client_cert(end_entity, intermediates, now);
        let expired = matches!(
            verdict,
            Err(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        );
        if !expired {
            return verdict;
        }
        let Some(end) = CertificateInfo::read(end_entity)
            .ok()
            .and_then(|i| i.not_after.duration_since(SystemTime::UNIX_EPOCH).ok())
        else {
            return verdict;
        };
        if now.as_secs() > (end + self.grace).as_secs() {
            return verdict;
        }
        let then = UnixTime::since_unix_epoch(end);
        self.inner.verify_client_cert(end_entity, intermediates, then)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 isn't spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

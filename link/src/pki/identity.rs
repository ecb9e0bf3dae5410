//! What a member holds to prove who it is, and what a certificate says.

use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{PkiError, Secret};
use crate::is_member_name;

/// URI names of members start with this.
pub(super) const MEMBER_URI: &str = "spillway://member/";

/// A member's key, certificate chain and the CAs it trusts; the contents of its identity Secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MemberIdentity {
    /// Private key, PKCS#8 PEM (`tls.key`).
    pub key_pem: Secret,
    /// Certificate chain, leaf first (`tls.crt`).
    pub chain_pem: String,
    /// CAs whose hubs are to be trusted (`ca.crt`).
    pub ca_pem: String,
}

impl MemberIdentity {
    /// What the leaf certificate says.
    pub fn certificate(&self) -> Result<CertificateInfo, PkiError> {
        let chain = certificates("the member's certificate", &self.chain_pem)?;
        CertificateInfo::read(&chain[0])
    }

    /// True where key, certificate and CA bundle can be read and the key is the certificate's.
    pub fn check(&self) -> Result<(), PkiError> {
        self.certificate()?;
        certificates("the CA bundle", &self.ca_pem)?;
        let key = rcgen::KeyPair::from_pem(self.key_pem.expose())
            .map_err(|e| PkiError::unusable("the member's key", &e))?;
        let chain = certificates("the member's certificate", &self.chain_pem)?;
        let (_, leaf) = X509Certificate::from_der(&chain[0])
            .map_err(|e| PkiError::unusable("the member's certificate", &e))?;
        if leaf.public_key().subject_public_key.data.as_ref() == key.public_key_raw() {
            Ok(())
        } else {
            Err(PkiError::unusable(
                "the member's key",
                &"it isn't the certificate's key",
            ))
        }
    }
}

/// What a member's certificate says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateInfo {
    /// Name of the member.
    pub member: String,
    /// Serial number, 32 lower-case hex digits.
    pub serial: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

impl CertificateInfo {
    /// Reads a member's certificate. Doesn't verify it: the caller did, or reads its own.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let bad = |why: &dyn ToString| PkiError::unusable("the member's certificate", why);
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| bad(&e))?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|e| bad(&e))?
            .ok_or_else(|| bad(&"it names no member"))?;
        let mut members = names.value.general_names.iter().filter_map(|n| match n {
            GeneralName::URI(uri) => uri.strip_prefix(MEMBER_URI),
            _ => None,
        });
        let (Some(member), None) = (members.next(), members.next()) else {
            return Err(bad(&"it doesn't name exactly one member"));
        };
        if !is_member_name(member) {
            return Err(PkiError::BadName(member.into()));
        }
        let at = |t: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(t).unwrap_or(0));
        Ok(Self {
            member: member.into(),
            serial: hex::encode(parsed.raw_serial()),
            not_before: at(parsed.validity().not_before.timestamp()),
            not_after: at(parsed.validity().not_after.timestamp()),
        })
    }
}

/// Certificates of a PEM text; at least one.
pub(crate) fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|e| PkiError::unusable(what, &e))?;
    if all.is_empty() {
        return Err(PkiError::unusable(what, &"it holds no certificate"));
    }
    Ok(all)
}

/// The private key of a PEM text.
pub(crate) fn private_key(pem: &Secret) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|e| PkiError::unusable("the key", &e))
}

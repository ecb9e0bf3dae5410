//! Certificate requests: of what a requester sends, only the public key counts.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SubjectPublicKeyInfo};
use spillway_core::plan::Digest;
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use super::{PkiError, Secret};

/// A fresh private key (ECDSA P-256) and the request for a certificate for it.
#[derive(Debug)]
pub struct KeyAndCsr {
    /// The private key, PKCS#8 PEM. Stays where it was made.
    pub key_pem: Secret,
    /// PKCS#10, DER: carries the public key and nothing else worth reading.
    pub csr_der: Vec<u8>,
}

impl KeyAndCsr {
    /// Makes a key and a request.
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key)?;
        Ok(Self {
            key_pem: Secret::new(key.serialize_pem()),
            csr_der: csr.der().to_vec(),
        })
    }
}

/// The public key of a request whose sender has proved to hold the private one.
#[derive(Clone, Debug)]
pub struct RequestedKey {
    spki: SubjectPublicKeyInfo,
    fingerprint: Digest,
}

impl RequestedKey {
    /// Takes the key out of a PKCS#10 request after checking the request's signature by that key
    /// (RFC 2986 §4.2). Subject, names and extensions asked for are ignored.
    pub fn from_csr(der: &[u8]) -> Result<Self, PkiError> {
        let bad = |e: &dyn ToString| PkiError::unusable("the certificate request", e);
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|e| bad(&e))?;
        if !rest.is_empty() {
            return Err(bad(&"trailing bytes"));
        }
        csr.verify_signature().map_err(|_| PkiError::NoPossession)?;
        let raw = csr.certification_request_info.subject_pki.raw;
        Ok(Self {
            spki: SubjectPublicKeyInfo::from_der(raw).map_err(|e| bad(&e))?,
            fingerprint: Digest::of(raw),
        })
    }

    /// SHA-256 of the SubjectPublicKeyInfo: tells a repeated request from a second requester.
    pub const fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    pub(super) fn public_key(&self) -> &impl PublicKeyData {
        &self.spki
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_signed_by_another_key_or_cut_off_is_refused() {
        let request = KeyAndCsr::generate().expect("a key").csr_der;
        assert!(RequestedKey::from_csr(&request).is_ok());
        let mut forged = request.clone();
        *forged.last_mut().expect("not empty") ^= 1;
        assert!(RequestedKey::from_csr(&forged).is_err());
        assert!(RequestedKey::from_csr(&request[..request.len() - 1]).is_err());
        assert!(RequestedKey::from_csr(b"").is_err());
    }
}

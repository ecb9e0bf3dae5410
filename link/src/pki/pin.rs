//! The pin: a short value by which a joining cluster knows the hub's CA.

use std::fmt;
use std::str::FromStr;

use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use spillway_core::plan::Digest;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::PkiError;

/// SHA-256 of a CA certificate's SubjectPublicKeyInfo (DER), as in RFC 7469. Survives a re-issue of the
/// certificate with the same key. Written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Pin(Digest);

impl Pin {
    /// The pin of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|e| PkiError::unusable("the CA certificate", &e))?;
        Ok(Self(Digest::of(parsed.public_key().raw)))
    }

    pub(super) fn of_key(key: &KeyPair) -> Self {
        Self(Digest::of(&key.subject_public_key_info()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A string that isn't a pin.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a pin is sha256: and 64 hex digits; copy the whole join command again")]
pub struct NotAPin;

impl FromStr for Pin {
    type Err = NotAPin;

    fn from_str(s: &str) -> Result<Self, NotAPin> {
        let hex = s.trim().strip_prefix("sha256:").ok_or(NotAPin)?;
        hex.parse().map(Self).map_err(|_| NotAPin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_prints_and_nothing_else() {
        let pin = Pin(Digest::of(b"key"));
        assert_eq!(pin.to_string().parse(), Ok(pin));
        assert_eq!(Digest::of(b"key").to_string().parse::<Pin>(), Err(NotAPin));
        assert_eq!("sha256:12".parse::<Pin>(), Err(NotAPin));
    }
}

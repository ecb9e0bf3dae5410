//! The federation's small PKI: one CA on the hub, short-lived leaf certificates, join tokens and the pin.

mod authorities;
mod authority;
mod csr;
mod identity;
mod pin;
mod token;

pub use authorities::{Authorities, AuthoritiesWatch, TrustState};
pub use authority::{CertificateAuthority, Issued, Serial};
pub use csr::{KeyAndCsr, RequestedKey};
pub use identity::{CertificateInfo, MemberIdentity};
pub(crate) use identity::{certificates, private_key};
pub use pin::{NotAPin, Pin};
pub use token::{NotAToken, Token};

use std::fmt;

/// A string that never shows in logs.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself: for files and the wire, never for messages.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What is wrong with a key or certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Keys or certificates could not be made.
    #[error("can't make a key or certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// Not what it should be, e.g. no PEM, no certificate in it, key and certificate don't match.
    #[error("{what} can't be used: {why}")]
    Unusable {
        /// Which input.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate request isn't signed by the key it is for.
    #[error("the certificate request isn't signed by its own key")]
    NoPossession,
    /// Not a name that a member may have.
    #[error("{0:?} is no name for a member: use a DNS label of at most 63 characters")]
    BadName(String),
}

impl PkiError {
    pub(crate) fn unusable(what: &'static str, why: &(impl ToString + ?Sized)) -> Self {
        Self::Unusable {
            what,
            why: why.to_string(),
        }
    }
}

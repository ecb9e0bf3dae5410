//! All CAs that a hub stands for: one signs, and while one follows another both are trusted.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::{CertificateAuthority, Pin, PkiError, certificates};

/// What a member holds of the hub's CAs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustState {
    /// CA that signed its certificate.
    pub issuer: Pin,
    /// CAs whose hubs it trusts.
    pub trusted: BTreeSet<Pin>,
}

/// The hub's CAs. A CA is followed by another in three steps, each of which waits for all members: the next
/// one is trusted, then it signs, then the one before is forgotten.
pub struct Authorities {
    signing: CertificateAuthority,
    /// Signing CA first.
    trusted: Vec<CertificateDer<'static>>,
    bundle_pem: String,
    state: TrustState,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authorities").field(&self.state).finish()
    }
}

impl Authorities {
    /// `signing` signs; the certificates in `besides` (PEM) are trusted as well.
    pub fn new(signing: CertificateAuthority, besides: &[&str]) -> Result<Self, PkiError> {
        let mut trusted = vec![signing.certificate().clone()];
        let mut bundle_pem = signing.certificate_pem().to_owned();
        let mut pins = BTreeSet::from([signing.pin()]);
        for pem in besides {
            let certificate = certificates("the CA certificate", pem)?.swap_remove(0);
            if pins.insert(Pin::of(&certificate)?) {
                trusted.push(certificate);
                bundle_pem += pem.trim_end();
                bundle_pem.push('\n');
            }
        }
        let state = TrustState {
            issuer: signing.pin(),
            trusted: pins,
        };
        Ok(Self {
            signing,
            trusted,
            bundle_pem,
            state,
        })
    }

    /// The CA that signs.
    pub const fn signing(&self) -> &CertificateAuthority {
        &self.signing
    }

    /// All trusted CAs, PEM, the signing one first.
    pub fn bundle_pem(&self) -> &str {
        &self.bundle_pem
    }

    /// What a member holds that was given its certificate now.
    pub const fn state(&self) -> &TrustState {
        &self.state
    }

    pub(crate) fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }
}

impl From<CertificateAuthority> for Authorities {
    fn from(signing: CertificateAuthority) -> Self {
        let state = TrustState {
            issuer: signing.pin(),
            trusted: BTreeSet::from([signing.pin()]),
        };
        Self {
            trusted: vec![signing.certificate().clone()],
            bundle_pem: signing.certificate_pem().to_owned(),
            signing,
            state,
        }
    }
}

/// The newest [`Authorities`], for everything that signs or verifies.
pub type AuthoritiesWatch = tokio::sync::watch::Receiver<Arc<Authorities>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_holds_each_ca_once_and_the_signing_one_first() {
        let ca = CertificateAuthority::generate("h").expect("a CA");
        let next = CertificateAuthority::generate("h").expect("a CA");
        let (own, besides) = (ca.certificate_pem().to_owned(), next.certificate_pem().to_owned());
        let pins = BTreeSet::from([ca.pin(), next.pin()]);
        let signing = ca.pin();
        let both = Authorities::new(ca, &[&besides, &own, &besides]).expect("usable");
        let bundle = certificates("test", both.bundle_pem()).expect("PEM");
        let listed: Vec<_> = bundle.iter().map(|c| Pin::of(c).expect("a pin")).collect();
        assert_eq!(listed, [signing, next.pin()]);
        assert_eq!((both.state().issuer, &both.state().trusted), (signing, &pins));
        assert!(!format!("{both:?}").contains("PRIVATE"));
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let ca = CertificateAuthority::generate("h").expect("a CA");
        let error = Authorities::new(ca, &["nonsense"]).expect_err("no PEM");
        assert!(error.to_string().contains("CA certificate"), "{error}");
    }
}

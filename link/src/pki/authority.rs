//! The hub's CA. It writes every field of what it signs; of a request it uses the public key alone.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;

use super::identity::{MEMBER_URI, certificates};
use super::{Pin, PkiError, RequestedKey, Secret};
use crate::{SERVER_NAME, is_member_name};

/// How long the CA's own certificate is valid.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates are valid from this long before they were made, for clocks that run behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Serial number of a certificate: 127 random bits, never starting with a zero byte, so its hex form
/// always has 32 digits and reads back from the certificate unchanged.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Serial([u8; 16]);

impl Serial {
    /// Draws one.
    pub fn random() -> Self {
        let mut bytes: [u8; 16] = rand::random();
        bytes[0] = (bytes[0] & 0x7f) | 0x40;
        Self(bytes)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A certificate that was just signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf first, then the CA.
    pub chain_pem: String,
    /// Its serial number.
    pub serial: Serial,
    /// Valid from, in whole seconds: a little before it was made.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

/// The hub's CA: key and certificate.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: Secret,
    pin: Pin,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Makes a new CA (ECDSA P-256, ten years). `hub_id` is part of its subject, for people.
    pub fn generate(hub_id: &str) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = dated(SystemTime::now(), CA_LIFETIME)?;
        params.distinguished_name = common_name(&format!("spillway hub {hub_id}"));
        // Leaves are signed by this CA directly: it can't be used to sign another CA.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key)?.pem();
        Self::load(&pem, &Secret::new(key.serialize_pem()))
    }

    /// Loads a CA from what [`Self::certificate_pem`] and [`Self::key_pem`] gave.
    pub fn load(certificate_pem: &str, key_pem: &Secret) -> Result<Self, PkiError> {
        let certificate = certificates("the CA certificate", certificate_pem)?.swap_remove(0);
        let key = KeyPair::from_pem(key_pem.expose()).map_err(|e| PkiError::unusable("the CA key", &e))?;
        let pin = Pin::of(&certificate)?;
        if pin != Pin::of_key(&key) {
            return Err(PkiError::unusable(
                "the CA key",
                &"it isn't the CA certificate's key",
            ));
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
            certificate_pem: certificate_pem.trim_end().to_owned() + "\n",
            key_pem: key_pem.clone(),
            pin,
        })
    }

    /// The CA certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA's private key, PKCS#8 PEM.
    pub const fn key_pem(&self) -> &Secret {
        &self.key_pem
    }

    /// The CA's pin.
    pub const fn pin(&self) -> Pin {
        self.pin
    }

    pub(crate) const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Signs a member's certificate for client use.
    pub fn issue_member(
        &self,
        key: &RequestedKey,
        member: &str,
        serial: Serial,
        lifetime: Duration,
    ) -> Result<Issued, PkiError> {
        if !is_member_name(member) {
            return Err(PkiError::BadName(member.into()));
        }
        let uri = SanType::URI(Ia5String::try_from(format!("{MEMBER_URI}{member}"))?);
        let leaf = Leaf {
            name: member,
            alternative: uri,
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            serial,
            lifetime,
        };
        self.issue(leaf, key.public_key())
    }

    /// Makes a key and certificate for the hub's own endpoint.
    pub fn issue_server(&self, lifetime: Duration) -> Result<(Secret, Issued), PkiError> {
        let key = KeyPair::generate()?;
        let leaf = Leaf {
            name: SERVER_NAME,
            alternative: SanType::DnsName(Ia5String::try_from(SERVER_NAME)?),
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            serial: Serial::random(),
            lifetime,
        };
        let issued = self.issue(leaf, &key)?;
        Ok((Secret::new(key.serialize_pem()), issued))
    }

    fn issue(&self, leaf: Leaf<'_>, key: &impl PublicKeyData) -> Result<Issued, PkiError> {
        let now = SystemTime::now();
        let mut params = dated(now, leaf.lifetime)?;
        params.distinguished_name = common_name(leaf.name);
        params.subject_alt_names = vec![leaf.alternative];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![leaf.usage];
        params.serial_number = Some(SerialNumber::from_slice(&leaf.serial.0));
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Issued {
            chain_pem: certificate.pem() + &self.certificate_pem,
            serial: leaf.serial,
            not_before: whole_seconds(now - BACKDATE),
            not_after: now + leaf.lifetime,
        })
    }
}

/// What differs between the leaves.
struct Leaf<'a> {
    name: &'a str,
    alternative: SanType,
    usage: ExtendedKeyUsagePurpose,
    serial: Serial,
    lifetime: Duration,
}

fn dated(now: SystemTime, lifetime: Duration) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

/// As a certificate says it (RFC 5280, 4.1.2.5).
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn common_name(name: &str) -> DistinguishedName {
    let mut out = DistinguishedName::new();
    out.push(DnType::CommonName, name);
    out
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;

    use super::super::{CertificateInfo, KeyAndCsr};
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_ca_survives_storage_and_refuses_anothers_key() {
        let ca = CertificateAuthority::generate("h1").expect("a CA");
        let again = CertificateAuthority::load(ca.certificate_pem(), ca.key_pem()).expect("its own PEM");
        assert_eq!(again.pin(), ca.pin());
        let other = CertificateAuthority::generate("h2").expect("a CA");
        assert!(CertificateAuthority::load(ca.certificate_pem(), other.key_pem()).is_err());
        assert!(!format!("{ca:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_request_that_asks_for_anothers_name_gets_its_own() {
        let ca = CertificateAuthority::generate("h1").expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let mut wish = CertificateParams::new(vec!["hub.spillway.internal".to_owned()]).expect("params");
        wish.distinguished_name = common_name("i-am-admin");
        wish.subject_alt_names.push(SanType::URI(
            Ia5String::try_from("spillway://member/other").expect("ascii"),
        ));
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = wish.serialize_request(&key).expect("a request");
        let requested = RequestedKey::from_csr(csr.der()).expect("signed by its key");

        let serial = Serial::random();
        let issued = ca.issue_member(&requested, "fra-1", serial, DAY).expect("issued");
        let chain = certificates("test", &issued.chain_pem).expect("PEM");
        let info = CertificateInfo::read(&chain[0]).expect("a member's certificate");
        assert_eq!((info.member.as_str(), info.serial), ("fra-1", serial.to_string()));
        assert!(info.not_before < SystemTime::now() && info.not_after > SystemTime::now());
        assert_eq!(info.not_before, issued.not_before);
        let text = String::from_utf8_lossy(&chain[0]).into_owned();
        assert!(!text.contains("i-am-admin") && !text.contains("other") && !text.contains(SERVER_NAME));
    }

    #[test]
    fn no_certificate_for_what_is_no_name() {
        let ca = CertificateAuthority::generate("h1").expect("a CA");
        let csr = KeyAndCsr::generate().expect("a key").csr_der;
        let key = RequestedKey::from_csr(&csr).expect("signed");
        for name in ["", "-a", "a/b", "A", "a.b", &"a".repeat(64)] {
            let refused = ca.issue_member(&key, name, Serial::random(), DAY);
            assert!(matches!(refused, Err(PkiError::BadName(_))), "{name}");
        }
    }
}

//! A node's private key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gotatun::x25519;
use spillway_core::wireguard::PublicKey;
use zeroize::Zeroizing;

/// A Curve25519 private key. It has no `Debug`, and what held it is overwritten when it goes.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

/// A text that isn't a private key. It doesn't repeat it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a WireGuard private key is 32 bytes in base64")]
pub struct NotAPrivateKey;

impl PrivateKey {
    /// A new key, of the kernel's random numbers.
    pub fn generate() -> Self {
        Self(x25519::StaticSecret::random())
    }

    /// Reads what [`Self::to_text`] wrote; white space around it doesn't matter.
    pub fn parse(text: &str) -> Result<Self, NotAPrivateKey> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| NotAPrivateKey)?);
        let bytes: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| NotAPrivateKey)?;
        Ok(Self((*bytes).into()))
    }

    /// The key in base64, as `wg genkey` prints it.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_bytes()))
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        x25519::PublicKey::from(&self.0).to_bytes().into()
    }

    pub(super) fn secret(&self) -> x25519::StaticSecret {
        self.0.clone()
    }

    pub(super) fn bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_what_others_make_of_the_private_one() {
        let key = PrivateKey::parse("AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=").expect("a key");
        assert_eq!(
            key.public().to_string(),
            "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw="
        );
    }

    #[test]
    fn a_key_reads_back_what_it_prints() {
        let key = PrivateKey::generate();
        let read = PrivateKey::parse(&format!("{}\n", *key.to_text())).expect("a key");
        assert_eq!(read.public(), key.public());
        assert_ne!(PrivateKey::generate().public(), key.public());
        for bad in ["", "AAAA", "not base64"] {
            assert!(PrivateKey::parse(bad).is_err());
        }
    }
}

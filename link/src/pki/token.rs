//! Join tokens: random, used once, stored only as a hash.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use spillway_core::plan::Digest;

/// Marks the format, so that people and secret scanners recognise it.
const PREFIX: &str = "spw1";

/// A join token: `spw1.<id: 32 hex digits>.<secret: 43 base64url characters>`.
///
/// The id is public (it names the Secret that holds the hash); all 256 bits of strength are in the rest.
#[derive(Clone, Eq, PartialEq)]
pub struct Token {
    text: String,
}

impl Token {
    /// Draws a new token.
    pub fn generate() -> Self {
        let id: [u8; 16] = rand::random();
        let secret: [u8; 32] = rand::random();
        Self {
            text: format!("{PREFIX}.{}.{}", hex::encode(id), URL_SAFE_NO_PAD.encode(secret)),
        }
    }

    /// The public part: 32 lower-case hex digits, fit for an object name.
    pub fn id(&self) -> &str {
        &self.text[PREFIX.len() + 1..PREFIX.len() + 33]
    }

    /// SHA-256 of the whole token: what the hub stores. The token is random, so a plain hash can't be
    /// guessed back, and comparing hashes leaks nothing by timing that would help to find a token.
    pub fn hash(&self) -> Digest {
        Digest::of(self.text.as_bytes())
    }

    /// The token itself, for the join command and the wire.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.[redacted]", self.id())
    }
}

/// A string that isn't a join token. Doesn't repeat the string: it may hold most of a real one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a join token (spw1.<id>.<secret>); copy the whole join command again")]
pub struct NotAToken;

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(s: &str) -> Result<Self, NotAToken> {
        let text = s.trim();
        let mut parts = text.split('.');
        let (Some(PREFIX), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAToken);
        };
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let id_is_right = id.len() == 32 && id.bytes().all(hex);
        let secret_is_right = URL_SAFE_NO_PAD.decode(secret).is_ok_and(|s| s.len() == 32);
        if id_is_right && secret_is_right {
            Ok(Self { text: text.into() })
        } else {
            Err(NotAToken)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_hides_its_secret() {
        let token = Token::generate();
        let read: Token = format!(" {}\n", token.expose()).parse().expect("its own text");
        assert_eq!(read, token);
        assert_eq!(read.hash(), token.hash());
        assert_ne!(token, Token::generate());
        let secret = token.expose().rsplit('.').next().expect("three parts");
        assert!(!format!("{token:?}").contains(secret));
        assert!(format!("{token:?}").contains(token.id()));
    }

    #[test]
    fn what_is_cut_off_or_altered_is_no_token() {
        let token = Token::generate();
        let text = token.expose();
        for wrong in [
            "",
            "spw1..",
            &text[..text.len() - 1],
            &text[1..],
            &text.replacen("spw1", "spw2", 1),
            &format!("{text}.x"),
        ] {
            assert_eq!(wrong.parse::<Token>(), Err(NotAToken), "{wrong:?}");
        }
    }
}

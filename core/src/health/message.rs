//! The datagrams of probes, UDP port [`PORT`] between overlay addresses.
//!
//! ```text
//!  0      4 5 6 7       8            16                  24             28
//!  "SWPR"  v k f count   id            programmed plan     held (answers)  addresses asked for (requests), 16 bytes each
//! ```
//! v: version 1; k: 1 request, 2 answer; f: flags; all numbers big-endian. IPv4 addresses are mapped (RFC 4291,
//! 2.5.5.2). What follows is ignored, so that later versions may append. An answer is never longer than its request.

use std::net::{IpAddr, Ipv6Addr};

/// UDP port of probes, on the tunnel device only.
pub const PORT: u16 = 5712;

/// Most addresses that one request asks for.
pub const MOST_ASKED: usize = 32;

/// Longest datagram in bytes.
pub const LONGEST: usize = HEAD + 16 * MOST_ASKED;

const MAGIC: [u8; 4] = *b"SWPR";
const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
const READY: u8 = 1;
const YIELDING: u8 = 2;
const COUNTS: u8 = 4;
const HEARS: u8 = 8;
const HEAD: usize = 28;

/// What a node says of itself and of whom it talks to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "independent bits of a datagram")]
pub struct Said {
    /// It has programmed its plan, hears others and doesn't want to be left.
    pub ready: bool,
    /// It leaves its place to others because one of them doesn't count it.
    pub yielding: bool,
    /// It would use the node that it talks to as it would any other: that one answers it, and for long enough.
    pub counts: bool,
    /// It gets answers from the node that it talks to, or can't tell yet.
    pub hears: bool,
    /// First eight bytes of the digest of the plan in its kernel; zero without any.
    pub programmed: [u8; 8],
}

impl Said {
    /// It may be used like any other.
    pub const fn usable(&self) -> bool {
        self.ready && !self.yielding
    }
}

/// A datagram.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// Chosen by the asking node at random; the answer repeats it.
    pub id: u64,
    /// What the sender says.
    pub said: Said,
    /// Which of the two it is.
    pub body: Body,
}

/// Question or answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body {
    /// "Are you there, and do you answer for these egress IPs?"
    Request {
        /// At most [`MOST_ASKED`].
        asked: Vec<IpAddr>,
    },
    /// "I am."
    Answer {
        /// Bit n: the sender answers for the n-th address asked for.
        held: u32,
    },
}

impl Message {
    /// The bytes. Addresses beyond [`MOST_ASKED`] are left out.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, asked, held) = match &self.body {
            Body::Request { asked } => (REQUEST, asked.as_slice(), 0),
            Body::Answer { held } => (ANSWER, [].as_slice(), *held),
        };
        let asked = &asked[..asked.len().min(MOST_ASKED)];
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let said = &self.said;
        let flags = flag(said.ready, READY)
            | flag(said.yielding, YIELDING)
            | flag(said.counts, COUNTS)
            | flag(said.hears, HEARS);
        let count = u8::try_from(asked.len()).unwrap_or(0);
        let mut bytes = Vec::with_capacity(HEAD + 16 * asked.len());
        bytes.extend(MAGIC);
        bytes.extend([VERSION, kind, flags, count]);
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(said.programmed);
        bytes.extend(held.to_be_bytes());
        for address in asked {
            let mapped = match address {
                IpAddr::V4(a) => a.to_ipv6_mapped(),
                IpAddr::V6(a) => *a,
            };
            bytes.extend(mapped.octets());
        }
        bytes
    }

    /// Reads a datagram; `None` for anything that isn't one of ours, whole and of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let fixed: &[u8; HEAD] = bytes.first_chunk()?;
        let [m0, m1, m2, m3, version, kind, flags, count, ..] = *fixed;
        if [m0, m1, m2, m3] != MAGIC || version != VERSION {
            return None;
        }
        let number = |at: usize| fixed.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        let held = u32::from_be_bytes(fixed.get(24..28)?.try_into().ok()?);
        let body = match kind {
            REQUEST => {
                let count = usize::from(count);
                if count > MOST_ASKED {
                    return None;
                }
                let asked = bytes.get(HEAD..HEAD + 16 * count)?;
                let read = |chunk: &[u8]| {
                    let octets: [u8; 16] = chunk.try_into().ok()?;
                    Some(Ipv6Addr::from(octets).to_canonical())
                };
                Body::Request {
                    asked: asked.chunks_exact(16).map(read).collect::<Option<_>>()?,
                }
            }
            ANSWER => Body::Answer { held },
            _ => return None,
        };
        Some(Self {
            id: number(8)?,
            said: Said {
                ready: flags & READY != 0,
                yielding: flags & YIELDING != 0,
                counts: flags & COUNTS != 0,
                hears: flags & HEARS != 0,
                programmed: fixed.get(16..24)?.try_into().ok()?,
            },
            body,
        })
    }
}

/// The first eight bytes of a digest in hexadecimal; zero where it is none.
pub fn abbreviated(digest: Option<&str>) -> [u8; 8] {
    let mut bytes = [0; 8];
    let decoded = digest
        .and_then(|d| d.get(..16))
        .map(|d| hex::decode_to_slice(d, &mut bytes));
    match decoded {
        Some(Ok(())) => bytes,
        _ => [0; 8],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said() -> impl Strategy<Value = Said> {
        any::<(bool, bool, bool, bool, [u8; 8])>().prop_map(|(ready, yielding, counts, hears, programmed)| {
            Said {
                ready,
                yielding,
                counts,
                hears,
                programmed,
            }
        })
    }

    fn message() -> impl Strategy<Value = Message> {
        let address = prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(|a| IpAddr::from(a).to_canonical()),
        ];
        let body = prop_oneof![
            proptest::collection::vec(address, 0..=MOST_ASKED).prop_map(|asked| Body::Request { asked }),
            any::<u32>().prop_map(|held| Body::Answer { held }),
        ];
        (any::<u64>(), said(), body).prop_map(|(id, said, body)| Message { id, said, body })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in message(), appended in any::<[u8; 5]>()) {
            let mut bytes = message.encode();
            prop_assert!(bytes.len() <= LONGEST);
            prop_assert_eq!(Message::decode(&bytes), Some(message.clone()));
            bytes.extend(appended);
            prop_assert_eq!(Message::decode(&bytes), Some(message));
        }

        #[test]
        fn anything_else_is_refused_and_nothing_panics(
            message in message(),
            cut in 0..LONGEST,
            position in 0..HEAD,
            bits in 1_u8..,
            noise in proptest::collection::vec(any::<u8>(), 0..LONGEST),
        ) {
            let bytes = message.encode();
            let needed = bytes.len();
            prop_assert!(cut >= needed || Message::decode(&bytes[..cut]).is_none());
            let mut changed = bytes;
            changed[position] ^= bits;
            let read = Message::decode(&changed);
            prop_assert!(position > 4 || read.is_none());
            let _ = Message::decode(&noise);
        }
    }

    #[test]
    fn a_digest_is_abbreviated() {
        assert_eq!(
            abbreviated(Some(&"0123456789abcdef".repeat(4))),
            [1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]
        );
        for none in [None, Some(""), Some("xyz"), Some("zz23456789abcdef")] {
            assert_eq!(abbreviated(none), [0; 8]);
        }
    }
}

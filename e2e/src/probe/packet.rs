//! The few packet formats that raw sockets show: IPv4 (RFC 791), TCP (RFC 9293), ICMP echo (RFC 792, RFC 4443).

use std::net::Ipv4Addr;

/// ICMP's echo request, RFC 792.
pub(crate) const ECHO_REQUEST: u8 = 8;
/// ICMP's echo reply, RFC 792.
pub(crate) const ECHO_REPLY: u8 = 0;
/// ICMPv6's echo request, RFC 4443.
pub(crate) const ECHO_REQUEST_V6: u8 = 128;
/// ICMPv6's echo reply, RFC 4443.
pub(crate) const ECHO_REPLY_V6: u8 = 129;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Takes an IPv4 header off: the destination and what follows the header.
pub(crate) fn ipv4(packet: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let length = usize::from(packet.first()? & 0x0f) * 4;
    let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    Some((Ipv4Addr::from(destination), packet.get(length.max(20)..)?))
}

/// Source and destination port of a segment that opens a connection; `None` for any other.
pub(crate) fn syn(segment: &[u8]) -> Option<(u16, u16)> {
    let flags = *segment.get(13)?;
    (flags & (SYN | ACK) == SYN).then(|| (be16(segment, 0), be16(segment, 2)))
}

/// An ICMP echo message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo<'a> {
    /// Request or reply.
    pub(crate) kind: u8,
    /// Which pinging process.
    pub(crate) identifier: u16,
    /// Which of its requests.
    pub(crate) sequence: u16,
    /// What it carries.
    pub(crate) payload: &'a [u8],
}

impl<'a> Echo<'a> {
    /// Reads a message of the type `kind`; `None` for any other.
    pub(crate) fn parse(message: &'a [u8], kind: u8) -> Option<Self> {
        let payload = message.get(8..)?;
        (message[0] == kind).then(|| Self {
            kind,
            identifier: be16(message, 4),
            sequence: be16(message, 6),
            payload,
        })
    }

    /// The message with ICMP's checksum. ICMPv6's covers addresses as well: there the kernel writes its own over it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind, 0, 0, 0];
        bytes.extend(self.identifier.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.payload);
        let sum = checksum(&bytes).to_be_bytes();
        bytes[2..4].copy_from_slice(&sum);
        bytes
    }
}

/// The internet checksum, RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// A big-endian number; the caller checked the length.
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_reads_back_and_its_checksum_holds() {
        for payload in [&b"tag"[..], b"even", b""] {
            let echo = Echo {
                kind: ECHO_REQUEST,
                identifier: 0x1234,
                sequence: 7,
                payload,
            };
            let bytes = echo.bytes();
            assert_eq!(Echo::parse(&bytes, ECHO_REQUEST), Some(echo));
            assert_eq!(checksum(&bytes), 0, "a message with its checksum sums to zero");
            assert_eq!(Echo::parse(&bytes, ECHO_REPLY), None);
        }
        assert_eq!(Echo::parse(&[8, 0, 0], ECHO_REQUEST), None);
    }

    #[test]
    fn only_the_first_segment_opens_a_connection() {
        let mut segment = [0; 20];
        segment[..4].copy_from_slice(&[0x9d, 0x78, 0x1b, 0x58]);
        for (flags, expected) in [
            (SYN, Some((40312, 7000))),
            (SYN | ACK, None),
            (ACK, None),
            (SYN | 0xc0, Some((40312, 7000))),
        ] {
            segment[13] = flags;
            assert_eq!(syn(&segment), expected, "{flags:#x}");
        }
        assert_eq!(syn(&segment[..12]), None);
    }

    #[test]
    fn an_ipv4_header_with_options_is_taken_off_whole() {
        let mut packet = vec![0x46; 28];
        packet[16..20].copy_from_slice(&[198, 51, 100, 10]);
        let (destination, rest) = ipv4(&packet).unwrap();
        assert_eq!((destination, rest.len()), (Ipv4Addr::new(198, 51, 100, 10), 4));
        assert!(ipv4(&packet[..10]).is_none());
    }
}

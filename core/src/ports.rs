//! Destination ports, as policies name them.

use std::fmt;

use spillway_crds::hub::{DestinationPort, Protocol};

use crate::node::interval::Family;

/// ICMP, TCP, UDP, ICMPv6 and SCTP in a packet's header (RFC 5237).
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Protocols that policies tell apart.
pub const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp];

/// The protocol's number in packets of one family.
pub const fn number(protocol: Protocol, family: Family) -> u8 {
    match (protocol, family) {
        (Protocol::Tcp, _) => TCP,
        (Protocol::Udp, _) => UDP,
        (Protocol::Sctp, _) => SCTP,
        (Protocol::Icmp, Family::V4) => ICMP,
        (Protocol::Icmp, Family::V6) => ICMPV6,
    }
}

/// The name of a protocol that has one here.
pub const fn name(number: u8) -> Option<&'static str> {
    match number {
        ICMP => Some("icmp"),
        TCP => Some("tcp"),
        UDP => Some("udp"),
        ICMPV6 => Some("ipv6-icmp"),
        SCTP => Some("sctp"),
        _ => None,
    }
}

/// Ports of a protocol that a policy claims.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortClaim {
    /// The protocol.
    pub protocol: Protocol,
    /// The first port; 0 where the whole protocol is claimed.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl PortClaim {
    /// How many ports it claims, 1 to 65,536. The claim with fewer wins.
    pub fn width(&self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// True where it claims this port of this protocol.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && self.first <= port && port <= self.last
    }
}

/// What is wrong with an entry. Its text says what to write instead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BadPort {
    /// A port that is none.
    OutOfRange(i32),
    /// A range that ends before it begins.
    Backwards {
        /// Its first port.
        port: i32,
        /// Its last port.
        end: i32,
    },
    /// A range without a first port.
    EndAlone,
    /// ICMP with a port.
    WithoutPorts,
}

impl fmt::Display for BadPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange(port) => write!(f, "{port} is no port; ports are 1 to 65535"),
            Self::Backwards { port, end } => {
                write!(f, "the range ends at {end}, before its port {port}; swap the two")
            }
            Self::EndAlone => f.write_str("endPort needs port, the first one of the range"),
            Self::WithoutPorts => f.write_str("ICMP has no ports; leave port out"),
        }
    }
}

/// Reads an entry.
///
/// # Errors
/// Where it isn't one that the API server would take.
pub fn parse(entry: &DestinationPort) -> Result<PortClaim, BadPort> {
    let protocol = entry.protocol;
    let port = |number: i32| match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(BadPort::OutOfRange(number)),
    };
    match (entry.port, entry.end_port) {
        (None, None) => Ok(PortClaim {
            protocol,
            first: 0,
            last: u16::MAX,
        }),
        _ if protocol == Protocol::Icmp => Err(BadPort::WithoutPorts),
        (None, Some(_)) => Err(BadPort::EndAlone),
        (Some(first), end) => {
            let last = end.unwrap_or(first);
            if last < first {
                return Err(BadPort::Backwards {
                    port: first,
                    end: last,
                });
            }
            Ok(PortClaim {
                protocol,
                first: port(first)?,
                last: port(last)?,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(protocol: Protocol, port: Option<i32>, end_port: Option<i32>) -> DestinationPort {
        DestinationPort {
            protocol,
            port,
            end_port,
        }
    }

    #[test]
    fn a_port_a_range_and_a_whole_protocol() {
        let claim = |port, end| parse(&entry(Protocol::Tcp, port, end)).expect("an entry");
        let one = claim(Some(443), None);
        assert_eq!((one.first, one.last, one.width()), (443, 443, 1));
        let some = claim(Some(1), Some(65_535));
        assert_eq!((some.first, some.last, some.width()), (1, 65_535, 65_535));
        let all = claim(None, None);
        assert_eq!(all.width(), 65_536, "a whole protocol is wider than any range");
        assert!(all.contains(Protocol::Tcp, 0) && !all.contains(Protocol::Udp, 53));
        assert_eq!(
            parse(&entry(Protocol::Icmp, None, None)).expect("ICMP").width(),
            65_536
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (protocol, port, end, says) in [
            (Protocol::Tcp, Some(0), None, "ports are 1 to 65535"),
            (Protocol::Udp, Some(70_000), None, "70000 is no port"),
            (Protocol::Udp, Some(1), Some(70_000), "70000 is no port"),
            (Protocol::Tcp, Some(443), Some(80), "swap the two"),
            (Protocol::Tcp, Some(-1), Some(-5), "swap the two"),
            (Protocol::Sctp, None, Some(80), "endPort needs port"),
            (Protocol::Icmp, Some(8), None, "ICMP has no ports"),
            (Protocol::Icmp, None, Some(8), "ICMP has no ports"),
        ] {
            let bad = parse(&entry(protocol, port, end)).expect_err("must be refused");
            assert!(bad.to_string().contains(says), "{bad}");
        }
    }
}

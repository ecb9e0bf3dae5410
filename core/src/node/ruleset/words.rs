//! The words in which the families differ.

use crate::node::interval::Family;

/// Protocols with ports.
pub(super) const PORTS: &str = "meta l4proto { tcp, udp, sctp }";

/// The words of one family.
pub(super) struct Words {
    pub(super) family: Family,
    /// Suffix of set names.
    pub(super) suffix: &'static str,
    /// Header in an expression.
    pub(super) header: &'static str,
    /// Type of an address.
    pub(super) address: &'static str,
    /// Value of `meta nfproto`.
    pub(super) nfproto: &'static str,
    /// ICMP header in an expression.
    pub(super) icmp: &'static str,
    /// Value of `meta l4proto` for ICMP.
    pub(super) l4proto: &'static str,
    /// Matches ICMP errors.
    pub(super) errors: &'static str,
    pub(super) inner: Inner,
}

/// Fields of the packet that an ICMP error embeds (RFC 792, RFC 4443), as raw expressions: nft 1.0.6 has no names for
/// them. They are where they are only in a packet without IP options or extension headers; any other matches nothing.
pub(super) struct Inner {
    /// Matches an IP header without options, where options are part of it.
    plain: &'static str,
    /// Protocol.
    protocol: &'static str,
    /// Source port.
    pub(super) source_port: &'static str,
    /// Destination port.
    pub(super) destination_port: &'static str,
    /// Matches an echo request.
    echo_request: &'static str,
    /// Identifier of an echo request.
    pub(super) echo_id: &'static str,
    /// Destination address, in pieces of 32 bits.
    pub(super) destination: &'static [&'static str],
}

impl Words {
    /// Matches an error about a packet with ports.
    pub(super) fn error_with_ports(&self) -> String {
        let Inner { plain, protocol, .. } = self.inner;
        format!("{} {plain}{protocol} {{ 0x6, 0x11, 0x84 }}", self.errors)
    }

    /// Matches an error about an echo request.
    pub(super) fn error_of_echo(&self) -> String {
        let Inner {
            plain, echo_request, ..
        } = self.inner;
        format!("{} {plain}{echo_request}", self.errors)
    }

    /// Suffixes of the sets that hold an egress IP with the pieces of itself.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (String, &'static str)> {
        let names = self.inner.destination.iter().enumerate();
        names.map(|(n, piece)| (format!("{}_{n}", self.suffix), *piece))
    }
}

pub(super) const WORDS: [Words; 2] = [
    Words {
        family: Family::V4,
        suffix: "4",
        header: "ip",
        address: "ipv4_addr",
        nfproto: "ipv4",
        icmp: "icmp",
        l4proto: "icmp",
        errors: "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
        // The ICMP header has 8 bytes, the IP header 20: its protocol is at 9, the destination at 16.
        inner: Inner {
            plain: "@th,64,8 0x45 ",
            protocol: "@th,136,8",
            source_port: "@th,224,16",
            destination_port: "@th,240,16",
            echo_request: "@th,136,8 0x1 @th,224,8 0x8",
            echo_id: "@th,256,16",
            destination: &["@th,192,32"],
        },
    },
    Words {
        family: Family::V6,
        suffix: "6",
        header: "ip6",
        address: "ipv6_addr",
        nfproto: "ipv6",
        icmp: "icmpv6",
        l4proto: "ipv6-icmp",
        errors: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
        // The ICMP header has 8 bytes, the IP header 40: its next header is at 6, the destination at 24.
        inner: Inner {
            plain: "",
            protocol: "@th,112,8",
            source_port: "@th,384,16",
            destination_port: "@th,400,16",
            echo_request: "@th,112,8 0x3a @th,384,8 0x80",
            echo_id: "@th,416,16",
            destination: &["@th,256,32", "@th,288,32", "@th,320,32", "@th,352,32"],
        },
    },
];

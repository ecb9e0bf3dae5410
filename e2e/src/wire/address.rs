//! Who has which address. All are documentation, benchmarking or private ranges and live only inside namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// TCP and UDP port of the outside server that answers with the source it saw.
pub const ECHO_PORT: u16 = 7000;

/// The outside server's IPv4 addresses.
pub const OUTSIDE_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 10), Ipv4Addr::new(198, 51, 100, 11)];

/// The outside server's IPv6 addresses.
pub const OUTSIDE_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x10),
    Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x11),
];

/// The router's address on the outside network, a /24.
pub const ROUTER_OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The router's address on the outside network, a /64.
pub const ROUTER_OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);

/// The host number of the router on every segment.
pub const ROUTER_HOST: u16 = 1;

/// All addresses of the outside server.
pub fn outside() -> impl Iterator<Item = IpAddr> {
    OUTSIDE_V4
        .into_iter()
        .map(IpAddr::from)
        .chain(OUTSIDE_V6.into_iter().map(IpAddr::from))
}

/// Host `n` of a partition's segment, 172.30.p.0/24.
pub fn host_v4(partition: u8, n: u16) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, partition, u8::try_from(n).unwrap_or(u8::MAX))
}

/// Host `n` of a partition's segment, fd30:0:0:p::/64. Reads like the v4 address: host 20 is `::20`.
pub fn host_v6(partition: u8, n: u16) -> Ipv6Addr {
    Ipv6Addr::new(
        0xfd30,
        0,
        0,
        looks_like(u16::from(partition)),
        0,
        0,
        0,
        looks_like(n),
    )
}

/// The number whose hexadecimal digits are the decimal digits of `n`.
fn looks_like(n: u16) -> u16 {
    (0..4).map(|i| ((n / 10_u16.pow(i)) % 10) << (4 * i)).sum()
}

/// A partition's subnet for egress IPs, on-link on its segment; host 1 is the router.
pub fn egress_v4(partition: u8) -> Ipv4Net {
    let base = match partition {
        1 => Ipv4Addr::new(203, 0, 113, 0),
        2 => Ipv4Addr::new(192, 0, 2, 0),
        p => Ipv4Addr::new(198, 18, p, 0),
    };
    Ipv4Net::new_assert(base, 24)
}

/// A partition's subnet for egress IPs, on-link on its segment; host 1 is the router.
pub fn egress_v6(partition: u8) -> Ipv6Net {
    let third = match partition {
        1 => 0x113,
        2 => 0x192,
        p => 0x1800 + looks_like(u16::from(p)),
    };
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, 0, 0), 64)
}

/// An interface name that nobody else has, for what is known by `text`.
pub fn unique_port(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    format!("sw{}", hex::encode(&Sha256::digest(text)[..5]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v6_reads_like_v4() {
        assert_eq!(host_v4(1, 20).to_string(), "172.30.1.20");
        assert_eq!(host_v6(1, 20).to_string(), "fd30:0:0:1::20");
        assert_eq!(host_v6(12, 104).to_string(), "fd30:0:0:12::104");
        assert_eq!(egress_v4(1).to_string(), "203.0.113.0/24");
        assert_eq!(egress_v6(1).to_string(), "2001:db8:113::/64");
    }
}

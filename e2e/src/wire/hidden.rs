//! Partitions that nobody can call: a firewall in the router lets nothing in to their machines that they didn't ask for, and
//! a NAT may hide them from the other partitions.

use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::Result;

use super::{address, netns};
use crate::state::Plan;

const TABLE: &str = "arena-hidden";

/// A NAT between a partition and the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat {
    /// The partition behind it.
    pub partition: u8,
    /// The address that the others see, one of the router's in partition 1.
    pub address: Ipv4Addr,
    /// First and last port that they see.
    pub ports: (u16, u16),
}

impl Nat {
    /// A NAT as it is before it rebinds, and after.
    pub fn of(partition: u8, rebound: bool) -> Self {
        if rebound {
            let other = address::egress_v4(1).hosts().next();
            Self {
                partition,
                address: other.unwrap_or(Ipv4Addr::UNSPECIFIED),
                ports: (50_000, 59_999),
            }
        } else {
            Self {
                partition,
                address: address::host_v4(1, address::ROUTER_HOST),
                ports: (40_000, 49_999),
            }
        }
    }
}

/// Hides the machines of these partitions. What the NAT has given out is forgotten, for datagrams.
///
/// `open` is UDP that is let in nevertheless: an address and a port.
pub fn set_hidden(
    plan: &Plan,
    partitions: &[u8],
    nat: Option<Nat>,
    open: Option<(Ipv4Addr, u16)>,
) -> Result<()> {
    let mut forward = String::new();
    if let Some((address, port)) = open {
        let _never_fails = writeln!(forward, "  ip daddr {address} udp dport {port} accept");
    }
    for p in partitions {
        let segment = ipnet::Ipv4Net::new_assert(address::host_v4(*p, 0), 24);
        let segment6 = ipnet::Ipv6Net::new_assert(address::host_v6(*p, 0), 64);
        let _never_fails = writeln!(
            forward,
            "  ip daddr {segment} counter drop\n  ip6 daddr {segment6} counter drop"
        );
    }
    let nat = nat.map_or(String::new(), |nat| {
        let segment = ipnet::Ipv4Net::new_assert(address::host_v4(nat.partition, 0), 24);
        let (first, last) = nat.ports;
        format!(
            "  ip saddr {segment} ip daddr {} meta l4proto {{ tcp, udp }} snat ip to {}:{first}-{last}\n",
            ipnet::Ipv4Net::new_assert(address::host_v4(1, 0), 24),
            nat.address
        )
    });
    let rules = format!(
        "add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
 chain forward {{
  type filter hook forward priority filter; policy accept;
  ct state established,related accept
{forward} }}
 chain hide {{
  type nat hook postrouting priority srcnat; policy accept;
{nat} }}
}}
"
    );
    let router = plan.router_netns();
    netns::nft(&router, &rules)?;
    // It fails where there is nothing to forget.
    let _nothing_there = netns::command(&router, "conntrack")?
        .args(["-D", "-p", "udp"])
        .output()?;
    Ok(())
}

//! What goes wrong between machines: pulled cables, packets that pass in one direction only, paths that get narrower.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use super::{address, build::port, netns};
use crate::state::{MachinePlan, Plan};

/// A direction, as the machine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What comes to the machine.
    Receive,
    /// What the machine sends.
    Send,
}

/// Connects or pulls a machine's cable, at the switch's side.
pub fn set_cable(plan: &Plan, machine: &MachinePlan, connected: bool) -> Result<()> {
    let state = if connected { "up" } else { "down" };
    netns::run(Command::new("ip").args(["-n", &plan.wire_netns(), "link", "set", &port(machine), state]))
}

/// Drops everything in one direction of a machine's cable, or lets both pass again. The link stays up at both ends:
/// nobody is told.
pub fn set_half_open(plan: &Plan, machine: &MachinePlan, dropped: Option<Direction>) -> Result<()> {
    let [_, _, c, d] = machine.ipv4.octets();
    let table = format!("half-{c}-{d}");
    let fresh = format!("add table netdev {table}\ndelete table netdev {table}\n");
    let drop = dropped.map_or(String::new(), |direction| {
        // The switch's port: what it takes in is what the machine sends.
        let hook = match direction {
            Direction::Receive => "egress",
            Direction::Send => "ingress",
        };
        let port = port(machine);
        format!(
            "add table netdev {table}\n\
             add chain netdev {table} everything {{ type filter hook {hook} device \"{port}\" priority 0; policy drop; }}\n"
        )
    });
    netns::nft(&plan.wire_netns(), &(fresh + &drop))
}

/// Makes the router carry at most `mtu` bytes a packet between the segments and the outside, in both directions, and
/// say so to who sends more; `None` for the full 1500.
///
/// IPv6 allows no less than 1280.
pub fn set_path_mtu(plan: &Plan, mtu: Option<u16>) -> Result<()> {
    // The routes and not the devices: a veth swallows what is too long for its receiving end without a word.
    let limit = mtu.map_or(String::new(), |mtu| format!(" mtu lock {mtu}"));
    let (v4, v6) = (address::ROUTER_OUTSIDE_V4, address::ROUTER_OUTSIDE_V6);
    let outside = ipnet::Ipv4Net::new_assert(v4, 24).trunc();
    let mut lines = vec![
        format!("route replace {outside} dev outside proto kernel scope link src {v4}{limit}"),
        format!(
            "route replace {}/64 dev outside proto kernel metric 256{limit}",
            network_of(v6)
        ),
    ];
    for p in plan.partitions() {
        let leg4 = address::host_v4(p, address::ROUTER_HOST);
        let leg6 = address::host_v6(p, address::ROUTER_HOST);
        let (e4, e6) = (address::egress_v4(p), address::egress_v6(p));
        let source = e4.hosts().next().unwrap_or(leg4);
        for (range, source) in [(ipnet::Ipv4Net::new_assert(leg4, 24).trunc(), leg4), (e4, source)] {
            lines.push(format!(
                "route replace {range} dev part{p} proto kernel scope link src {source}{limit}"
            ));
        }
        for range in [format!("{}/64", network_of(leg6)), e6.to_string()] {
            lines.push(format!(
                "route replace {range} dev part{p} proto kernel metric 256{limit}"
            ));
        }
    }
    netns::ip_batch(&plan.router_netns(), &lines)
}

/// How many packets the router has called too big: ICMP's "fragmentation needed" (which its kernel counts among the
/// unreachable ones) and ICMPv6's "packet too big".
pub fn too_big_sent(plan: &Plan) -> Result<u64> {
    netns::inside(&plan.router_netns(), || {
        // /proc/net is the process's; the thread has a namespace of its own.
        let v4 = fs::read_to_string("/proc/thread-self/net/snmp")?;
        let v6 = fs::read_to_string("/proc/thread-self/net/snmp6")?;
        let mut lines = v4.lines().filter(|line| line.starts_with("Icmp:"));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let v4 = names
            .split_whitespace()
            .zip(values.split_whitespace())
            .find(|(name, _)| *name == "OutDestUnreachs")
            .map(|(_, value)| value);
        let v6 = v6
            .lines()
            .filter_map(|line| line.split_once(char::is_whitespace))
            .find(|(name, _)| *name == "Icmp6OutPktTooBigs")
            .map(|(_, value)| value.trim());
        let number = |value: Option<&str>| -> Result<u64> {
            Ok(value.context("the kernel counts no such thing")?.parse()?)
        };
        Ok(number(v4)? + number(v6)?)
    })
}

/// The /64 that an address is in.
fn network_of(address: std::net::Ipv6Addr) -> std::net::Ipv6Addr {
    ipnet::Ipv6Net::new_assert(address, 64).network()
}

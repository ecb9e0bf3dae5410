//! Our nftables tables: observed, compared, written in one transaction.
//!
//! Sets are compared element by element. Rules are compared by the digest of their text, which each carries as
//! its comment, since nft prints rules in a form of its own; a chain whose rules differ in any way is written
//! anew as a whole. Where even a set's type or a chain's hook differs, the table is replaced. All of this is one
//! file to `nft -f -`, and so one transaction a table: packets meet the old table or the new one.

mod between;
mod counts;
mod diff;
mod elements;
mod observe;
mod render;
mod run;

pub use between::between;
pub use counts::counts;
#[doc(hidden)]
pub use counts::read as read_counts;
pub use diff::{Difference, difference};
pub use elements::batch;
pub use observe::{Observed, ObservedChain, ObservedSet, parse};
pub use render::{stamp, whole};
pub use run::Nft;

use spillway_core::node::nft::Atom;

/// Family of the table with the guards.
pub const FAMILY: &str = "inet";

/// Family of the table whose chains hook into a device.
pub const DEVICE_FAMILY: &str = "netdev";

/// Name of our tables unless an operator chose another.
pub const TABLE: &str = "spillway";

/// Name of the table that stands in for table `table` while somebody has deleted that.
pub fn seal_table(table: &str) -> String {
    let settings = spillway_core::node::inputs::Settings {
        table: table.to_owned(),
        ..Default::default()
    };
    settings.seal_table()
}

/// The one form that nft prints an atom in: a range that is a prefix as a prefix, a prefix of one address as
/// the address, a range of one port as the number, a protocol as its number.
pub fn canonical(atom: &Atom) -> Atom {
    match atom {
        Atom::Range(first, last) if first == last => Atom::Ip(*first),
        Atom::Range(first, last) => prefix_of(*first, *last).map_or_else(|| atom.clone(), Atom::Net),
        Atom::Net(net) if net.prefix_len() == net.max_prefix_len() => Atom::Ip(net.addr()),
        Atom::Net(net) => Atom::Net(net.trunc()),
        Atom::Ports(first, last) if first == last => Atom::Number(u32::from(*first)),
        Atom::Protocol(number) => Atom::Number(u32::from(*number)),
        other => other.clone(),
    }
}

fn prefix_of(first: std::net::IpAddr, last: std::net::IpAddr) -> Option<ipnet::IpNet> {
    use std::net::IpAddr;
    let (low, high, bits) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return None,
    };
    let differing = low ^ high;
    let is_block = differing & differing.wrapping_add(1) == 0 && low & differing == 0 && low <= high;
    let host_bits = u8::try_from(128 - differing.leading_zeros()).ok()?;
    is_block
        .then(|| ipnet::IpNet::new(first, bits - host_bits).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_prefixes_where_they_can_be() {
        let range = |a: &str, b: &str| {
            canonical(&Atom::Range(
                a.parse().expect("address"),
                b.parse().expect("address"),
            ))
        };
        let net = |s: &str| Atom::Net(s.parse().expect("prefix"));
        assert_eq!(range("10.0.0.0", "10.0.0.7"), net("10.0.0.0/29"));
        assert_eq!(range("0.0.0.0", "255.255.255.255"), net("0.0.0.0/0"));
        assert_eq!(
            range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            net("::/0")
        );
        assert_eq!(range("fd00::", "fd00::ffff"), net("fd00::/112"));
        assert_eq!(
            range("10.0.0.5", "10.0.0.5"),
            Atom::Ip("10.0.0.5".parse().expect("address"))
        );
        assert_eq!(canonical(&Atom::Ports(80, 80)), Atom::Number(80));
        assert_eq!(canonical(&Atom::Ports(64, 127)), Atom::Ports(64, 127));
        for (a, b) in [
            ("10.0.0.1", "10.0.0.8"),
            ("10.0.0.4", "10.0.0.11"),
            ("10.0.0.0", "10.0.0.8"),
        ] {
            assert!(matches!(range(a, b), Atom::Range(..)), "{a}-{b}");
        }
        assert_eq!(
            canonical(&net("10.0.0.1/32")),
            Atom::Ip("10.0.0.1".parse().expect("address"))
        );
    }
}

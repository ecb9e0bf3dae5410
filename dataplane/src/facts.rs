//! What a node's network looks like before we touch it, and what its kernel can do.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use spillway_core::node::state::{self, LinkFacts};

/// A network interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Hardware address, where it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
}

/// What the kernel and its tools can do. Probed once.
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent answers to independent questions"
)]
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Capabilities {
    /// `nft` runs and the kernel answers it.
    pub nftables: bool,
    /// A VXLAN device with the GBP extension can be made.
    pub vxlan_gbp: bool,
    /// A chain can hook into a device's egress (Linux 5.16), as stateless gateways need it.
    pub egress_hook: bool,
    /// Connection tracking can be read and cut over netlink.
    pub conntrack: bool,
    /// The namespace has IPv6.
    pub ipv6: bool,
    /// Why something above is missing, by the name of its field.
    pub missing: BTreeMap<String, String>,
}

/// What [`crate::Kernel::facts`] answers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// Interfaces by name; loopback and our own are left out.
    pub devices: BTreeMap<String, Device>,
    /// Prefixes that are on link, with the interface's name; the most specific first. Ours and host
    /// prefixes are left out.
    pub on_link: Vec<(IpNet, String)>,
    /// Interface of the default route with the lowest metric in the main table.
    pub default_v4: Option<String>,
    /// The same for IPv6.
    pub default_v6: Option<String>,
    /// Interface that bears the node's underlay address.
    pub uplink: Option<String>,
    /// MTU of the uplink in bytes.
    pub uplink_mtu: Option<u32>,
    /// What the kernel can do.
    pub capabilities: Capabilities,
}

impl Facts {
    /// What the compiler wants to know. Interfaces without an address, such as most pods', are left out: they
    /// come and go without meaning anything to it. So is one that has `tunnel` for its name, ours or not.
    pub fn for_compiler(&self, tunnel: &str) -> state::Facts {
        let link = |device: &Device| LinkFacts {
            mtu: device.mtu,
            addresses: device
                .addresses
                .iter()
                .copied()
                .filter(|a| routable(a.addr()))
                .collect(),
        };
        state::Facts {
            links: self
                .devices
                .iter()
                .filter(|(name, _)| *name != tunnel)
                .map(|(name, device)| (name.clone(), link(device)))
                .filter(|(_, link)| !link.addresses.is_empty())
                .collect(),
            default_device4: self.default_v4.clone(),
            default_device6: self.default_v6.clone(),
            without_ipv6: !self.capabilities.ipv6,
        }
    }

    /// The interface on which the outside asks for `address`: where a prefix that holds it is on link, else
    /// where the default route of its family leads.
    pub fn device_towards(&self, address: IpAddr) -> Option<&str> {
        self.on_link
            .iter()
            .find(|(prefix, _)| prefix.contains(&address))
            .map(|(_, device)| device.as_str())
            .or(match address {
                IpAddr::V4(_) => self.default_v4.as_deref(),
                IpAddr::V6(_) => self.default_v6.as_deref(),
            })
    }
}

fn routable(address: IpAddr) -> bool {
    !address.is_loopback() && !matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

//! The tunnel device and its addresses.
//!
//! The device is ours by its alias, so that one that was made under another name is found and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::LinkHeader;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use rtnetlink::LinkVxlan;
use spillway_core::node::state::{TunnelDevice, WireGuardDevice};

use super::netlink::Requests;
use super::step::Step;
use crate::{Operation, Result};

/// Alias of a tunnel device of ours.
pub(super) const ALIAS: &str = "spillway tunnel";

/// Alias of a WireGuard device of ours.
pub(super) const WIREGUARD_ALIAS: &str = "spillway wireguard";

/// An interface as the kernel holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) loopback: bool,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) alias: Option<String>,
    /// Which driver's it is, where it isn't hardware.
    pub(crate) kind: Option<InfoKind>,
    /// Attributes of a VXLAN device.
    pub(crate) vxlan: Option<Vec<InfoVxlan>>,
    pub(crate) addresses: BTreeSet<IpNet>,
}

impl Link {
    /// Whether it is a device of ours, by its alias.
    pub(super) fn ours(&self) -> bool {
        [ALIAS, WIREGUARD_ALIAS]
            .iter()
            .any(|ours| self.alias.as_deref() == Some(*ours))
    }
}

/// All interfaces by name, with their addresses.
pub(crate) fn observe(requests: &mut Requests<RouteNetlinkMessage>) -> Result<BTreeMap<String, Link>> {
    let mut by_index = BTreeMap::new();
    let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
    for message in requests.dump("list interfaces", &all)? {
        if let RouteNetlinkMessage::NewLink(message) = message {
            let link = read(message);
            by_index.insert(link.index, link);
        }
    }
    let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for message in requests.dump("list addresses", &all)? {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && let Some(link) = by_index.get_mut(&message.header.index)
            && let Some(address) = local(&message)
            && let Ok(net) = IpNet::new(address, message.header.prefix_len)
        {
            link.addresses.insert(net);
        }
    }
    Ok(by_index
        .into_values()
        .map(|link| (link.name.clone(), link))
        .collect())
}

/// An IPv4 point-to-point address has its peer as address and itself as local; IPv6 mostly has no local.
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => return Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    address
}

pub(super) fn read(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind),
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// Why the device can't be changed into the wanted one, if it can't.
fn immutable_difference(link: &Link, wanted: &TunnelDevice) -> Option<&'static str> {
    let Some(data) = &link.vxlan else {
        return Some("it is no VXLAN device");
    };
    let has = |attribute: &InfoVxlan| data.contains(attribute);
    let local = match wanted.local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    };
    if !has(&InfoVxlan::Id(wanted.vni)) {
        Some("it has another network identifier")
    } else if !has(&InfoVxlan::Port(wanted.port)) {
        Some("it has another port")
    } else if !has(&local) {
        Some("it has another local address")
    } else if !has(&InfoVxlan::Gbp) {
        Some("it lacks group policy")
    } else if has(&InfoVxlan::Learning(true)) {
        Some("it learns")
    } else if !has(&InfoVxlan::UDPCsum(!wanted.without_checksums))
        || !has(&InfoVxlan::UDPZeroCsumTX(wanted.without_checksums))
    {
        Some("it has other checksums")
    } else {
        None
    }
}

/// The device as it is made: down and without alias, since the kernel takes neither the alias nor the address
/// generation mode while it makes a device. Comparing once more finds what is missing.
fn creation(wanted: &TunnelDevice) -> LinkMessage {
    let builder = LinkVxlan::new(&wanted.name, wanted.vni)
        .port(wanted.port)
        .learning(false)
        .udp_csum(!wanted.without_checksums)
        .udp_zero_csum6_tx(wanted.without_checksums)
        // What a peer leaves out is its choice.
        .udp_zero_csum6_rx(true)
        .gbp();
    let builder = match wanted.local {
        IpAddr::V4(ip) => builder.local(ip),
        IpAddr::V6(ip) => builder.local6(ip),
    };
    builder.mtu(wanted.mtu).address(wanted.mac.to_vec()).build()
}

fn no_link_local() -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        In6AddrGenMode::None,
    )])])
}

fn header(index: u32) -> LinkHeader {
    LinkHeader {
        index,
        ..LinkHeader::default()
    }
}

fn modification(index: u32, attribute: LinkAttribute) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header = header(index);
    message.attributes.push(attribute);
    RouteNetlinkMessage::SetLink(message)
}

/// A request that deletes an interface.
pub(crate) fn deletion(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header = header(index);
    RouteNetlinkMessage::DelLink(message)
}

/// A request that adds a VXLAN device with GBP, down, for finding out whether the kernel can.
pub(super) fn probe(name: &str) -> RouteNetlinkMessage {
    let builder = LinkVxlan::new(name, 0x00ff_fff1)
        .port(65_333)
        .learning(false)
        .gbp();
    RouteNetlinkMessage::NewLink(builder.build())
}

fn describe(wanted: &TunnelDevice) -> String {
    format!(
        "device {} vxlan id {} port {} local {} mtu {}",
        wanted.name, wanted.vni, wanted.port, wanted.local, wanted.mtu
    )
}

/// Steps for the device itself, and whether there is a device afterwards that keeps its index.
pub(super) struct DeviceSteps {
    /// Takes a device away that is in the way of the wanted one; done before `build`.
    pub(super) clear: Vec<Step>,
    /// Makes or adjusts the device.
    pub(super) build: Vec<Step>,
    /// Takes devices away that are ours and no longer wanted; done at the end.
    pub(super) remove: Vec<Step>,
    /// Index of the device that stays; `None` when it has yet to be made.
    pub(super) kept: Option<u32>,
}

/// Compares devices.
pub(super) fn device_steps(links: &BTreeMap<String, Link>, wanted: Option<&TunnelDevice>) -> DeviceSteps {
    let mut out = DeviceSteps {
        clear: Vec::new(),
        build: Vec::new(),
        remove: Vec::new(),
        kept: None,
    };
    for link in links.values() {
        let ours = link.alias.as_deref() == Some(ALIAS);
        if ours && wanted.is_none_or(|w| w.name != link.name) {
            let step = Step::remove(format!("device {}", link.name), deletion(link.index));
            // Two devices can't have one identifier and port: the old one goes first where there is a new one.
            if wanted.is_some() {
                out.clear.push(step);
            } else {
                out.remove.push(step);
            }
        }
    }
    let Some(wanted) = wanted else { return out };
    let add = || Step::add(describe(wanted), RouteNetlinkMessage::NewLink(creation(wanted)));
    let Some(link) = links.get(&wanted.name) else {
        out.build.push(add());
        return out;
    };
    if let Some(why) = immutable_difference(link, wanted) {
        out.clear.push(Step::remove(
            format!("device {} ({why})", link.name),
            deletion(link.index),
        ));
        out.build.push(add());
        return out;
    }
    out.kept = Some(link.index);
    let name = &wanted.name;
    out.build.extend(mtu_step(link, wanted.mtu));
    if link.mac != Some(wanted.mac) {
        let message = modification(link.index, LinkAttribute::Address(wanted.mac.to_vec()));
        out.build
            .push(Step::set(format!("device {name} address"), message));
    }
    out.build.extend(alias_step(link, ALIAS));
    out.build.extend(up_steps(link));
    out
}

/// Steps for the WireGuard device, whose driver makes it and takes it away.
pub(super) fn wireguard_steps(links: &BTreeMap<String, Link>, wanted: Option<&WireGuardDevice>) -> Vec<Step> {
    let Some((wanted, link)) = wanted.and_then(|w| Some((w, links.get(&w.name)?))) else {
        return Vec::new();
    };
    let wanted_addresses = BTreeSet::from([wanted.address]);
    mtu_step(link, wanted.mtu)
        .into_iter()
        .chain(alias_step(link, WIREGUARD_ALIAS))
        .chain(up_steps(link))
        .chain(address_steps(&link.addresses, &wanted_addresses, link))
        .collect()
}

/// WireGuard devices of ours that aren't wanted: an earlier agent may have had another name for it, or no path that must be
/// encrypted is left.
pub(super) fn unwanted_wireguard<'a>(
    links: &'a BTreeMap<String, Link>,
    wanted: Option<&WireGuardDevice>,
) -> impl Iterator<Item = Step> + use<'a> {
    let kept = wanted.map(|w| w.name.clone());
    let ours = |link: &&Link| link.alias.as_deref() == Some(WIREGUARD_ALIAS);
    let unwanted = links
        .values()
        .filter(ours)
        .filter(move |l| Some(&l.name) != kept.as_ref());
    unwanted.map(|link| Step::remove(format!("device {} wireguard", link.name), deletion(link.index)))
}

fn mtu_step(link: &Link, mtu: u32) -> Option<Step> {
    (link.mtu != mtu).then(|| {
        let message = modification(link.index, LinkAttribute::Mtu(mtu));
        Step::set(format!("device {} mtu {mtu}", link.name), message)
    })
}

fn alias_step(link: &Link, alias: &str) -> Option<Step> {
    (link.alias.as_deref() != Some(alias)).then(|| {
        let message = modification(link.index, LinkAttribute::IfAlias(alias.into()));
        Step::set(format!("device {} alias", link.name), message)
    })
}

fn up_steps(link: &Link) -> Vec<Step> {
    if link.up {
        return Vec::new();
    }
    // Router solicitations and multicast reports have nobody to go to.
    let quiet = modification(link.index, no_link_local());
    let mut message = LinkMessage::default();
    message.header = header(link.index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    vec![
        Step::set(format!("device {} addrgenmode none", link.name), quiet),
        Step::set(
            format!("device {} up", link.name),
            RouteNetlinkMessage::SetLink(message),
        ),
    ]
}

/// Compares the device's addresses. Link-local ones are the kernel's own.
pub(super) fn address_steps(held: &BTreeSet<IpNet>, wanted: &BTreeSet<IpNet>, link: &Link) -> Vec<Step> {
    let Link { name, index, .. } = link;
    let mut steps = Vec::new();
    for net in wanted.difference(held) {
        let object = format!("address {net} dev {name}");
        steps.push(Step::add(
            object,
            RouteNetlinkMessage::NewAddress(address(*index, net)),
        ));
    }
    for net in held.difference(wanted) {
        if matches!(net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            continue;
        }
        let object = format!("address {net} dev {name}");
        let message = RouteNetlinkMessage::DelAddress(address(*index, net));
        steps.push(Step {
            operation: Operation::Remove,
            ..Step::remove(object, message)
        });
    }
    steps
}

fn address(index: u32, net: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.family = match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    // Duplicate address detection has nobody to ask over the tunnel, and would hold the address back.
    message.header.flags = match net {
        IpNet::V4(_) => AddressHeaderFlags::empty(),
        IpNet::V6(_) => AddressHeaderFlags::Nodad,
    };
    message.attributes.push(AddressAttribute::Address(net.addr()));
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message
}

/// Whether a link's kind is VXLAN; used by the drift filter, which sees messages rather than dumps.
pub(super) fn is_vxlan(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos)
            if infos.iter().any(|i| matches!(i, LinkInfo::Kind(InfoKind::Vxlan))))
    })
}

//! WireGuard in the kernel, over generic netlink (include/uapi/linux/wireguard.h).
//!
//! Device, keys, peers and sessions are the kernel's and outlive the agent: the next one finds them as they were left and
//! writes nothing. What is compared is what the kernel has, so that what others changed is put right.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily as _, GenlMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::InfoKind;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use nix::libc::{ENODEV, EOPNOTSUPP};
use rtnetlink::LinkWireguard;
use spillway_core::node::state::{WireGuardDevice, WireGuardPeer};
use spillway_core::wireguard::PublicKey;

use super::{Implementation, PrivateKey, SESSION, WireGuard, changes};
use crate::linux::netlink::Requests;
use crate::linux::{facts, link};
use crate::{Changes, Error, Operation, Result};

/// Peers of one message: its list of them holds 64 KiB, and a peer less than 200 bytes.
const PEERS: usize = 200;

/// The device, as this agent sees it.
pub(crate) struct InKernel {
    key: PrivateKey,
    route: Requests<RouteNetlinkMessage>,
    requests: Requests<GenlMessage<WireguardMessage>>,
    /// The number that the kernel has given to WireGuard's messages.
    family: u16,
    /// Name of the device, once one was wanted.
    name: Option<String>,
    /// Endpoints as they were last asked for. The kernel only knows where a peer was last heard from.
    told: BTreeMap<PublicKey, SocketAddr>,
}

impl InKernel {
    /// Opens the sockets in the calling thread's network namespace.
    ///
    /// # Errors
    /// Where the kernel makes no WireGuard device; it is asked to make one, which is then removed.
    pub(crate) fn open(key: PrivateKey) -> Result<Self> {
        let mut route = Requests::open("route netlink socket", NETLINK_ROUTE)?;
        let name = "spillway-wgtest";
        facts::make_and_remove(&mut route, "make a WireGuard device", name, creation(name))?;
        let mut control = Requests::open("generic netlink socket", NETLINK_GENERIC)?;
        Ok(Self {
            key,
            route,
            family: family(&mut control)?,
            requests: Requests::open("WireGuard netlink socket", NETLINK_GENERIC)?,
            name: None,
            told: BTreeMap::new(),
        })
    }

    fn message(
        &self,
        cmd: WireguardCmd,
        attributes: Vec<WireguardAttribute>,
    ) -> GenlMessage<WireguardMessage> {
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        message
    }

    /// The device, if there is one of that name and of this kind.
    fn read(&mut self, name: &str) -> Result<Option<Device>> {
        let named = vec![WireguardAttribute::IfName(name.into())];
        let request = self.message(WireguardCmd::GetDevice, named);
        match self.requests.dump("read the WireGuard device", &request) {
            Ok(parts) => Ok(Some(Device::read(parts))),
            Err(error) if [Some(ENODEV), Some(EOPNOTSUPP)].contains(&error.errno()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, name: &str, what: &str, mut attributes: Vec<WireguardAttribute>) -> Result<()> {
        attributes.insert(0, WireguardAttribute::IfName(name.into()));
        let message = self.message(WireguardCmd::SetDevice, attributes);
        self.requests.ack(what, 0, message)
    }

    /// Whether `device` has this node's key.
    fn knows(&self, device: &Device) -> bool {
        device.public.as_ref() == Some(self.key.public().as_bytes())
    }
}

/// A request that makes a device of this name.
fn creation(name: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewLink(LinkWireguard::new(name).build())
}

fn family(control: &mut Requests<GenlMessage<GenlCtrl>>) -> Result<u16> {
    let name = WireguardMessage::family_name();
    let request = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name.into())],
    });
    let answers = control.get("look up WireGuard's netlink family", request)?;
    let mut attributes = answers.into_iter().flat_map(|a| a.payload.nlas);
    attributes
        .find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        })
        .ok_or_else(|| Error::Impossible("the kernel has WireGuard and no netlink family for it".into()))
}

/// A peer as the kernel has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Peer {
    endpoint: Option<SocketAddr>,
    keepalive: u16,
    /// Addresses with their prefix lengths.
    allowed: Vec<(IpAddr, u8)>,
    handshake: Option<SystemTime>,
}

impl Peer {
    fn age(&self, now: SystemTime) -> Option<Duration> {
        // A clock that was set back makes it a fresh one.
        Some(now.duration_since(self.handshake?).unwrap_or_default())
    }

    /// The one address that it may send from, as near to `wanted` as can be said so: anything else than exactly that
    /// differs from it.
    fn address(&self, wanted: Option<IpAddr>) -> Option<IpAddr> {
        let host = |(address, length): &(IpAddr, u8)| *length == if address.is_ipv4() { 32 } else { 128 };
        match self.allowed.as_slice() {
            [one] if host(one) => Some(one.0),
            [first, ..] if wanted.is_none() => Some(first.0),
            _ => None,
        }
    }
}

/// A device as the kernel has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Device {
    public: Option<[u8; 32]>,
    port: u16,
    peers: BTreeMap<PublicKey, Peer>,
}

impl Device {
    /// Puts the parts of a dump together; a peer may begin in one and go on in the next.
    fn read(parts: Vec<GenlMessage<WireguardMessage>>) -> Self {
        let mut device = Self::default();
        for attribute in parts.into_iter().flat_map(|part| part.payload.attributes) {
            match attribute {
                WireguardAttribute::PublicKey(key) => device.public = Some(key),
                WireguardAttribute::ListenPort(port) => device.port = port,
                WireguardAttribute::Peers(peers) => peers.into_iter().for_each(|peer| device.take(peer)),
                _ => {}
            }
        }
        device
    }

    fn take(&mut self, WireguardPeer(attributes): WireguardPeer) {
        let key = attributes.iter().find_map(|a| match a {
            WireguardPeerAttribute::PublicKey(key) => Some(PublicKey::from(*key)),
            _ => None,
        });
        let Some(key) = key else { return };
        let peer = self.peers.entry(key).or_default();
        for attribute in attributes {
            match attribute {
                WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
                WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = seconds,
                WireguardPeerAttribute::LastHandshake(at) => {
                    let seconds = u64::try_from(at.seconds).unwrap_or_default();
                    let nanos = u32::try_from(at.nano_seconds).unwrap_or_default();
                    let since = Duration::new(seconds, nanos);
                    peer.handshake = (!since.is_zero()).then(|| SystemTime::UNIX_EPOCH + since);
                }
                WireguardPeerAttribute::AllowedIps(allowed) => {
                    peer.allowed.extend(allowed.iter().filter_map(prefix));
                }
                _ => {}
            }
        }
    }

    /// The same as a desired device. What isn't WireGuard's about it is as `wanted` has it, and so is the endpoint of a
    /// peer that was `told` of it or, where nobody knows, that is alive wherever it is.
    fn held(
        &self,
        wanted: &WireGuardDevice,
        told: &BTreeMap<PublicKey, SocketAddr>,
        now: SystemTime,
    ) -> WireGuardDevice {
        let nowhere = || SocketAddr::from(([0, 0, 0, 0], 0));
        let peer = |(key, peer): (&PublicKey, &Peer)| {
            let new = wanted.peers.get(key);
            let alive = peer.age(now).is_some_and(|age| age < SESSION);
            let assumed = new.filter(|_| alive).map(|new| new.endpoint).or(peer.endpoint);
            let as_desired = WireGuardPeer {
                endpoint: told.get(key).copied().or(assumed).unwrap_or_else(nowhere),
                address: peer.address(new.and_then(|new| new.address)),
                keepalive: peer.keepalive,
            };
            (*key, as_desired)
        };
        WireGuardDevice {
            port: self.port,
            peers: self.peers.iter().map(peer).collect(),
            ..wanted.clone()
        }
    }
}

fn prefix(WireguardAllowedIp(attributes): &WireguardAllowedIp) -> Option<(IpAddr, u8)> {
    let address = attributes.iter().find_map(|a| match a {
        WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
        _ => None,
    });
    let length = attributes.iter().find_map(|a| match a {
        WireguardAllowedIpAttr::Cidr(length) => Some(*length),
        _ => None,
    });
    Some((address?, length?))
}

/// Peers that lead from one device to the other, those that go first: an address may go from one to another.
fn updates(held: &WireGuardDevice, wanted: &WireGuardDevice) -> Vec<WireguardPeer> {
    use WireguardPeerAttribute as A;
    let gone = held.peers.keys().filter(|key| !wanted.peers.contains_key(*key));
    let gone = gone.map(|key| {
        WireguardPeer(vec![
            A::PublicKey(*key.as_bytes()),
            A::Flags(WireguardPeerFlags::RemoveMe),
        ])
    });
    let changed = wanted.peers.iter().flat_map(|(key, new)| {
        let old = held.peers.get(key);
        if old == Some(new) {
            return Vec::new();
        }
        let mut attributes = vec![A::PublicKey(*key.as_bytes())];
        if old.map(|old| old.address) != Some(new.address) {
            attributes.push(A::Flags(WireguardPeerFlags::ReplaceAllowedIps));
            attributes.push(A::AllowedIps(new.address.map(allowed).into_iter().collect()));
        }
        let moved = old.map(|old| old.endpoint) != Some(new.endpoint);
        if moved {
            attributes.push(A::Endpoint(new.endpoint));
        }
        // The kernel sends a keepalive at once where it goes from none to some (drivers/net/wireguard/netlink.c, set_peer),
        // and the peer answers to where that comes from. Hence off and on for one that is called elsewhere now.
        let off = moved && old.is_some_and(|old| old.keepalive > 0);
        if off {
            attributes.push(A::PersistentKeepalive(0));
        } else if old.map_or(0, |old| old.keepalive) != new.keepalive {
            attributes.push(A::PersistentKeepalive(new.keepalive));
        }
        let on = off.then(|| {
            let keepalive = A::PersistentKeepalive(new.keepalive);
            WireguardPeer(vec![A::PublicKey(*key.as_bytes()), keepalive])
        });
        [Some(WireguardPeer(attributes)), on]
            .into_iter()
            .flatten()
            .collect()
    });
    gone.chain(changed).collect()
}

fn allowed(address: IpAddr) -> WireguardAllowedIp {
    let (family, length) = match address {
        IpAddr::V4(_) => (WireguardAddressFamily::Ipv4, 32),
        IpAddr::V6(_) => (WireguardAddressFamily::Ipv6, 128),
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(address),
        WireguardAllowedIpAttr::Cidr(length),
    ])
}

#[async_trait]
impl WireGuard for InKernel {
    fn implementation(&self) -> Implementation {
        Implementation::Kernel
    }

    fn kind(&self) -> InfoKind {
        InfoKind::Wireguard
    }

    async fn plan(&mut self, wanted: &WireGuardDevice, there: bool) -> Result<Changes> {
        self.name = Some(wanted.name.clone());
        let device = if there { self.read(&wanted.name)? } else { None };
        let Some(device) = device else {
            return Ok(changes(None, Some(wanted)));
        };
        let held = device.held(wanted, &self.told, SystemTime::now());
        let mut out = changes(Some(&held), Some(wanted));
        if !self.knows(&device) {
            out.push(Operation::Change, format!("device {} wireguard key", wanted.name));
        }
        if out.is_empty() {
            self.told = endpoints(wanted);
        }
        Ok(out)
    }

    async fn apply(&mut self, wanted: &WireGuardDevice, there: bool) -> Result<()> {
        let name = &wanted.name;
        let device = if there { self.read(name)? } else { None };
        let device = if let Some(device) = device {
            device
        } else {
            self.told.clear();
            let flags = NLM_F_CREATE | NLM_F_EXCL;
            self.route
                .ack("make the WireGuard device", flags, creation(name))?;
            Device::default()
        };
        let held = device.held(wanted, &self.told, SystemTime::now());
        let mut settings = Vec::new();
        if !self.knows(&device) {
            settings.push(WireguardAttribute::PrivateKey(self.key.bytes()));
        }
        if held.port != wanted.port {
            settings.push(WireguardAttribute::ListenPort(wanted.port));
        }
        if !settings.is_empty() {
            let what = format!("give the WireGuard device its key and UDP port {}", wanted.port);
            self.write(name, &what, settings)?;
        }
        for peers in updates(&held, wanted).chunks(PEERS) {
            let peers = vec![WireguardAttribute::Peers(peers.to_vec())];
            self.write(name, "change WireGuard's peers", peers)?;
        }
        self.told = endpoints(wanted);
        Ok(())
    }

    async fn remove(&mut self) -> Result<()> {
        let Some(name) = self.name.take() else {
            return Ok(());
        };
        self.told.clear();
        let Some(device) = link::observe(&mut self.route)?.remove(&name) else {
            return Ok(());
        };
        if device.kind == Some(InfoKind::Wireguard) {
            self.route
                .ack("remove the WireGuard device", 0, link::deletion(device.index))?;
        }
        Ok(())
    }

    async fn peers(&mut self) -> Result<BTreeMap<PublicKey, Option<Duration>>> {
        let Some(name) = self.name.clone() else {
            return Ok(BTreeMap::new());
        };
        let device = self.read(&name)?.unwrap_or_default();
        let now = SystemTime::now();
        Ok(device
            .peers
            .iter()
            .map(|(key, peer)| (*key, peer.age(now)))
            .collect())
    }
}

fn endpoints(device: &WireGuardDevice) -> BTreeMap<PublicKey, SocketAddr> {
    device
        .peers
        .iter()
        .map(|(key, peer)| (*key, peer.endpoint))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PublicKey {
        [n; 32].into()
    }

    fn peer(endpoint: &str, address: Option<&str>) -> WireGuardPeer {
        WireGuardPeer {
            endpoint: endpoint.parse().expect("endpoint"),
            address: address.map(|a| a.parse().expect("address")),
            keepalive: if address.is_some() { 25 } else { 0 },
        }
    }

    fn device(peers: impl IntoIterator<Item = (PublicKey, WireGuardPeer)>) -> WireGuardDevice {
        WireGuardDevice {
            name: "spillway-wg".into(),
            port: 5713,
            mtu: 1440,
            address: "100.64.4.1/32".parse().expect("prefix"),
            peers: peers.into_iter().collect(),
        }
    }

    /// What the kernel lists once it holds `device`, heard from `elsewhere` so many seconds ago.
    fn listed(device: &WireGuardDevice, elsewhere: &str, ago: Option<u64>) -> Device {
        let part = |(key, peer): (&PublicKey, &WireGuardPeer)| {
            let (key, peer) = (*key.as_bytes(), peer.clone());
            let heard = ago.map(|ago| SystemTime::now() - Duration::from_secs(ago));
            let heard = heard.map_or(Duration::ZERO, |at| {
                at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970")
            });
            let seconds = i64::try_from(heard.as_secs()).expect("in range");
            // The kernel begins a peer anew where a message has no room for more of its addresses.
            let first = WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(key),
                WireguardPeerAttribute::Endpoint(elsewhere.parse().expect("endpoint")),
                WireguardPeerAttribute::PersistentKeepalive(peer.keepalive),
                WireguardPeerAttribute::LastHandshake(netlink_packet_wireguard::WireguardTimeSpec {
                    seconds,
                    nano_seconds: 0,
                }),
            ]);
            let second = WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(key),
                WireguardPeerAttribute::AllowedIps(peer.address.map(allowed).into_iter().collect()),
            ]);
            [first, second].map(|peer| {
                GenlMessage::from_payload(WireguardMessage {
                    cmd: WireguardCmd::GetDevice,
                    attributes: vec![
                        WireguardAttribute::PublicKey([9; 32]),
                        WireguardAttribute::ListenPort(5713),
                        WireguardAttribute::Peers(vec![peer]),
                    ],
                })
            })
        };
        Device::read(device.peers.iter().flat_map(part).collect())
    }

    #[test]
    fn a_peer_that_is_heard_from_elsewhere_is_left_alone() {
        let wanted = device([(key(1), peer("192.0.2.1:5713", Some("100.64.8.1")))]);
        let now = SystemTime::now();
        let roamed = listed(&wanted, "198.51.100.9:40001", Some(20));
        let told = endpoints(&wanted);
        assert_eq!(
            roamed.held(&wanted, &told, now),
            wanted,
            "by the agent that told it"
        );
        assert_eq!(
            roamed.held(&wanted, &BTreeMap::new(), now),
            wanted,
            "by the next one"
        );
        assert!(updates(&roamed.held(&wanted, &told, now), &wanted).is_empty());

        let lost = listed(&wanted, "198.51.100.9:40001", Some(200));
        assert_ne!(
            lost.held(&wanted, &BTreeMap::new(), now),
            wanted,
            "the next agent has it called where the plan says"
        );
        let other = device([(key(1), peer("192.0.2.7:5713", Some("100.64.8.1")))]);
        let changed = updates(&roamed.held(&other, &told, now), &other);
        let keepalives = changed.iter().flat_map(|WireguardPeer(attributes)| attributes);
        let keepalives: Vec<_> = keepalives
            .filter_map(|a| match a {
                WireguardPeerAttribute::PersistentKeepalive(seconds) => Some(*seconds),
                _ => None,
            })
            .collect();
        assert_eq!(
            keepalives,
            [0, 25],
            "the plan's change is written, and told: {changed:?}"
        );
    }

    #[test]
    fn only_what_differs_is_written() {
        let same = (key(1), peer("192.0.2.1:5713", Some("100.64.8.1")));
        let before = device([
            same.clone(),
            (key(2), peer("192.0.2.2:5713", Some("100.64.8.2"))),
            (key(3), peer("192.0.2.3:5713", None)),
        ]);
        let after = device([
            same,
            (key(3), peer("192.0.2.3:5713", Some("100.64.8.2"))),
            (key(4), peer("[2001:db8::4]:5713", Some("fd64::4"))),
        ]);
        let keys: Vec<_> = updates(&before, &after)
            .iter()
            .map(|WireguardPeer(attributes)| {
                let WireguardPeerAttribute::PublicKey(key) = attributes[0] else {
                    panic!("a peer begins with its key");
                };
                let removed =
                    attributes.contains(&WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe));
                (key[0], removed)
            })
            .collect();
        assert_eq!(keys, [(2, true), (3, false), (4, false)]);
    }

    #[test]
    fn addresses_that_others_gave_a_peer_are_a_difference() {
        let now = SystemTime::now();
        for wanted in [Some("100.64.8.1"), None] {
            let wanted = device([(key(1), peer("192.0.2.1:5713", wanted))]);
            let mut held = listed(&wanted, "192.0.2.1:5713", None);
            assert_eq!(held.held(&wanted, &BTreeMap::new(), now), wanted);
            let peer = held.peers.get_mut(&key(1)).expect("it is there");
            peer.allowed.push(("0.0.0.0".parse().expect("address"), 0));
            assert_ne!(held.held(&wanted, &BTreeMap::new(), now), wanted);
        }
    }
}

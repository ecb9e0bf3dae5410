//! Tells the segment that an egress IP is now behind our MAC: gratuitous ARP and unsolicited neighbour
//! advertisements, which neighbours with an older entry take at once.

use std::collections::BTreeSet;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::libc;
use tokio::time::sleep;

use crate::{Error, Result};

/// How long after one announcement the next is sent. The first goes out at once; it may be lost, or come before a
/// switch has relearnt the port.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1_500),
];

const BROADCAST: [u8; 6] = [0xff; 6];
/// ff02::1 as an Ethernet address (RFC 2464, 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Something to announce.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Announcement {
    pub(super) address: IpAddr,
    pub(super) device: String,
    pub(super) index: u32,
    pub(super) mac: [u8; 6],
}

/// Announces what this node answers for, and goes on only while it does: an address that moved on is its new node's
/// to announce.
#[derive(Clone, Debug, Default)]
pub(super) struct Announcer {
    held: Arc<Mutex<BTreeSet<(IpAddr, u32)>>>,
}

impl Announcer {
    fn held(&self) -> MutexGuard<'_, BTreeSet<(IpAddr, u32)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which addresses the node answers for now, with the indexes of their interfaces.
    pub(super) fn answers_for(&self, held: BTreeSet<(IpAddr, u32)>) {
        *self.held() = held;
    }

    /// Announces all of them at once and three times more in the background of the calling thread's runtime.
    pub(super) fn start(&self, mut announcements: Vec<Announcement>) {
        if announcements.is_empty() {
            return;
        }
        send_all(&announcements);
        let announcer = self.clone();
        tokio::spawn(async move {
            for pause in PAUSES {
                sleep(pause).await;
                announcements.retain(|a| announcer.held().contains(&(a.address, a.index)));
                send_all(&announcements);
            }
        });
    }
}

fn send_all(announcements: &[Announcement]) {
    let socket = match packet_socket() {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(%error, "couldn't open a packet socket to announce egress IPs with");
            return;
        }
    };
    for announcement in announcements {
        if let Err(error) = send(&socket, announcement) {
            let Announcement { address, device, .. } = announcement;
            tracing::warn!(%error, %address, device, "couldn't announce an egress IP");
        }
    }
}

fn send(socket: &OwnedFd, announcement: &Announcement) -> Result<()> {
    let frames = match announcement.address {
        // Some stacks only take requests, some only replies (RFC 5227, 3).
        IpAddr::V4(ip) => vec![arp(announcement.mac, ip, 1), arp(announcement.mac, ip, 2)],
        IpAddr::V6(ip) => vec![advertisement(announcement.mac, ip)],
    };
    for frame in frames {
        send_frame(socket, announcement.index, &frame).map_err(|source| Error::Netlink {
            what: format!("announce {} on {}", announcement.address, announcement.device),
            source,
        })?;
    }
    Ok(())
}

/// A gratuitous ARP frame: sender and target are both `ip` (RFC 826, RFC 5227). Linux takes a reply for gratuitous only
/// where it names the sender's hardware address as the target's too, and would otherwise leave a young entry alone.
fn arp(mac: [u8; 6], ip: Ipv4Addr, operation: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(BROADCAST);
    frame.extend(mac);
    frame.extend(0x0806_u16.to_be_bytes());
    frame.extend(1_u16.to_be_bytes());
    frame.extend(0x0800_u16.to_be_bytes());
    frame.extend([6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend(if operation == 1 { [0; 6] } else { mac });
    frame.extend(ip.octets());
    frame
}

/// An unsolicited neighbour advertisement to all nodes, with the override flag (RFC 4861, 4.4 and 7.2.6).
fn advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    body.extend(ip.octets());
    body.extend([2, 1]);
    body.extend(mac);
    let sum = checksum(ip, ALL_NODES, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = Vec::with_capacity(86);
    frame.extend(ALL_NODES_MAC);
    frame.extend(mac);
    frame.extend(0x86dd_u16.to_be_bytes());
    frame.extend([0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(body);
    frame
}

/// ICMPv6 checksum over the pseudo header and the message (RFC 8200, 8.1).
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> u16 {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut data = Vec::with_capacity(40 + body.len());
    data.extend(source.octets());
    data.extend(destination.octets());
    data.extend(length.to_be_bytes());
    data.extend([0, 0, 0, 58]);
    data.extend(body);
    let mut sum: u32 = data
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn packet_socket() -> io::Result<OwnedFd> {
    // Protocol 0: it only sends, so nothing queues up on it.
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send_frame(socket: &OwnedFd, index: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: all bytes zero is a valid sockaddr_ll.
    let mut to: libc::sockaddr_ll = unsafe { zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    to.sll_ifindex = i32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    // The kernel believes this field over the frame's own for its queueing decisions.
    to.sll_protocol = u16::from_be_bytes([frame[12], frame[13]]).to_be();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: both pointers are to live values of the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0x53, 0x64, 0x40, 4, 1];

    #[test]
    fn a_gratuitous_arp_names_the_address_twice() {
        let frame = arp(MAC, Ipv4Addr::new(203, 0, 113, 10), 1);
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], [203, 0, 113, 10]);
        assert_eq!(frame[38..42], [203, 0, 113, 10]);
        assert_eq!(frame[22..28], MAC);
    }

    #[test]
    fn an_advertisement_sums_to_zero() {
        let ip: Ipv6Addr = "2001:db8:1::10".parse().expect("address");
        let frame = advertisement(MAC, ip);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(
            checksum(ip, ALL_NODES, &frame[54..]),
            0,
            "a right checksum cancels itself"
        );
        assert_eq!(frame[58] & 0x20, 0x20, "override");
    }
}

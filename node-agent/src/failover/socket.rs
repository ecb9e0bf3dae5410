//! One UDP socket on the tunnel device, for both families.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use spillway_core::health::message::PORT;
use tokio::net::UdpSocket;

/// A socket bound to a device, which may have been replaced since by another of its name.
#[derive(Debug)]
pub(super) struct Socket {
    udp: UdpSocket,
    ipv6: bool,
    device: String,
    index: u32,
}

/// True where there is a device of this name.
pub(super) fn exists(device: &str) -> bool {
    if_nametoindex(device).is_ok()
}

impl Socket {
    /// Binds to `device`. To be called within a runtime.
    pub(super) fn open(device: &str) -> io::Result<Self> {
        let index = if_nametoindex(device)?;
        // A kernel without IPv6 has no such sockets.
        let (fd, ipv6) = match on(device, AddressFamily::Inet6) {
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => (on(device, AddressFamily::Inet)?, false),
            other => (other?, true),
        };
        Ok(Self {
            udp: UdpSocket::from_std(std::net::UdpSocket::from(fd))?,
            ipv6,
            device: device.to_owned(),
            index,
        })
    }

    /// The device is still the one that the socket is bound to.
    pub(super) fn stands(&self, device: &str) -> bool {
        self.device == device && if_nametoindex(device) == Ok(self.index)
    }

    /// Waits for a datagram. Longer ones are cut.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, IpAddr, u16)> {
        let (length, from) = self.udp.recv_from(buffer).await?;
        Ok((length, from.ip().to_canonical(), from.port()))
    }

    /// Sends at once or not at all: a late probe is worse than none.
    pub(super) fn send(&self, bytes: &[u8], to: IpAddr, port: u16) -> io::Result<()> {
        let to = match to {
            IpAddr::V4(a) if self.ipv6 => IpAddr::V6(a.to_ipv6_mapped()),
            other => other,
        };
        self.udp.try_send_to(bytes, SocketAddr::new(to, port)).map(drop)
    }
}

fn on(device: &str, family: AddressFamily) -> Result<OwnedFd, Errno> {
    let fd = socket(
        family,
        SockType::Datagram,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let any = if family == AddressFamily::Inet6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT))
    } else {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))
    };
    setsockopt(&fd, sockopt::BindToDevice, &OsString::from(device))?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(any))?;
    Ok(fd)
}

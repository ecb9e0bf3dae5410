//! Ping.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::client::Deadline;
use super::packet::{self, ECHO_REPLY, ECHO_REPLY_V6, ECHO_REQUEST, ECHO_REQUEST_V6, Echo};
use super::raw::ip_of;

/// Sends an echo request with `tag` as its payload and returns how long the reply took.
pub(crate) fn ping(target: IpAddr, tag: &str, timeout: Duration) -> anyhow::Result<Duration> {
    let (socket, raw) = open(target)?;
    // A raw socket sees the replies to everybody: the identifier is ours. For a ping socket the kernel chooses it.
    let identifier = (std::process::id() & 0xffff) as u16;
    let kind = if target.is_ipv6() {
        ECHO_REQUEST_V6
    } else {
        ECHO_REQUEST
    };
    let request = Echo {
        kind,
        identifier,
        sequence: 1,
        payload: tag.as_bytes(),
    };
    let deadline = Deadline::after(timeout);
    let started = Instant::now();
    let address = SockaddrStorage::from(SocketAddr::new(target, 0));
    sendto(socket.as_raw_fd(), &request.bytes(), &address, MsgFlags::empty())
        .with_context(|| format!("cannot send an echo request to {target}"))?;
    let mut buffer = [0; 2048];
    while started.elapsed() < timeout {
        let left = deadline.left();
        let wait = TimeVal::new(i64::try_from(left.as_secs())?, i64::from(left.subsec_micros()));
        setsockopt(&socket, sockopt::ReceiveTimeout, &wait).context("cannot set a timeout")?;
        let (length, source) = match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error).with_context(|| format!("ping {target}")),
        };
        let took = started.elapsed();
        let message = &buffer[..length];
        let reply = match target {
            IpAddr::V4(_) if raw => packet::ipv4(message).and_then(|(_, rest)| Echo::parse(rest, ECHO_REPLY)),
            IpAddr::V4(_) => Echo::parse(message, ECHO_REPLY),
            IpAddr::V6(_) => Echo::parse(message, ECHO_REPLY_V6),
        };
        let from_target = source.as_ref().and_then(ip_of) == Some(target);
        if reply.is_some_and(|reply| {
            from_target && reply.payload == tag.as_bytes() && (!raw || reply.identifier == identifier)
        }) {
            return Ok(took);
        }
    }
    Err(anyhow!("ping {target}: no answer within {timeout:?}"))
}

/// A socket for echo requests, and whether it is a raw one. Ping sockets need no capability but a sysctl that allows
/// them (net.ipv4.ping_group_range), raw ones CAP_NET_RAW: containers have one or the other.
pub(crate) fn open(target: IpAddr) -> anyhow::Result<(OwnedFd, bool)> {
    let (family, protocol) = if target.is_ipv6() {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    } else {
        (AddressFamily::Inet, SockProtocol::Icmp)
    };
    if let Ok(socket) = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol) {
        return Ok((socket, false));
    }
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context(
        "cannot ping: it takes CAP_NET_RAW, or a net.ipv4.ping_group_range that includes this group",
    )?;
    Ok((socket, true))
}

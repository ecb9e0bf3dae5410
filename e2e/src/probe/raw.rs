//! Notes what no ordinary socket shows: echo requests, which the kernel answers itself, and connection attempts, which
//! never become connections when the reply finds no way back.

use std::io::IoSliceMut;
use std::mem::size_of;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvmsg,
    setsockopt, socket, sockopt,
};

use super::packet::{self, ECHO_REQUEST, ECHO_REQUEST_V6, Echo};
use super::record::{Protocol, Record};

/// What a listener looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// ICMP echo requests.
    Echo,
    /// TCP segments that open a connection.
    Syn,
}

/// A raw socket of one family and protocol with a filter in the kernel: bulk transfers pass it by.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    watched: Watched,
    v6: bool,
}

impl Listener {
    /// Opens the socket.
    ///
    /// # Errors
    /// Most often for want of CAP_NET_RAW.
    pub(crate) fn open(watched: Watched, v6: bool) -> anyhow::Result<Self> {
        let protocol = match (watched, v6) {
            (Watched::Echo, false) => SockProtocol::Icmp,
            (Watched::Echo, true) => SockProtocol::IcmpV6,
            (Watched::Syn, _) => SockProtocol::Tcp,
        };
        let family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .context("cannot open a raw socket (it takes CAP_NET_RAW)")?;
        if v6 {
            // A raw IPv6 socket delivers no IP header: the destination comes beside the packet.
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true).context("cannot ask for destinations")?;
        }
        attach(&socket, &filter(watched, v6)).context("cannot set the filter of a raw socket")?;
        Ok(Self { socket, watched, v6 })
    }

    /// Waits for the next packet and says what it was; `None` when it was something else after all.
    pub(crate) fn next(&self) -> anyhow::Result<Option<Record>> {
        let mut buffer = [0; 2048];
        let mut control = nix::cmsg_space!(libc::in6_pktinfo);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let (length, source, beside) = loop {
            match recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                MsgFlags::empty(),
            ) {
                Ok(message) => {
                    let beside = message.cmsgs().ok().and_then(|mut all| {
                        all.find_map(|one| match one {
                            ControlMessageOwned::Ipv6PacketInfo(info) => {
                                Some(Ipv6Addr::from(info.ipi6_addr.s6_addr))
                            }
                            _ => None,
                        })
                    });
                    break (message.bytes, message.address, beside);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("reading a raw socket"),
            }
        };
        Ok(source
            .as_ref()
            .and_then(ip_of)
            .and_then(|source| self.record(&buffer[..length], source, beside)))
    }

    fn record(&self, packet: &[u8], source: IpAddr, beside: Option<Ipv6Addr>) -> Option<Record> {
        let (destination, rest) = if self.v6 {
            (IpAddr::V6(beside?), packet)
        } else {
            let (destination, rest) = packet::ipv4(packet)?;
            (IpAddr::V4(destination), rest)
        };
        let (protocol, from, to, payload) = match self.watched {
            Watched::Echo => {
                let echo = Echo::parse(rest, if self.v6 { ECHO_REQUEST_V6 } else { ECHO_REQUEST })?;
                (Protocol::Icmp, echo.identifier, echo.sequence, echo.payload)
            }
            Watched::Syn => {
                let (from, to) = packet::syn(rest)?;
                (Protocol::TcpSyn, from, to, &[][..])
            }
        };
        Some(Record::new(
            protocol,
            SocketAddr::new(source, from),
            SocketAddr::new(destination, to),
            payload,
        ))
    }
}

/// The address within a socket address.
pub(crate) fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    address
        .as_sockaddr_in()
        .map(|v4| IpAddr::V4(v4.ip()))
        .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// A classic BPF program (Linux Documentation/networking/filter.rst) that lets through what is watched. Packets that
/// arrive before it is attached are checked again by [`Listener::record`].
fn filter(watched: Watched, v6: bool) -> Vec<libc::sock_filter> {
    const LOAD_HEADER_LENGTH: u16 = 0xb1;
    const LOAD_BYTE_BEHIND: u16 = 0x50;
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;

    let step = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let (offset, mask, wanted) = match watched {
        Watched::Echo => (
            0,
            0xff,
            u32::from(if v6 { ECHO_REQUEST_V6 } else { ECHO_REQUEST }),
        ),
        Watched::Syn => (13, 0x12, 0x02),
    };
    let mut program = Vec::new();
    if v6 {
        program.push(step(LOAD_BYTE, offset));
    } else {
        program.push(step(LOAD_HEADER_LENGTH, 0));
        program.push(step(LOAD_BYTE_BEHIND, offset));
    }
    program.push(step(AND, mask));
    program.push(libc::sock_filter {
        code: JUMP_IF_EQUAL,
        jt: 0,
        jf: 1,
        k: wanted,
    });
    program.push(step(RETURN, u32::from(u16::MAX)));
    program.push(step(RETURN, 0));
    program
}

#[allow(unsafe_code)]
fn attach(socket: &OwnedFd, program: &[libc::sock_filter]) -> nix::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        // The kernel only reads; the field is mutable for want of another.
        filter: program.as_ptr().cast_mut(),
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the descriptor is open, and the pointer and length describe `program`, which with the instructions it
    // points to outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

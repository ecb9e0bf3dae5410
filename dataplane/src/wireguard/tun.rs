//! A TUN device: what the kernel routes into it is read here, and what is written here the kernel receives by it
//! (Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::zeroed;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Most packets read at one go.
const BURST: usize = 64;

/// One end of the device, which goes when the last end does.
#[derive(Clone)]
pub(super) struct Tun {
    file: Arc<AsyncFd<File>>,
    mtu: watch::Receiver<u16>,
}

impl Tun {
    /// Makes the device, in the calling thread's network namespace.
    pub(super) fn create(name: &str, mtu: watch::Receiver<u16>) -> io::Result<Self> {
        let path = "/dev/net/tun";
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(|e| {
                let remedy = "load the kernel's module tun, or use a kernel with WireGuard";
                io::Error::new(e.kind(), format!("open {path}: {e}; {remedy}"))
            })?;
        attach(&file, name)?;
        // SAFETY: the file owns its descriptor and stays in the `AsyncFd` until that is dropped.
        let file = unsafe { AsyncFd::register(file) }?;
        Ok(Self {
            file: Arc::new(file),
            mtu,
        })
    }
}

/// `TUNSETIFF`: no packet information in front of packets.
fn attach(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: a structure of C, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an interface's name has at most 15 bytes",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
    // SAFETY: the kernel reads and writes the structure, which outlives the call, and the descriptor is open.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl IpSend for Tun {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let bytes = packet.into_bytes();
        loop {
            let mut ready = self.file.writable().await?;
            if let Ok(written) = ready.try_io(|file| file.get_ref().write(&bytes)) {
                return written.map(|_| ());
            }
        }
    }
}

impl IpRecv for Tun {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let mut packets = Vec::new();
        while packets.is_empty() {
            // A device that was deleted is an error and nothing to read.
            let mut ready = self.file.ready(Interest::READABLE | Interest::ERROR).await?;
            while packets.len() < BURST {
                let mut packet = pool.get();
                match ready.try_io(|file| file.get_ref().read(&mut packet)) {
                    Ok(length) => packet.truncate(length?),
                    Err(_would_block) => break,
                }
                // What is no IP packet has nowhere to go.
                packets.extend(packet.try_into_ip());
            }
        }
        Ok(packets.into_iter())
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone().into()
    }
}

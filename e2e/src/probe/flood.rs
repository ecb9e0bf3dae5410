//! How many datagrams pass in a second.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::client;
use super::server::spawn;

/// Asks the sink how many datagrams came from the asker.
const QUESTION: &[u8] = b"how many?";

/// How long the sink's answer may take, and how often it is asked for.
const ANSWER: Duration = Duration::from_millis(500);
const ASKED: u32 = 10;

/// Room for bursts at the sink, in bytes; the kernel's limit may be lower.
const BUFFER: usize = 8 << 20;

/// What a flood came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flood {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Datagrams that the sink got.
    pub arrived: u64,
    /// How long it lasted.
    pub seconds: f64,
}

/// Counts datagrams by sender, as long as the process lives.
pub(super) fn sink(socket: UdpSocket) {
    // Where it is refused the default has to do.
    let _as_much_as_allowed = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
    spawn("flood", move || {
        let mut counts: HashMap<SocketAddr, u64> = HashMap::new();
        let mut buffer = [0; 2048];
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((length, peer)) if &buffer[..length] == QUESTION => {
                    let count = counts.get(&peer).copied().unwrap_or_default();
                    let _its_own_business = socket.send_to(count.to_string().as_bytes(), peer);
                }
                Ok((_, peer)) => *counts.entry(peer).or_default() += 1,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    eprintln!("probe: datagrams are no longer counted: {error}");
                    return;
                }
            }
        }
    });
}

/// Sends from one port, then asks how many arrived.
pub(super) fn flood(target: SocketAddr, size: usize, time: Duration) -> anyhow::Result<Flood> {
    let socket = client::udp_socket(target)?;
    let datagram = vec![b'.'; size];
    let started = Instant::now();
    let mut sent = 0;
    while started.elapsed() < time {
        for _ in 0..64 {
            match socket.send(&datagram) {
                Ok(_) => sent += 1,
                // The device's queue is full: that is what a flood is for.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
                Err(error) => return Err(error).with_context(|| format!("flood {target}")),
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    socket.set_read_timeout(Some(ANSWER))?;
    let mut buffer = [0; 64];
    for _ in 0..ASKED {
        socket.send(QUESTION)?;
        if let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            let arrived = text
                .parse()
                .with_context(|| format!("no sink there: it said {text:?}"))?;
            return Ok(Flood {
                sent,
                arrived,
                seconds,
            });
        }
    }
    bail!("{target} doesn't say how many datagrams arrived")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sink_counts_what_arrives() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = socket.local_addr().unwrap();
        sink(socket);
        let result = flood(target, 64, Duration::from_millis(50)).unwrap();
        assert!(
            result.arrived > 100 && result.arrived <= result.sent,
            "{result:?}"
        );
    }
}

//! One attempt: connect, be told the address the server saw.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};

use super::record::Answer;

/// Finds the address of `HOST:PORT`; IPv6 literals stand in brackets.
pub(crate) fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    target
        .to_socket_addrs()
        .with_context(|| format!("cannot find {target} (it takes HOST:PORT)"))?
        .next()
        .with_context(|| format!("{target} has no address"))
}

/// Finds the address of a host without a port.
pub(crate) fn resolve_host(host: &str) -> anyhow::Result<IpAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    Ok(resolve(&format!("{host}:0"))?.ip())
}

/// Connects by TCP and returns the source that the server saw. `tag` goes into the server's log.
pub(crate) fn tcp(target: SocketAddr, tag: &str, timeout: Duration) -> anyhow::Result<SocketAddr> {
    let deadline = Deadline::after(timeout);
    let (mut stream, source) = connect(target, tag, deadline)?;
    // An orderly end, so that no connection tracking keeps a half-closed entry; its failure changes nothing.
    if stream.get_ref().shutdown(Shutdown::Write).is_ok() && deadline.apply(stream.get_ref()).is_ok() {
        let _ = io::copy(&mut stream.by_ref().take(1 << 16), &mut io::sink());
    }
    Ok(source)
}

/// Connects by TCP and leaves the connection open.
pub(crate) fn connect(
    target: SocketAddr,
    tag: &str,
    deadline: Deadline,
) -> anyhow::Result<(BufReader<TcpStream>, SocketAddr)> {
    let mut stream = TcpStream::connect_timeout(&target, deadline.left())
        .map_err(|error| describe(&error, &format!("connect to {target}"), deadline))?;
    let failed = |error: &io::Error| describe(error, &format!("connected to {target}, then"), deadline);
    stream.set_nodelay(true).map_err(|error| failed(&error))?;
    if !tag.is_empty() {
        stream
            .write_all(format!("{tag}\n").as_bytes())
            .map_err(|error| failed(&error))?;
    }
    deadline.apply(&stream).map_err(|error| failed(&error))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).map_err(|error| failed(&error))?;
    if line.is_empty() {
        return Err(anyhow!("connected to {target}, then closed without an answer"));
    }
    let source = Answer::parse(&line)?;
    Ok((reader, source))
}

/// Sends a datagram and returns the source that the server saw.
pub(crate) fn udp(target: SocketAddr, tag: &str, timeout: Duration) -> anyhow::Result<SocketAddr> {
    udp_on(&udp_socket(target)?, target, tag, timeout)
}

/// A datagram socket towards `target`; connected, so that "port unreachable" comes back as an error.
pub(crate) fn udp_socket(target: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any: IpAddr = if target.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).context("cannot open a datagram socket")?;
    socket
        .connect(target)
        .with_context(|| format!("no way to {target}"))?;
    Ok(socket)
}

/// [`udp`] on a socket of the caller's. Answers to earlier datagrams are passed over.
pub(crate) fn udp_on(
    socket: &UdpSocket,
    target: SocketAddr,
    tag: &str,
    timeout: Duration,
) -> anyhow::Result<SocketAddr> {
    let deadline = Deadline::after(timeout);
    let failed = |error: &io::Error| describe(error, &format!("datagram to {target}"), deadline);
    socket.send(tag.as_bytes()).map_err(|error| failed(&error))?;
    let mut buffer = vec![0; 65_536];
    loop {
        socket
            .set_read_timeout(Some(deadline.left()))
            .map_err(|error| failed(&error))?;
        let length = socket.recv(&mut buffer).map_err(|error| failed(&error))?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let (line, echoed) = text.split_once('\n').unwrap_or((&text, ""));
        if echoed == tag {
            return Answer::parse(line);
        }
    }
}

/// A moment by which something must have happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// A deadline `timeout` from now.
    pub(crate) fn after(timeout: Duration) -> Self {
        Self {
            at: Instant::now() + timeout,
            timeout,
        }
    }

    /// What is left; never zero, which sockets take for "no timeout" or refuse.
    pub(crate) fn left(self) -> Duration {
        self.at
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1))
    }

    fn apply(self, stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(self.left()))?;
        stream.set_write_timeout(Some(self.left()))
    }
}

/// The reason of a failure in words that tell a lost packet from a refused one.
pub(crate) fn describe(error: &io::Error, what: &str, deadline: Deadline) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            anyhow!("{what}: no answer within {:?}", deadline.timeout)
        }
        io::ErrorKind::ConnectionRefused => anyhow!("{what}: refused"),
        io::ErrorKind::ConnectionReset => anyhow!("{what}: reset by the other side"),
        _ => anyhow!("{what}: {error}"),
    }
}

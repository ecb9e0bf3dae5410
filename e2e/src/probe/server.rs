//! The server: answers with what it saw, and notes it.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use super::raw::{Listener, Watched};
use super::record::{Answer, Log, Protocol, Record};
use super::{ECHO_PORT, FLOW_PORT, PUSH_PORT, SECOND_ECHO_PORT, SINK_PORT, SOURCE_PORT};
use super::{flood, flows, throughput};

/// How long a connection may say nothing before it is noted without a payload.
const FIRST_BYTES: Duration = Duration::from_millis(250);

/// A connection that is silent for this long was forgotten by its client.
const IDLE: Duration = Duration::from_hours(1);

/// How long an address may be missing at the start: IPv6 addresses are unusable until duplicate address detection ends.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);

/// Starts all services on all `addresses` and returns once they listen. They run as long as the process.
/// `shift` is added to every port, so that several servers can share an address.
pub(crate) fn start(addresses: &[IpAddr], shift: u16, log: Option<&Path>) -> anyhow::Result<()> {
    let log = Arc::new(Log::open(log)?);
    let mut flow_listeners = Vec::new();
    for address in addresses {
        let at = |port: u16| SocketAddr::new(*address, port + shift);
        for port in [ECHO_PORT, SECOND_ECHO_PORT] {
            let noted = Arc::clone(&log);
            accept(at(port), move |stream| echo(stream, &noted))?;
        }
        let noted = Arc::clone(&log);
        accept(at(PUSH_PORT), move |stream| push(stream, &noted))?;
        accept(at(SINK_PORT), throughput::sink)?;
        accept(at(SOURCE_PORT), throughput::source)?;
        datagrams(at(ECHO_PORT), Arc::clone(&log))?;
        flood::sink(bound(at(SINK_PORT), SockType::Datagram)?.into());
        flow_listeners.push(listening(at(FLOW_PORT))?);
    }
    let noted = Arc::clone(&log);
    spawn("flows", move || {
        if let Err(error) = flows::serve(flow_listeners, &noted) {
            eprintln!("probe: flows are not served: {error}");
        }
    });
    for v6 in [false, true] {
        let ours: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .filter(|address| address.is_ipv6() == v6)
            .collect();
        if ours.is_empty() {
            continue;
        }
        for watched in [Watched::Echo, Watched::Syn] {
            if let Err(error) = note_raw(watched, v6, ours.clone(), shift, Arc::clone(&log)) {
                eprintln!("probe: {error:#}: {watched:?} packets are not noted");
            }
        }
    }
    Ok(())
}

fn listening(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = bound(address, SockType::Stream)?;
    listen(&socket, Backlog::MAXCONN).with_context(|| format!("cannot listen on {address}"))?;
    Ok(TcpListener::from(socket))
}

/// Hands every connection to a thread of its own.
fn accept(
    address: SocketAddr,
    handle: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let listener = listening(address)?;
    spawn("accept", move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => {
                    let handle = handle.clone();
                    // A client that goes away in the middle is no error of the server.
                    spawn("connection", move || drop(handle(stream)));
                }
                Err(error) => eprintln!("probe: cannot accept on {address}: {error}"),
            }
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream, log: &Log) -> io::Result<()> {
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    stream.set_nodelay(true)?;
    stream.write_all(Answer::line(peer).as_bytes())?;
    stream.set_read_timeout(Some(FIRST_BYTES))?;
    let mut buffer = vec![0; 16 * 1024];
    let mut length = match stream.read(&mut buffer) {
        Ok(length) => Some(length),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
        Err(error) => {
            log.write(&Record::new(Protocol::Tcp, peer, local, &[]));
            return Err(error);
        }
    };
    log.write(&Record::new(
        Protocol::Tcp,
        peer,
        local,
        &buffer[..length.unwrap_or(0)],
    ));
    stream.set_read_timeout(Some(IDLE))?;
    while length != Some(0) {
        stream.write_all(&buffer[..length.unwrap_or(0)])?;
        length = Some(stream.read(&mut buffer)?);
    }
    Ok(())
}

/// A line each 10 ms with a rising number: gaps and stalls show at the client.
fn push(mut stream: TcpStream, log: &Log) -> io::Result<()> {
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    log.write(&Record::new(Protocol::Tcp, peer, local, &[]));
    stream.set_nodelay(true)?;
    stream.write_all(Answer::line(peer).as_bytes())?;
    let start = Instant::now();
    for number in 0u32.. {
        writeln!(stream, "{number}")?;
        let next = start + Duration::from_millis(10) * (number + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn datagrams(address: SocketAddr, log: Arc<Log>) -> anyhow::Result<()> {
    let socket = UdpSocket::from(bound(address, SockType::Datagram)?);
    spawn("datagrams", move || {
        let mut buffer = vec![0; 65_536];
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((length, peer)) => {
                    log.write(&Record::new(Protocol::Udp, peer, address, &buffer[..length]));
                    let mut answer = Answer::line(peer).into_bytes();
                    answer.extend(&buffer[..length]);
                    // Nobody may be there any more, or no route may lead back: that is the client's to notice.
                    let _ = socket.send_to(&answer, peer);
                }
                // An ICMP error for an earlier answer.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    eprintln!("probe: datagrams on {address}: {error}");
                    return;
                }
            }
        }
    });
    Ok(())
}

fn note_raw(watched: Watched, v6: bool, ours: Vec<IpAddr>, shift: u16, log: Arc<Log>) -> anyhow::Result<()> {
    let listener = Listener::open(watched, v6)?;
    let ports = ECHO_PORT + shift..=SECOND_ECHO_PORT + shift;
    spawn("raw", move || {
        loop {
            match listener.next() {
                Ok(Some(record)) => {
                    let for_us = ours
                        .iter()
                        .any(|address| address.is_unspecified() || *address == record.dst);
                    if for_us && (watched == Watched::Echo || ports.contains(&record.dport)) {
                        log.write(&record);
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    eprintln!("probe: {error:#}: {watched:?} packets are no longer noted");
                    return;
                }
            }
        }
    });
    Ok(())
}

/// A socket bound to `address`. IPv6 ones take IPv6 only, so that both wildcards can stand side by side.
fn bound(address: SocketAddr, kind: SockType) -> anyhow::Result<OwnedFd> {
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let what = || format!("cannot bind {address}");
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).with_context(what)?;
    if kind == SockType::Stream {
        setsockopt(&socket, sockopt::ReuseAddr, &true).with_context(what)?;
    }
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true).with_context(what)?;
    }
    let deadline = Instant::now() + ADDRESS_PATIENCE;
    loop {
        let result = bind(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            &SockaddrStorage::from(address),
        );
        match result {
            Err(Errno::EADDRNOTAVAIL) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            other => {
                other.with_context(what)?;
                return Ok(socket);
            }
        }
    }
}

/// Starts a thread with a small stack: there may be thousands. When the system has no more, the connection is dropped.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    let builder = thread::Builder::new()
        .name(name.to_owned())
        .stack_size(256 * 1024);
    if let Err(error) = builder.spawn(work) {
        eprintln!("probe: cannot start a thread: {error}");
    }
}

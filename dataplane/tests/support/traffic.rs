//! Traffic between namespaces, and whom its far end saw.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::{Namespace, eventually, patient};

/// Longest wait for what comes; WireGuard repeats a handshake that got lost after five seconds.
pub fn wait() -> Duration {
    patient(Duration::from_secs(20))
}

/// A packet that is dropped never comes; one that isn't comes within milliseconds.
pub fn silence() -> Duration {
    patient(Duration::from_millis(300))
}

/// Both ends of one TCP connection.
pub struct Connection {
    pub client: TcpStream,
    pub server: TcpStream,
    /// Whom the server saw.
    pub seen: SocketAddr,
}

/// Opens a connection from `client` to `server`, an address of `outside`.
pub fn connect(client: &Namespace, outside: &Namespace, server: &str) -> Option<Connection> {
    connect_to(client, outside, server, 0)
}

/// The same to a port of `server`, any one for 0.
pub fn connect_to(client: &Namespace, outside: &Namespace, server: &str, port: u16) -> Option<Connection> {
    let server: IpAddr = server.parse().expect("address");
    let listener = outside
        .inside(|| TcpListener::bind((server, port)))
        .expect("listen");
    let address = listener.local_addr().expect("address");
    let client = client
        .inside(|| TcpStream::connect_timeout(&address, silence()))
        .ok()?;
    listener.set_nonblocking(true).expect("mode");
    let mut accepted = None;
    eventually("the server accepts what the client connected", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (server, seen) = accepted?;
    server.set_nonblocking(false).expect("mode");
    for end in [&client, &server] {
        end.set_read_timeout(Some(wait())).expect("timeout");
    }
    Some(Connection { client, server, seen })
}

impl Connection {
    /// Sends more than the path's MTU each way, so that segments are of full size, and compares every byte.
    pub fn exchange(&mut self) {
        let data: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let sent = data.clone();
        let mut stream = self.client.try_clone().expect("clone");
        let writer = std::thread::spawn(move || {
            stream.write_all(&sent).expect("send");
            let mut back = vec![0; sent.len()];
            stream.read_exact(&mut back).expect("receive");
            assert!(back == sent, "bytes come back as they were");
        });
        let mut received = vec![0; data.len()];
        self.server.read_exact(&mut received).expect("server receives");
        assert!(received == data, "bytes arrive as they were");
        self.server.write_all(&received).expect("server sends");
        writer.join().expect("client");
    }
}

/// Opens a connection and exchanges bytes; answers whom the server saw.
pub fn tcp(client: &Namespace, outside: &Namespace, server: &str) -> Option<SocketAddr> {
    let mut connection = connect(client, outside, server)?;
    connection.exchange();
    Some(connection.seen)
}

/// A UDP socket of `namespace` that its peer can be any of one family of.
pub fn socket(namespace: &Namespace, server: &str) -> UdpSocket {
    let any = if server.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    namespace.inside(|| UdpSocket::bind(any)).expect("bind")
}

/// A UDP service at `server`, an address of `outside`.
pub fn service(outside: &Namespace, server: &str) -> UdpSocket {
    service_at(outside, server, 0)
}

/// The same at a port, any one for 0.
pub fn service_at(outside: &Namespace, server: &str, port: u16) -> UdpSocket {
    let server: IpAddr = server.parse().expect("address");
    outside.inside(|| UdpSocket::bind((server, port))).expect("bind")
}

/// Sends a datagram and gets it back; answers whom the server saw.
pub fn udp(client: &Namespace, outside: &Namespace, server: &str, size: usize) -> Option<SocketAddr> {
    exchange(&socket(client, server), &service(outside, server), size)
}

/// Sends a datagram of `size` bytes from `socket` to `service` and back; answers whom the service saw.
pub fn exchange(socket: &UdpSocket, service: &UdpSocket, size: usize) -> Option<SocketAddr> {
    service.set_read_timeout(Some(silence())).expect("timeout");
    socket.set_read_timeout(Some(wait())).expect("timeout");
    // An earlier drop may have left an error on the socket.
    let _ = socket.take_error();
    let hello: Vec<u8> = (0..size).map(|n| n.to_le_bytes()[0]).collect();
    socket
        .send_to(&hello, service.local_addr().expect("address"))
        .ok()?;
    let mut buffer = vec![0; 65_536];
    let (length, seen) = service.recv_from(&mut buffer).ok()?;
    assert_eq!(&buffer[..length], hello);
    service.send_to(&hello, seen).expect("reply");
    let (length, _) = socket.recv_from(&mut buffer).expect("the reply comes back");
    assert_eq!(&buffer[..length], hello);
    Some(seen)
}

/// Whom the server at `outside` got packets from, by its table `seen` (sets `v4` and `v6`), other than these addresses.
pub fn strangers(outside: &Namespace, expected: [&str; 2]) -> String {
    let expected = expected.map(|a| a.parse::<IpAddr>().expect("address"));
    let seen = outside.run("nft list set inet seen v4; nft list set inet seen v6");
    seen.split([' ', ',', '\n', '\t'])
        .filter_map(|word| word.parse::<IpAddr>().ok())
        .filter(|a| !expected.contains(a))
        .map(|a| a.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

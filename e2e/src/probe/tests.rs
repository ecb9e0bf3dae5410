//! The server and all its clients, on loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use super::throughput::{self, Until};
use super::watch::{Attempt, Plan, watch};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A server on both loopbacks with ports and a log of its own.
pub(super) struct Fixture {
    _dir: tempfile::TempDir,
    pub(super) log: PathBuf,
    pub(super) shift: u16,
}

impl Fixture {
    pub(super) fn start() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        // Another process may test at the same time: ports follow from ours, and a taken one means the next.
        let base = u16::try_from(std::process::id() % 2000).unwrap() * 8;
        for _ in 0..50 {
            let shift = 4000 + (base + 8 * NEXT.fetch_add(1, Ordering::Relaxed)) % 16_000;
            if server::start(&loopbacks, shift, Some(&log)).is_ok() {
                return Self {
                    _dir: dir,
                    log,
                    shift,
                };
            }
        }
        panic!("no free ports");
    }

    pub(super) fn at(&self, port: u16, v6: bool) -> SocketAddr {
        let address: IpAddr = if v6 {
            Ipv6Addr::LOCALHOST.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        };
        SocketAddr::new(address, port + self.shift)
    }

    /// Waits until the log has what `wanted` looks for.
    fn record(&self, wanted: impl Fn(&Record) -> bool) -> Record {
        let deadline = Instant::now() + 5 * SECOND;
        loop {
            let all = records(&self.log);
            if let Some(record) = all.iter().find(|record| wanted(record)) {
                return record.clone();
            }
            assert!(Instant::now() < deadline, "only these were noted: {all:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn plan(&self, tcp: bool) -> Plan {
        Plan {
            target: self.at(ECHO_PORT, false),
            tcp,
            tag: "watch".to_owned(),
            interval: Duration::from_millis(2),
            count: 5,
            timeout: SECOND,
            keep: false,
        }
    }
}

pub(super) fn records(log: &Path) -> Vec<Record> {
    std::fs::read_to_string(log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn attempts(plan: &Plan) -> Vec<Attempt> {
    let mut all = Vec::new();
    watch(plan, |attempt| {
        all.push(attempt.clone());
        Ok(())
    })
    .unwrap();
    all
}

fn can_open_raw_sockets() -> bool {
    raw::Listener::open(raw::Watched::Echo, false).is_ok()
}

#[test]
fn tcp_and_udp_clients_are_told_their_source_and_noted_with_their_tag() {
    let fixture = Fixture::start();
    for v6 in [false, true] {
        let target = fixture.at(ECHO_PORT, v6);
        for proto in [Protocol::Tcp, Protocol::Udp] {
            let tag = format!("{proto:?}-{v6}");
            let attempt = if proto == Protocol::Tcp {
                client::tcp
            } else {
                client::udp
            };
            let source = attempt(target, &tag, SECOND).unwrap();
            assert_eq!(source.ip(), target.ip());
            let record = fixture.record(|record| record.payload == tag);
            assert_eq!(
                (record.proto, record.src, record.sport),
                (proto, source.ip(), source.port())
            );
            assert_eq!((record.dst, record.dport), (target.ip(), target.port()));
        }
    }
}

#[test]
fn a_connection_that_says_nothing_is_noted_too() {
    let fixture = Fixture::start();
    let stream = TcpStream::connect(fixture.at(ECHO_PORT, false)).unwrap();
    let port = stream.local_addr().unwrap().port();
    let record = fixture.record(|record| record.proto == Protocol::Tcp && record.sport == port);
    assert_eq!(record.payload, "");
}

#[test]
fn syns_and_echo_requests_are_noted_where_raw_sockets_are_allowed() {
    if !can_open_raw_sockets() {
        return;
    }
    let fixture = Fixture::start();
    for v6 in [false, true] {
        let target = fixture.at(ECHO_PORT, v6);
        let source = client::tcp(target, "syn", SECOND).unwrap();
        let record =
            fixture.record(|record| record.proto == Protocol::TcpSyn && record.sport == source.port());
        assert_eq!(
            (record.src, record.dst, record.dport),
            (source.ip(), target.ip(), target.port())
        );

        let tag = format!("ping-{v6}");
        let took = icmp::ping(target.ip(), &tag, SECOND).unwrap();
        assert!(took < SECOND);
        let record = fixture.record(|record| record.payload == tag);
        assert_eq!(
            (record.proto, record.src, record.dst),
            (Protocol::Icmp, target.ip(), target.ip())
        );
    }
}

#[test]
fn a_refusal_and_a_silence_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    let error = client::tcp(silent, "", Duration::from_millis(50))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no answer within 50ms"), "{error}");
    drop(listener);
    let error = client::tcp(silent, "", SECOND).unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    let error = client::udp(silent, "x", SECOND).unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
}

#[test]
fn a_watch_makes_a_new_connection_each_time_or_keeps_one() {
    let fixture = Fixture::start();
    for tcp in [true, false] {
        let ports = |all: Vec<Attempt>| -> Vec<u16> {
            all.iter().map(|attempt| attempt.src.unwrap().port()).collect()
        };
        let mut fresh = ports(attempts(&fixture.plan(tcp)));
        assert_eq!(fresh.len(), 5);
        fresh.sort_unstable();
        fresh.dedup();
        assert!(fresh.len() > 1, "tcp {tcp}: {fresh:?}");
        let mut kept = ports(attempts(&Plan {
            keep: true,
            ..fixture.plan(tcp)
        }));
        assert_eq!(kept.len(), 5);
        kept.dedup();
        assert_eq!(kept.len(), 1, "tcp {tcp}: {kept:?}");
    }
}

#[test]
fn a_watch_reports_failures_and_goes_on_but_a_broken_connection_ends_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    drop(listener);
    let plan = Plan {
        target,
        ..Fixture::start().plan(true)
    };
    let all = attempts(&plan);
    assert_eq!(all.len(), 5);
    assert!(
        all.iter()
            .all(|attempt| attempt.src.is_none() && attempt.error.as_ref().unwrap().contains("refused"))
    );

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let plan = Plan {
        target: listener.local_addr().unwrap(),
        keep: true,
        ..plan
    };
    let server = std::thread::spawn(move || {
        use std::io::Write as _;
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(Answer::line(peer).as_bytes()).unwrap();
    });
    let mut seen = Vec::new();
    let result = watch(&plan, |attempt| {
        seen.push(attempt.clone());
        Ok(())
    });
    server.join().unwrap();
    assert!(result.unwrap_err().to_string().contains("broke"));
    assert!(seen.last().unwrap().error.is_some());
}

#[test]
fn an_attempt_is_a_short_json_line() {
    let attempt = Attempt {
        n: 3,
        t: jiff::Timestamp::UNIX_EPOCH,
        ms: 1.5,
        src: Some("[::1]:7".parse().unwrap()),
        error: None,
    };
    let text = serde_json::to_string(&attempt).unwrap();
    assert_eq!(
        text,
        r#"{"n":3,"t":"1970-01-01T00:00:00Z","ms":1.5,"src":"[::1]:7"}"#
    );
    assert_eq!(serde_json::from_str::<Attempt>(&text).unwrap(), attempt);
}

#[test]
fn bytes_are_counted_in_both_directions() {
    let fixture = Fixture::start();
    for streams in [1, 3] {
        let sent = throughput::send(
            fixture.at(SINK_PORT, false),
            Until::Bytes(1_000_001),
            streams,
            SECOND,
        )
        .unwrap();
        assert_eq!((sent.bytes, sent.streams), (1_000_001, streams));
        let until = Until::Elapsed(Duration::from_millis(50));
        let received = throughput::receive(fixture.at(SOURCE_PORT, true), until, streams, SECOND).unwrap();
        assert!(received.bytes > 0 && received.seconds >= 0.05, "{received:?}");
    }
}

#[test]
fn the_push_service_counts_up() {
    use std::io::{BufRead as _, BufReader};
    let fixture = Fixture::start();
    let stream = TcpStream::connect(fixture.at(PUSH_PORT, false)).unwrap();
    let lines: Vec<String> = BufReader::new(stream)
        .lines()
        .take(4)
        .map(Result::unwrap)
        .collect();
    assert!(Answer::parse(&lines[0]).is_ok());
    assert_eq!(lines[1..], ["0", "1", "2"]);
}

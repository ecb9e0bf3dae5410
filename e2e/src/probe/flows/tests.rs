//! Flows between this process and a server of the test's, on loopback.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::thread;

use super::super::tests::{Fixture, records};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn plan(shift: u16) -> Plan {
    Plan {
        to: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        shift,
        driven: 0,
        pushed: 0,
        udp: 0,
        icmp: 0,
        pace: Duration::from_millis(5),
        tag: "flows".to_owned(),
        gap: Duration::from_millis(100),
        timeout: 2 * SECOND,
        drain: SECOND,
    }
}

fn run_for(plan: Plan, time: Duration) -> anyhow::Result<FlowsReport> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { run(plan, |_| Ok(()), tokio::time::sleep(time)).await })
}

#[test]
fn all_kinds_over_both_families_lose_nothing() {
    let fixture = Fixture::start();
    let icmp = u32::from(icmp_works());
    let report = run_for(
        Plan {
            driven: 3,
            pushed: 3,
            udp: 2,
            icmp,
            ..plan(fixture.shift)
        },
        SECOND / 2,
    )
    .unwrap();
    assert_eq!(report.flows.len(), 2 * (8 + icmp as usize));
    for flow in &report.flows {
        assert_eq!(
            (flow.lost, flow.repeated, &flow.broken),
            (0, 0, &None),
            "{flow:?}"
        );
        assert!(flow.received > 10 && flow.sent == flow.received, "{flow:?}");
        assert_eq!(flow.bytes, 64 * flow.received);
        if flow.kind != FlowKind::Icmp {
            assert_eq!(
                flow.sources.iter().copied().collect::<Vec<_>>(),
                [flow.from.unwrap()]
            );
        }
    }
    assert!(report.broken().is_empty() && report.lost() == 0);
    assert!(report.longest(FlowKind::Driven).unwrap().ms >= 5.0);
    // Each connection is in the server's record under the tag, with the port that the client was told.
    let noted = records(&fixture.log);
    for flow in report.of(FlowKind::Pushed).chain(report.of(FlowKind::Driven)) {
        let source = flow.sources.first().unwrap();
        let found = noted.iter().filter(|record| {
            record.sport == source.port() && record.payload == "flows" && record.dport == flow.to.port()
        });
        assert_eq!(found.count(), 1, "{flow:?}");
    }
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<FlowsReport>(&text).unwrap(), report);
}

#[test]
fn a_server_that_is_not_there_is_told_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = run_for(
        Plan {
            to: vec![Ipv4Addr::LOCALHOST.into()],
            driven: 1,
            ..plan(port - FLOW_PORT)
        },
        SECOND,
    );
    let text = format!("{:#}", error.unwrap_err());
    assert!(text.contains("refused"), "{text}");
}

/// Passes one connection on to the real server, changing what `edit` wants changed on the way there or back.
fn meddler(fixture: &Fixture, edit: fn(usize, bool, &mut Vec<u8>) -> bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let real = fixture.at(FLOW_PORT, false);
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(real).unwrap();
        let ways = [
            (client.try_clone().unwrap(), server.try_clone().unwrap(), true),
            (server, client, false),
        ];
        for (mut from, mut to, there) in ways {
            thread::spawn(move || {
                let mut buffer = vec![0; 4096];
                for turn in 0.. {
                    let length = from.read(&mut buffer).unwrap_or(0);
                    let mut bytes = buffer[..length].to_vec();
                    if length == 0 {
                        let _either_is_gone = to.shutdown(std::net::Shutdown::Write);
                        return;
                    }
                    if !edit(turn, there, &mut bytes) || to.write_all(&bytes).is_err() {
                        let _either_is_gone = to.shutdown(std::net::Shutdown::Both);
                        return;
                    }
                }
            });
        }
    });
    port
}

/// What became of a single connection through a meddler.
fn meddled(kind: FlowKind, edit: fn(usize, bool, &mut Vec<u8>) -> bool) -> FlowReport {
    let fixture = Fixture::start();
    let port = meddler(&fixture, edit);
    let report = run_for(
        Plan {
            to: vec![Ipv4Addr::LOCALHOST.into()],
            driven: u32::from(kind == FlowKind::Driven),
            pushed: u32::from(kind == FlowKind::Pushed),
            ..plan(port - FLOW_PORT)
        },
        SECOND / 2,
    )
    .unwrap();
    assert_eq!(
        report.broken().len(),
        usize::from(report.flows[0].broken.is_some())
    );
    report.flows[0].clone()
}

#[test]
fn a_way_that_changes_nothing_is_not_blamed() {
    for kind in [FlowKind::Driven, FlowKind::Pushed] {
        assert_eq!(meddled(kind, |_, _, _| true).broken, None);
    }
}

fn flip(bytes: &mut [u8]) -> bool {
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    true
}

#[test]
fn bytes_changed_on_the_way_are_noticed_by_whoever_gets_them() {
    // Pushed, and back from the echo: the client sees it.
    for kind in [FlowKind::Driven, FlowKind::Pushed] {
        let flow = meddled(kind, |turn, there, bytes| there || turn != 20 || flip(bytes));
        let said = flow.broken.unwrap();
        assert!(said.contains("not as it was sent"), "{said}");
    }
    // On the way there: the server sees it, and says so.
    let flow = meddled(FlowKind::Driven, |turn, there, bytes| {
        !there || turn != 20 || flip(bytes)
    });
    let said = flow.broken.unwrap();
    assert!(said.contains("the other side got"), "{said}");
}

#[test]
fn records_swapped_or_left_out_are_noticed() {
    let flow = meddled(FlowKind::Pushed, |turn, there, bytes| {
        if !there && turn == 20 {
            bytes.clear();
        }
        true
    });
    assert!(flow.broken.unwrap().contains("in place of"));
}

#[test]
fn a_cut_connection_is_told_as_broken() {
    for kind in [FlowKind::Driven, FlowKind::Pushed] {
        let flow = meddled(kind, |turn, there, _| there || turn < 20);
        assert!(flow.broken.is_some() && flow.received > 0, "{flow:?}");
    }
}

/// A server that stops for a while, and one that never answers again.
#[test]
fn a_silence_is_a_gap_and_an_endless_one_is_the_end() {
    let flow = meddled(FlowKind::Driven, |turn, there, _| {
        if !there && turn == 20 {
            thread::sleep(Duration::from_millis(200));
        }
        true
    });
    let longest = flow.longest.unwrap();
    assert!(flow.broken.is_none() && longest.ms >= 190.0, "{flow:?}");
    assert!(flow.gaps.contains(&longest), "{flow:?}");

    let flow = meddled(FlowKind::Pushed, |turn, there, _| {
        if !there && turn == 20 {
            thread::sleep(Duration::from_secs(20));
        }
        true
    });
    assert!(flow.broken.unwrap().contains("after the end"));
    assert!(flow.longest.unwrap().ms > 900.0);
}

#[test]
fn lost_datagrams_are_counted() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    // Answers every second datagram, and one of them twice.
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        for turn in 0.. {
            let (length, peer) = silent.recv_from(&mut buffer).unwrap();
            let mut answer = super::super::record::Answer::line(peer).into_bytes();
            answer.extend(&buffer[..length]);
            for _ in 0..usize::from(turn % 2 == 0) + usize::from(turn == 10) {
                let _sent = silent.send_to(&answer, peer);
            }
        }
    });
    let report = run_for(
        Plan {
            to: vec![Ipv4Addr::LOCALHOST.into()],
            udp: 1,
            ..plan(port - ECHO_PORT)
        },
        SECOND / 2,
    )
    .unwrap();
    let flow = &report.flows[0];
    assert!(
        flow.lost > 10 && flow.lost.abs_diff(flow.received) <= 1,
        "{flow:?}"
    );
    assert_eq!((flow.repeated, report.lost()), (1, flow.lost));
    assert!(
        flow.longest.unwrap().ms < 500.0,
        "the wait for late answers is no gap: {flow:?}"
    );
}

fn icmp_works() -> bool {
    super::super::icmp::open(Ipv6Addr::LOCALHOST.into()).is_ok()
}

#[test]
fn the_server_outlives_nonsense() {
    let fixture = Fixture::start();
    let mut stream = TcpStream::connect(fixture.at(FLOW_PORT, false)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("wrong a request"), "{said}");
    let report = run_for(
        Plan {
            driven: 1,
            ..plan(fixture.shift)
        },
        SECOND / 10,
    );
    assert!(report.unwrap().broken().is_empty());
}

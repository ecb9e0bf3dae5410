//! Datagrams from one source port and echo requests with one identifier: no retransmission hides a lost one.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::socket::{SockaddrStorage, connect};
use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval};

use super::super::packet::{self, ECHO_REPLY, ECHO_REPLY_V6, ECHO_REQUEST, ECHO_REQUEST_V6, Echo};
use super::super::record::Answer;
use super::super::{client, icmp};
use super::line;
use super::report::{FlowReport, Meter};
use super::tcp::stopped;
use super::{Flow, FlowKind};

/// How long an answer may be under way after the end.
const LATE: Duration = Duration::from_secs(1);

/// Sends a record each period and counts the answers.
pub(super) async fn datagrams(flow: Flow) -> FlowReport {
    let mut run = Run {
        seen: Vec::new(),
        sent: 0,
        received: 0,
        repeated: 0,
        sources: BTreeSet::new(),
        broken: None,
        stopped: None,
        meter: Meter::new(flow.plan.gap),
    };
    let mut from = None;
    match Line::open(&flow) {
        Ok(socket) => {
            from = socket.socket.local_addr().ok();
            run.exchange(&flow, &socket).await;
        }
        Err(error) => run.broken = Some(format!("{error:#}")),
    }
    if run.received < run.sent
        && let Some(stopped) = run.stopped
    {
        // Waiting for late answers is not silence: nothing was sent any more.
        run.meter.note(stopped);
    }
    let (longest, gaps) = run.meter.finish();
    FlowReport {
        kind: flow.kind,
        to: flow.to,
        from,
        sources: run.sources,
        sent: run.sent,
        received: run.received,
        bytes: run.received * line::LENGTH as u64,
        lost: run.sent - run.received,
        repeated: run.repeated,
        broken: run.broken,
        longest,
        gaps,
    }
}

struct Run {
    /// By number.
    seen: Vec<bool>,
    sent: u64,
    received: u64,
    repeated: u64,
    sources: BTreeSet<SocketAddr>,
    broken: Option<String>,
    /// When it was told to send no more.
    stopped: Option<Instant>,
    meter: Meter,
}

impl Run {
    async fn exchange(&mut self, flow: &Flow, line: &Line) {
        let mut stop = flow.stop.clone();
        let mut ticks = interval(flow.plan.pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; 4096];
        let mut end = None;
        loop {
            let late = async {
                match end {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                got = line.socket.recv(&mut buffer) => match got {
                    Ok(length) => self.take(flow, line, &buffer[..length]),
                    Err(error) => self.error(&error),
                },
                () = late => return,
                () = stopped(&mut stop), if end.is_none() => {
                    self.stopped = Some(Instant::now());
                    end = Some(tokio::time::Instant::now() + LATE);
                }
                _ = ticks.tick(), if end.is_none() => {
                    let message = line.request(flow, self.sent);
                    if let Err(error) = line.socket.send(&message).await {
                        self.error(&error);
                    }
                    // Also one that the kernel refused to send is one that never came.
                    self.sent += 1;
                    self.seen.push(false);
                }
            }
            if end.is_some() && self.received == self.sent {
                return;
            }
        }
    }

    /// "Port unreachable" and "no route" come as errors of a later call; the flow goes on.
    fn error(&mut self, error: &std::io::Error) {
        self.broken.get_or_insert_with(|| error.to_string());
    }

    fn take(&mut self, flow: &Flow, line: &Line, message: &[u8]) {
        let Some((source, record)) = line.answer(flow, message) else {
            return;
        };
        let Some(number) = line::number(flow.seed, record) else {
            self.broken.get_or_insert_with(|| {
                format!(
                    "an answer is not what was sent: {}",
                    String::from_utf8_lossy(record)
                )
            });
            return;
        };
        self.sources.extend(source);
        let first = self.received == 0;
        match usize::try_from(number).ok().and_then(|n| self.seen.get_mut(n)) {
            Some(seen) if !*seen => {
                *seen = true;
                self.received += 1;
                self.meter.note(Instant::now());
            }
            _ => self.repeated += 1,
        }
        if first {
            let _nobody_waits = flow.ready.send(flow.index);
        }
    }
}

/// A connected socket. One for echo requests is driven through the same calls: send and recv know no protocol.
struct Line {
    socket: UdpSocket,
    /// Of a raw socket, which sees everybody's replies; a ping socket's is the kernel's choice.
    identifier: Option<u16>,
}

impl Line {
    fn open(flow: &Flow) -> anyhow::Result<Self> {
        let mut identifier = None;
        let socket = if flow.kind == FlowKind::Udp {
            client::udp_socket(flow.to)?
        } else {
            let (socket, raw) = icmp::open(flow.to.ip())?;
            connect(socket.as_raw_fd(), &SockaddrStorage::from(flow.to))
                .with_context(|| format!("no way to {}", flow.to.ip()))?;
            identifier = raw.then_some(low16(flow.seed.into()));
            StdSocket::from(socket)
        };
        socket
            .set_nonblocking(true)
            .context("cannot use a socket without waiting")?;
        Ok(Self {
            socket: UdpSocket::from_std(socket).context("cannot wait for a socket")?,
            identifier,
        })
    }

    fn request(&self, flow: &Flow, number: u64) -> Vec<u8> {
        let mut payload = flow.plan.tag.clone().into_bytes();
        payload.push(b' ');
        payload.extend(line::record(flow.seed, number));
        if flow.kind == FlowKind::Udp {
            return payload;
        }
        Echo {
            kind: if flow.to.is_ipv6() {
                ECHO_REQUEST_V6
            } else {
                ECHO_REQUEST
            },
            identifier: self.identifier.unwrap_or_default(),
            sequence: low16(number),
            payload: &payload,
        }
        .bytes()
    }

    /// The record that came back, and as whom the server saw us where it says so. `None` for what is not ours.
    fn answer<'a>(&self, flow: &Flow, message: &'a [u8]) -> Option<(Option<SocketAddr>, &'a [u8])> {
        if flow.kind == FlowKind::Udp {
            let end = message.iter().position(|byte| *byte == b'\n')?;
            let source = Answer::parse(&String::from_utf8_lossy(&message[..=end])).ok()?;
            return Some((Some(source), untagged(flow, &message[end + 1..])));
        }
        let raw = self.identifier.is_some();
        let reply = match flow.to {
            SocketAddr::V4(_) if raw => {
                packet::ipv4(message).and_then(|(_, rest)| Echo::parse(rest, ECHO_REPLY))
            }
            SocketAddr::V4(_) => Echo::parse(message, ECHO_REPLY),
            SocketAddr::V6(_) => Echo::parse(message, ECHO_REPLY_V6),
        }?;
        if self.identifier.is_some_and(|ours| ours != reply.identifier) {
            return None;
        }
        Some((None, untagged(flow, reply.payload)))
    }
}

/// The record behind the tag.
fn untagged<'a>(flow: &Flow, payload: &'a [u8]) -> &'a [u8] {
    payload.get(flow.plan.tag.len() + 1..).unwrap_or_default()
}

/// What fits a field of ICMP's: the low half of the seed is the flow's own, and sequence numbers go round.
fn low16(value: u64) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or_default()
}

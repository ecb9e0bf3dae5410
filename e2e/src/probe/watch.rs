//! Many attempts in a row, so that a change of path shows to the millisecond.

use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::client::{self, Deadline};

/// One attempt of `probe watch --json`. Either `src` or `error` is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its number, from 0.
    pub n: u64,
    /// When it began.
    pub t: Timestamp,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// The source that the server saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src: Option<SocketAddr>,
    /// Why there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How to watch.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: SocketAddr,
    /// TCP, or UDP.
    pub(crate) tcp: bool,
    pub(crate) tag: String,
    /// From the begin of an attempt to the begin of the next; a longer attempt is followed at once.
    pub(crate) interval: Duration,
    /// How many attempts; 0 for no end.
    pub(crate) count: u64,
    /// Of each attempt.
    pub(crate) timeout: Duration,
    /// All attempts on one connection or socket.
    pub(crate) keep: bool,
}

/// Makes the attempts and hands each to `report`.
///
/// # Errors
/// When `report` fails, and when a kept connection can't be opened or breaks.
pub(crate) fn watch(plan: &Plan, mut report: impl FnMut(&Attempt) -> io::Result<()>) -> anyhow::Result<()> {
    let mut line = if plan.keep { Some(Line::open(plan)?) } else { None };
    let mut n = 0;
    while plan.count == 0 || n < plan.count {
        let (t, started) = (Timestamp::now(), Instant::now());
        let result = match &mut line {
            Some(line) => line.exchange(plan, n),
            None if plan.tcp => client::tcp(plan.target, &plan.tag, plan.timeout),
            None => client::udp(plan.target, &plan.tag, plan.timeout),
        };
        let ms = started.elapsed().as_secs_f64() * 1000.0;
        let (src, error) = match result {
            Ok(source) => (Some(source), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        report(&Attempt { n, t, ms, src, error }).context("cannot report an attempt")?;
        if let Some(Line {
            broken: Some(reason), ..
        }) = &line
        {
            bail!("the connection broke: {reason}");
        }
        n += 1;
        thread::sleep(plan.interval.saturating_sub(started.elapsed()));
    }
    Ok(())
}

/// A connection or socket that serves all attempts.
struct Line {
    way: Way,
    broken: Option<String>,
}

enum Way {
    Tcp(io::BufReader<std::net::TcpStream>, SocketAddr),
    Udp(std::net::UdpSocket),
}

impl Line {
    fn open(plan: &Plan) -> anyhow::Result<Self> {
        let way = if plan.tcp {
            let (stream, source) = client::connect(plan.target, &plan.tag, Deadline::after(plan.timeout))?;
            Way::Tcp(stream, source)
        } else {
            Way::Udp(client::udp_socket(plan.target)?)
        };
        Ok(Self { way, broken: None })
    }

    /// Sends a numbered line and waits for it to come back. A late one is left for later: TCP delivers it eventually.
    fn exchange(&mut self, plan: &Plan, n: u64) -> anyhow::Result<SocketAddr> {
        let text = format!("{} {n}", plan.tag);
        match &mut self.way {
            Way::Udp(socket) => client::udp_on(socket, plan.target, &text, plan.timeout),
            Way::Tcp(reader, source) => {
                let source = *source;
                let deadline = Deadline::after(plan.timeout);
                exchange_lines(reader, &text, deadline)
                    .inspect_err(|error| {
                        if !matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) {
                            self.broken = Some(error.to_string());
                        }
                    })
                    .map_err(|error| {
                        client::describe(&error, &format!("echo from {}", plan.target), deadline)
                    })?;
                Ok(source)
            }
        }
    }
}

fn exchange_lines(
    reader: &mut io::BufReader<std::net::TcpStream>,
    text: &str,
    deadline: Deadline,
) -> io::Result<()> {
    reader.get_ref().set_write_timeout(Some(deadline.left()))?;
    reader.get_mut().write_all(format!("{text}\n").as_bytes())?;
    let mut line = Vec::new();
    loop {
        reader.get_ref().set_read_timeout(Some(deadline.left()))?;
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed by the other side",
            ));
        }
        if line.strip_suffix(b"\n") == Some(text.as_bytes()) {
            return Ok(());
        }
        line.clear();
    }
}

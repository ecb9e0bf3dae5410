//! How many bytes pass in a second.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};

/// Enough for one system call to carry a full GSO batch.
const CHUNK: usize = 128 * 1024;

/// How long the last bytes may take to be confirmed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a transfer came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Bytes that arrived, all streams together.
    pub bytes: u64,
    /// From the first byte to the confirmation of the last.
    pub seconds: f64,
    /// Connections side by side.
    #[serde(default = "one")]
    pub streams: u16,
}

fn one() -> u16 {
    1
}

/// When a transfer ends. It is shared out evenly among the streams when it is a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Bytes(u64),
    Elapsed(Duration),
}

/// The server's side of [`send`]: takes everything, then says how much it was and how long it took.
pub(crate) fn sink(mut stream: TcpStream) -> io::Result<()> {
    let started = Instant::now();
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            length => bytes += length as u64,
        }
    }
    let report = Throughput {
        bytes,
        seconds: started.elapsed().as_secs_f64(),
        streams: 1,
    };
    let mut line = serde_json::to_vec(&report)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// The server's side of [`receive`]: sends until the client hangs up.
pub(crate) fn source(mut stream: TcpStream) -> io::Result<()> {
    let chunk = vec![0; CHUNK];
    loop {
        stream.write_all(&chunk)?;
    }
}

/// Sends to a sink and counts what the sink confirms.
pub(crate) fn send(
    target: SocketAddr,
    until: Until,
    streams: u16,
    timeout: Duration,
) -> anyhow::Result<Throughput> {
    transfer(target, until, streams, timeout, |stream, until, started| {
        let chunk = vec![0; CHUNK];
        let mut sent: u64 = 0;
        loop {
            let length = match until {
                Until::Bytes(all) => usize::try_from(all - sent).unwrap_or(CHUNK).min(CHUNK),
                Until::Elapsed(duration) if started.elapsed() >= duration => 0,
                Until::Elapsed(_) => CHUNK,
            };
            if length == 0 {
                break;
            }
            stream.write_all(&chunk[..length])?;
            sent += length as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let report: Throughput =
            serde_json::from_str(&line).with_context(|| format!("no sink there: it said {line:?}"))?;
        if report.bytes != sent {
            bail!("{sent} bytes were sent and {} arrived", report.bytes);
        }
        Ok(sent)
    })
}

/// Receives from a source.
pub(crate) fn receive(
    target: SocketAddr,
    until: Until,
    streams: u16,
    timeout: Duration,
) -> anyhow::Result<Throughput> {
    transfer(target, until, streams, timeout, |stream, until, started| {
        let mut buffer = vec![0; CHUNK];
        let mut received: u64 = 0;
        loop {
            let more = match until {
                Until::Bytes(all) => received < all,
                Until::Elapsed(duration) => started.elapsed() < duration,
            };
            if !more {
                return Ok(received);
            }
            match stream.read(&mut buffer)? {
                0 => bail!("the source ended"),
                length => received += length as u64,
            }
        }
    })
}

fn transfer(
    target: SocketAddr,
    until: Until,
    streams: u16,
    timeout: Duration,
    work: impl Fn(&mut TcpStream, Until, Instant) -> anyhow::Result<u64> + Sync,
) -> anyhow::Result<Throughput> {
    let streams = streams.max(1);
    let mut open = Vec::new();
    for _ in 0..streams {
        let stream =
            TcpStream::connect_timeout(&target, timeout).with_context(|| format!("connect to {target}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        open.push(stream);
    }
    let share = |index: usize| match until {
        Until::Bytes(all) => {
            let streams = u64::from(streams);
            Until::Bytes(all / streams + u64::from((index as u64) < all % streams))
        }
        elapsed @ Until::Elapsed(_) => elapsed,
    };
    let started = Instant::now();
    let bytes = thread::scope(|scope| {
        let threads: Vec<_> = open
            .iter_mut()
            .enumerate()
            .map(|(index, stream)| {
                let (work, part) = (&work, share(index));
                scope.spawn(move || work(stream, part, started))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a stream died"))))
            .sum()
    });
    let bytes: anyhow::Result<u64> = bytes;
    let bytes = bytes.with_context(|| format!("transfer with {target}"))?;
    Ok(Throughput {
        bytes,
        seconds: started.elapsed().as_secs_f64(),
        streams,
    })
}

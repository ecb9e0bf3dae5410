//! How many bytes pass in a second, and whether they are the right ones.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};

/// Enough for one system call to carry a full GSO batch.
const CHUNK: usize = 128 * 1024;

/// After so many bytes they repeat: a prime, so that no buffer, page or segment shifts them unnoticed.
const PERIOD: usize = 1_048_573;

/// What every transfer carries, from its first byte on; followed by its own begin, so that any chunk is one slice.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut bytes: Vec<u8> = (0..PERIOD.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    bytes.truncate(PERIOD);
    bytes.extend_from_within(..CHUNK);
    bytes
});

/// The bytes of a transfer from `offset` on, at most a chunk.
fn pattern(offset: u64, length: usize) -> &'static [u8] {
    let start = usize::try_from(offset % PERIOD as u64).unwrap_or_default();
    &PATTERN[start..start + length.min(CHUNK)]
}

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
    /// Where the first byte stands that isn't the one sent there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong: Option<u64>,
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
    let (mut bytes, mut wrong) = (0, None);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            length => {
                wrong = wrong.or_else(|| first_wrong(bytes, &buffer[..length]));
                bytes += length as u64;
            }
        }
    }
    let report = Throughput {
        bytes,
        seconds: started.elapsed().as_secs_f64(),
        streams: 1,
        wrong,
    };
    let mut line = serde_json::to_vec(&report)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Where the first byte stands that isn't the transfer's.
fn first_wrong(offset: u64, bytes: &[u8]) -> Option<u64> {
    let wanted = pattern(offset, bytes.len());
    if wanted == bytes {
        return None;
    }
    let at = wanted.iter().zip(bytes).position(|(a, b)| a != b);
    Some(offset + at.unwrap_or_default() as u64)
}

/// The server's side of [`receive`]: sends until the client hangs up.
pub(crate) fn source(mut stream: TcpStream) -> io::Result<()> {
    let mut sent = 0;
    loop {
        stream.write_all(pattern(sent, CHUNK))?;
        sent += CHUNK as u64;
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
            stream.write_all(pattern(sent, length))?;
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
        if let Some(wrong) = report.wrong {
            bail!("byte {wrong} arrived as another one");
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
                length => {
                    if let Some(wrong) = first_wrong(received, &buffer[..length]) {
                        bail!("byte {wrong} arrived as another one");
                    }
                    received += length as u64;
                }
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
        wrong: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_goes_on_across_its_period_and_a_changed_byte_is_found() {
        let near = PERIOD as u64 - 5;
        assert_eq!(pattern(near, 10)[5..], *pattern(0, 5));
        let mut bytes = pattern(near, CHUNK).to_vec();
        assert_eq!(first_wrong(near, &bytes), None);
        assert!(first_wrong(near + 1, &bytes).is_some(), "a lost byte");
        bytes[1000] ^= 1;
        assert_eq!(first_wrong(near, &bytes), Some(near + 1000));
    }

    #[test]
    fn the_sink_finds_what_was_changed_on_the_way() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = thread::spawn(move || sink(listener.accept().unwrap().0));
        let mut stream = TcpStream::connect(target).unwrap();
        let mut bytes = pattern(0, 5000).to_vec();
        bytes[4321] ^= 0x80;
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        server.join().unwrap().unwrap();
        let report: Throughput = serde_json::from_str(&line).unwrap();
        assert_eq!((report.bytes, report.wrong), (5000, Some(4321)));
    }
}

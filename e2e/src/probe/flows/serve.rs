//! The server's side of long-lived connections.
//!
//! A client asks with a line, `echo SEED TAG` or `push SEED MICROSECONDS TAG`, is told its address, and then records
//! flow until it closes its direction; the last line of the server says how many there were.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval};

use super::super::record::{Answer, Log, Protocol, Record};
use super::line::{self, Checker};

/// How long a client may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(30);

/// A client that asks for more has mistaken the unit.
const SHORTEST_PACE: Duration = Duration::from_micros(100);

/// What a client asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    seed: u32,
    /// How often to send; none to echo.
    pace: Option<Duration>,
    tag: String,
}

impl Request {
    fn parse(text: &str) -> Option<Self> {
        let (verb, rest) = text.trim_end().split_once(' ')?;
        let (seed, rest) = rest.split_once(' ')?;
        let (pace, tag) = match verb {
            "echo" => (None, rest),
            "push" => {
                let (pace, tag) = rest.split_once(' ')?;
                (
                    Some(Duration::from_micros(pace.parse().ok()?).max(SHORTEST_PACE)),
                    tag,
                )
            }
            _ => return None,
        };
        Some(Self {
            seed: u32::from_str_radix(seed, 16).ok()?,
            pace,
            tag: tag.to_owned(),
        })
    }
}

/// Serves all connections of all listeners on this thread, as long as the process lives.
pub(crate) fn serve(listeners: Vec<StdListener>, log: &Arc<Log>) -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let mut accepting = tokio::task::JoinSet::new();
            for listener in listeners {
                listener.set_nonblocking(true)?;
                accepting.spawn(accept(TcpListener::from_std(listener)?, Arc::clone(log)));
            }
            while accepting.join_next().await.is_some() {}
            Ok(())
        })
}

async fn accept(listener: TcpListener, log: Arc<Log>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let log = Arc::clone(&log);
                tokio::spawn(async move {
                    // A client that goes away in the middle is no error of the server.
                    let _gone = connection(stream, peer, &log).await;
                });
            }
            Err(error) => {
                eprintln!("probe: cannot accept a flow: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(mut stream: TcpStream, peer: SocketAddr, log: &Log) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let mut text = Vec::new();
    let request = tokio::time::timeout(REQUEST, async {
        while text.last() != Some(&b'\n') && text.len() < 200 {
            text.push(stream.read_u8().await?);
        }
        Ok::<_, io::Error>(Request::parse(&String::from_utf8_lossy(&text)))
    })
    .await??;
    let Some(request) = request else {
        log.write(&Record::new(Protocol::Tcp, peer, local, &text));
        return stream.write_all(&line::wrong("a request for a flow")).await;
    };
    log.write(&Record::new(Protocol::Tcp, peer, local, request.tag.as_bytes()));
    stream.write_all(Answer::line(peer).as_bytes()).await?;
    let sent = match request.pace {
        None => echo(&mut stream, request.seed).await?,
        Some(pace) => Ok(push(&mut stream, request.seed, pace).await?),
    };
    match sent {
        Ok(count) => stream.write_all(&line::end(count)).await?,
        Err(reason) => {
            let note = format!("wrong {} {reason}", request.tag);
            log.write(&Record::new(Protocol::Tcp, peer, local, note.as_bytes()));
            stream.write_all(&line::wrong(&reason)).await?;
        }
    }
    stream.shutdown().await
}

/// Sends back what arrives, as long as it is right.
async fn echo(stream: &mut TcpStream, seed: u32) -> io::Result<Result<u64, String>> {
    let mut checker = Checker::new(seed);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(Ok(checker.count()));
        }
        if let Err(reason) = checker.take(&buffer[..length]) {
            return Ok(Err(reason));
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

/// Sends records until the client closes its direction; gives how many.
async fn push(stream: &mut TcpStream, seed: u32, pace: Duration) -> io::Result<u64> {
    let (mut reader, mut writer) = stream.split();
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = [0; 64];
    let mut number = 0;
    loop {
        tokio::select! {
            got = reader.read(&mut buffer) => {
                if got? == 0 {
                    return Ok(number);
                }
            }
            _ = ticks.tick() => {
                writer.write_all(&line::record(seed, number)).await?;
                number += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_others_refused() {
        let push = Request::parse("push 0000002a 10000 a tag\n").unwrap();
        assert_eq!(
            (push.seed, push.pace, push.tag.as_str()),
            (42, Some(Duration::from_millis(10)), "a tag")
        );
        assert_eq!(Request::parse("echo ff t\n").unwrap().pace, None);
        for text in ["", "echo", "echo zz t", "pull 1 t", "push 1 t"] {
            assert_eq!(Request::parse(text), None, "{text:?}");
        }
    }
}

//! What plugin and node agent say to each other: one connection a question, a line of JSON each way.
//!
//! The node agent installs the plugin, so the two differ in version only for the moment of an upgrade. A field
//! that one side doesn't know is passed over; [`VERSION`] rises when that would be wrong.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Version of the protocol. An agent answers all up to its own.
pub const VERSION: u32 = 1;

/// Longest line in bytes, its end included. A list of all attachments of a node fits in.
pub const LINE_LIMIT: usize = 256 * 1024;

/// Where the node agent listens unless told otherwise.
pub const SOCKET: &str = "/run/spillway/cni.sock";

/// A question.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Request {
    /// [`VERSION`] of the side that asks.
    pub version: u32,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// A sandbox has these addresses from now on. Answered when the pod may send.
    Add {
        /// The sandbox.
        #[serde(flatten)]
        attachment: Attachment,
        /// Milliseconds in which an answer is wanted.
        wait: u64,
    },
    /// A sandbox is gone, and its addresses are free.
    Del(Attachment),
    /// Whether all is as after ADD.
    Check(Attachment),
    /// All sandboxes that there are; others are gone.
    Gc {
        /// Their container ids.
        containers: BTreeSet<String>,
    },
}

/// One interface of one sandbox of one pod.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attachment {
    /// The runtime's id of the sandbox.
    pub container: String,
    /// Interface in it.
    #[serde(default)]
    pub interface: String,
    /// The pod's namespace.
    #[serde(default)]
    pub namespace: String,
    /// The pod's name.
    #[serde(default)]
    pub pod: String,
    /// The pod's uid; empty where the runtime doesn't say.
    #[serde(default)]
    pub uid: String,
    /// Addresses that the plugins before gave to it.
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
}

/// An answer.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Answer {
    /// [`VERSION`] of the side that answers.
    pub version: u32,
    /// Go on.
    pub ok: bool,
    /// Why not, and what to do about it.
    #[serde(default)]
    pub message: String,
}

impl Answer {
    /// Go on.
    pub fn yes() -> Self {
        Self {
            version: VERSION,
            ok: true,
            message: String::new(),
        }
    }

    /// Don't, because of this.
    pub fn no(message: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            ok: false,
            message: message.into(),
        }
    }
}

/// Nobody answered.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    /// Nobody listens there.
    #[error("nobody listens at {0}")]
    Away(String),
    /// Somebody listens and doesn't answer in time.
    #[error("no answer from {path} within {waited:?}")]
    Late {
        /// The socket.
        path: String,
        /// How long.
        waited: Duration,
    },
    /// The connection broke, or what came is no answer.
    #[error("{path}: {source}")]
    Broken {
        /// The socket.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// Asks the node agent that listens at `socket`, for at most `limit`.
pub fn ask(socket: &Path, ask: Ask, limit: Duration) -> Result<Answer, Silence> {
    let path = || socket.display().to_string();
    let began = Instant::now();
    let limit = limit.max(Duration::from_millis(1));
    let late = || Silence::Late {
        path: path(),
        waited: began.elapsed(),
    };
    let (sender, answer) = mpsc::channel();
    let to = socket.to_owned();
    // In a thread of its own: to connect takes for ever where nobody accepts and the backlog is full. It ends with the
    // process.
    thread::spawn(move || sender.send(exchange(&to, ask, limit)));
    match answer.recv_timeout(limit) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Silence::Away(path()),
            // What a socket's timeout is told as.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
            _ => Silence::Broken { path: path(), source },
        }),
        Err(_) => Err(late()),
    }
}

fn exchange(socket: &Path, ask: Ask, limit: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_read_timeout(Some(limit))?;
    let version = VERSION;
    let mut line = serde_json::to_vec(&Request { version, ask })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(LINE_LIMIT as u64)).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn questions_read_back_and_unknown_fields_are_passed_over() {
        let attachment = Attachment {
            container: "c".into(),
            addresses: ["10.0.0.1".parse().expect("address")].into(),
            ..Attachment::default()
        };
        for ask in [
            Ask::Add {
                attachment: attachment.clone(),
                wait: 9,
            },
            Ask::Del(attachment.clone()),
            Ask::Check(attachment),
            Ask::Gc {
                containers: ["c".to_owned()].into(),
            },
        ] {
            let request = Request {
                version: VERSION,
                ask,
            };
            let text = serde_json::to_string(&request).expect("text");
            assert_eq!(
                serde_json::from_str::<Request>(&text).expect("read"),
                request,
                "{text}"
            );
        }
        let newer = r#"{"version":2,"ok":true,"colour":"blue"}"#;
        assert!(serde_json::from_str::<Answer>(newer).expect("read").ok);
    }

    #[test]
    fn nobody_a_hung_one_and_one_that_ends_are_told_apart() {
        let directory = tempfile::tempdir().expect("directory");
        let socket = directory.path().join("s");
        let gc = || Ask::Gc {
            containers: BTreeSet::new(),
        };
        let short = Duration::from_millis(50);
        assert!(matches!(ask(&socket, gc(), short), Err(Silence::Away(_))));
        let listener = UnixListener::bind(&socket).expect("bound");
        assert!(matches!(ask(&socket, gc(), short), Err(Silence::Late { .. })));
        let server = std::thread::spawn(move || {
            // The first connection is that of the question before.
            for _ in 0..2 {
                drop(listener.accept().expect("accepted"));
            }
        });
        let ended = ask(&socket, gc(), Duration::from_secs(5));
        assert!(matches!(ended, Err(Silence::Broken { .. })), "{ended:?}");
        server.join().expect("joined");
        assert!(
            matches!(ask(&socket, gc(), short), Err(Silence::Away(_))),
            "a socket without a listener"
        );
    }
}

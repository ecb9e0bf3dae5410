//! What the server notes, and what it answers.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How much of a payload is noted.
const PAYLOAD: usize = 64;

/// What kind of traffic arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// An accepted connection: noted with its first bytes, or without any after 250 ms.
    Tcp,
    /// A SYN, noted when it arrives. One without a [`Protocol::Tcp`] beside it comes from an address that no reply reaches:
    /// a source that leaked.
    TcpSyn,
    /// A datagram.
    Udp,
    /// An echo request of ICMP or ICMPv6. The ports are its identifier and sequence number.
    Icmp,
}

/// A line of the server's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it arrived.
    pub time: Timestamp,
    /// What arrived.
    pub proto: Protocol,
    /// Who sent it, as the server saw it.
    pub src: IpAddr,
    /// The sender's port.
    pub sport: u16,
    /// The server's address; unspecified when the server listens on all and the protocol doesn't tell.
    pub dst: IpAddr,
    /// The server's port.
    pub dport: u16,
    /// The first 64 bytes as text, without the newline at the end; clients put their tag here.
    pub payload: String,
}

impl Record {
    /// A record of now.
    pub(crate) fn new(proto: Protocol, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Self {
        let payload = String::from_utf8_lossy(&payload[..payload.len().min(PAYLOAD)]);
        Self {
            time: Timestamp::now(),
            proto,
            src: src.ip(),
            sport: src.port(),
            dst: dst.ip(),
            dport: dst.port(),
            payload: payload.trim_end_matches(['\n', '\0']).to_owned(),
        }
    }
}

/// The line with which the server tells a client how it saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The client's address.
    pub src: IpAddr,
    /// The client's port.
    pub port: u16,
}

impl Answer {
    /// The line for a client at `peer`.
    pub(crate) fn line(peer: SocketAddr) -> String {
        // Two plain fields: no need for an error path.
        format!("{{\"src\":\"{}\",\"port\":{}}}\n", peer.ip(), peer.port())
    }

    /// Reads the line of a server.
    pub(crate) fn parse(line: &str) -> anyhow::Result<SocketAddr> {
        let answer: Self = serde_json::from_str(line.trim())
            .with_context(|| format!("the server is no probe: it said {line:?}"))?;
        Ok(SocketAddr::new(answer.src, answer.port))
    }
}

/// Where records go: a file that only grows, a whole line at a time.
#[derive(Debug)]
pub(crate) struct Log {
    file: Option<Mutex<File>>,
}

impl Log {
    /// Appends to `path`; without one, records are dropped.
    pub(crate) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = match path {
            Some(path) => {
                let file = File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("cannot write the log {}", path.display()))?;
                Some(Mutex::new(file))
            }
            None => None,
        };
        Ok(Self { file })
    }

    /// Writes a line. A full disk must not stop the answers: it is said on standard error.
    pub(crate) fn write(&self, record: &Record) {
        let Some(file) = &self.file else { return };
        let result = serde_json::to_vec(record)
            .map_err(anyhow::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                Ok(file.write_all(&line)?)
            });
        if let Err(error) = result {
            eprintln!("probe: cannot write to the log: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_with_the_agreed_names() {
        let (src, dst) = (
            "[2001:db8::1]:4000".parse().unwrap(),
            "[2001:db8::2]:7000".parse().unwrap(),
        );
        let record = Record::new(Protocol::TcpSyn, src, dst, b"tag-1\n");
        let text = serde_json::to_string(&record).unwrap();
        for part in [
            r#""proto":"tcp-syn""#,
            r#""src":"2001:db8::1""#,
            r#""sport":4000"#,
            r#""dport":7000"#,
            r#""payload":"tag-1""#,
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn long_and_strange_payloads_are_cut_and_kept_readable() {
        let (src, dst) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        assert_eq!(
            Record::new(Protocol::Udp, src, dst, &[b'x'; 500]).payload.len(),
            64
        );
        assert_eq!(
            Record::new(Protocol::Udp, src, dst, &[0xff, b'a', 0, 0]).payload,
            "\u{fffd}a"
        );
    }

    #[test]
    fn an_answer_reads_back() {
        for peer in ["192.0.2.7:40312", "[2001:db8::7]:40312"] {
            let peer: SocketAddr = peer.parse().unwrap();
            assert_eq!(Answer::parse(&Answer::line(peer)).unwrap(), peer);
            assert_eq!(
                serde_json::from_str::<Answer>(&Answer::line(peer)).unwrap().port,
                40312
            );
        }
        assert!(
            Answer::parse("HTTP/1.1 400")
                .unwrap_err()
                .to_string()
                .contains("no probe")
        );
    }
}

//! Requests over a netlink socket, one at a time.
//!
//! The kernel answers within the call that sends the request, so a blocking socket on the thread that owns it
//! is the simplest thing that is right. Interrupted dumps, which would show an object twice or not at all, are
//! read again.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use zeroize::Zeroizing;

use crate::{Error, Result};

/// How long an answer may take, in seconds. Large tables take their time when a CPU is scarce.
const LIMIT: u64 = 20;

/// How often an interrupted dump is read again.
const ATTEMPTS: usize = 8;

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;

/// `NLMSG_MIN_TYPE`: kinds below are netlink's own.
const FIRST_KIND: u16 = 16;

/// A socket of one netlink protocol.
pub(crate) struct Requests<T> {
    socket: Socket,
    sequence: u32,
    messages: PhantomData<T>,
}

impl<T> Requests<T>
where
    T: Clone + Debug + NetlinkSerializable + NetlinkDeserializable,
{
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(what: &'static str, protocol: isize) -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Both only better the errors; kernels without them still work.
            let _ = socket.set_cap_ack(true);
            let _ = socket.set_ext_ack(true);
            let limit = TimeVal::seconds(i64::try_from(LIMIT).unwrap_or(20));
            setsockopt(&socket, ReceiveTimeout, &limit)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(|source| Error::Open { what, source })?,
            sequence: 0,
            messages: PhantomData,
        })
    }

    fn send(&mut self, what: &str, flags: u16, message: T) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        // It may hold a key.
        let mut bytes = Zeroizing::new(vec![0; packet.buffer_len()]);
        packet.serialize(&mut bytes);
        self.write(what, &bytes)
    }

    /// Sends several messages that `build` makes, all with the sequence number it is given; one of them asks for
    /// the answer.
    pub(crate) fn batch(
        &mut self,
        what: &str,
        build: impl FnOnce(u32) -> Option<Vec<u8>>,
    ) -> Option<Result<()>> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = build(self.sequence)?;
        Some(
            self.write(what, &bytes)
                .and_then(|()| self.receive(what, |_| true).map(|_| ())),
        )
    }

    fn write(&self, what: &str, bytes: &[u8]) -> Result<()> {
        self.socket.send(bytes, 0).map_err(|source| Error::Netlink {
            what: what.into(),
            source,
        })?;
        Ok(())
    }

    /// Sends a request that is answered by success or an error.
    pub(crate) fn ack(&mut self, what: &str, flags: u16, message: T) -> Result<()> {
        self.send(what, flags | NLM_F_ACK, message)?;
        self.receive(what, |_| true).map(|_| ())
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, what: &str, message: T) -> Result<Vec<T>> {
        self.send(what, NLM_F_ACK, message)?;
        self.receive(what, |_| true).map(|(messages, _)| messages)
    }

    /// Reads a whole table.
    pub(crate) fn dump(&mut self, what: &str, message: &T) -> Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            self.send(what, NLM_F_DUMP, message.clone())?;
            let (messages, interrupted) = self.receive(what, |_| true)?;
            if !interrupted {
                return Ok(messages);
            }
        }
        Err(Error::Unstable(what.into()))
    }

    /// Reads those parts of a table for whose bytes `wanted` is true. The request too is given as bytes: the typed
    /// messages have no filters. Headers are left out of both.
    pub(crate) fn dump_where(
        &mut self,
        what: &str,
        kind: u16,
        request: &[u8],
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            self.ask(what, kind, request)?;
            let (messages, interrupted) = self.receive(what, &wanted)?;
            if !interrupted {
                return Ok(messages);
            }
        }
        Err(Error::Unstable(what.into()))
    }

    /// Reads a table message by message without keeping any, as [`Self::dump_where`] asks for it. What `each` makes of
    /// them begins with `start` again where the dump was interrupted.
    pub(crate) fn fold<S>(
        &mut self,
        what: &str,
        kind: u16,
        request: &[u8],
        start: impl Fn() -> S,
        each: impl Fn(&mut S, &[u8]),
    ) -> Result<S> {
        for _ in 0..ATTEMPTS {
            self.ask(what, kind, request)?;
            let mut state = start();
            let (_, interrupted) = self.receive(what, |message| {
                each(&mut state, message);
                false
            })?;
            if !interrupted {
                return Ok(state);
            }
        }
        Err(Error::Unstable(what.into()))
    }

    fn ask(&mut self, what: &str, kind: u16, request: &[u8]) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + request.len()).unwrap_or(u32::MAX);
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(request);
        self.write(what, &bytes)
    }

    /// Everything that is wanted up to the end of the answer, and whether the dump was interrupted.
    fn receive(&self, what: &str, mut wanted: impl FnMut(&[u8]) -> bool) -> Result<(Vec<T>, bool)> {
        let mut out = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(|source| {
                if source.kind() == io::ErrorKind::WouldBlock {
                    Error::TimedOut(what.into(), LIMIT)
                } else {
                    Error::Netlink {
                        what: what.into(),
                        source,
                    }
                }
            })?;
            let mut rest = &datagram[..];
            while rest.len() >= HEADER {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if length < HEADER || length > rest.len() {
                    break;
                }
                let one = &rest[..length];
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
                let [kind, flags] = [4, 6].map(|at| u16::from_ne_bytes([one[at], one[at + 1]]));
                if kind >= FIRST_KIND && !wanted(&one[HEADER..]) {
                    interrupted |= flags & NLM_F_DUMP_INTR != 0;
                    continue;
                }
                let message = match NetlinkMessage::<T>::deserialize(one) {
                    Ok(message) => message,
                    Err(error) => {
                        // Somebody else's object in a form that this build doesn't know isn't ours to fail on.
                        tracing::debug!(what, %error, "skipping an unreadable netlink message");
                        continue;
                    }
                };
                // Left over from a request that timed out.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => out.push(inner),
                    NetlinkPayload::Done(_) => return Ok((out, interrupted)),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok((out, interrupted)),
                    NetlinkPayload::Error(error) => return Err(refused(what, &error)),
                    _ => {}
                }
            }
        }
    }
}

/// The kernel's refusal, with its own words where it gave some (NLMSGERR_ATTR_MSG).
fn refused(what: &str, error: &ErrorMessage) -> Error {
    let mut what = what.to_owned();
    let mut attributes = error.header.get(16..).unwrap_or_default();
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]) & 0x3fff;
        if length < 4 || length > attributes.len() {
            break;
        }
        if kind == 1 {
            let words = String::from_utf8_lossy(&attributes[4..length]);
            what = format!("{what} ({})", words.trim_end_matches('\0'));
        }
        attributes = &attributes[length.next_multiple_of(4).min(attributes.len())..];
    }
    Error::Netlink {
        what,
        source: error.to_io(),
    }
}

//! A relay that has every member's key and the hub's CA, and lies: between the real client and the real server it repeats,
//! swaps, drops, damages and confuses messages, or adds what only a later version would say.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::net::{Dialer, Net, Process};
use super::world::{HUB, World};
use crate::member::over;
use crate::pki::{Authorities, CertificateInfo, MemberIdentity};
use crate::proto::{HubMessage, MemberMessage, PlanFrame, hub_message, member_message};
use crate::tls::{self, Accepted, Endpoint, Trust, dial};

pub(super) const MEDDLER: &str = "meddler";
const CONNECT: &str = "/spillway.link.v1.Link/Connect";
const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// Messages that are remembered, to be said again.
const MEMORY: usize = 24;

/// What the relay does with messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mischief {
    /// Repeats, swaps, drops, damages and confuses some.
    Lies,
    /// Adds to each what this version doesn't know.
    LaterVersion,
}

pub(super) struct Meddler {
    net: Arc<Net>,
    dialer: Dialer,
    identities: BTreeMap<String, MemberIdentity>,
    mischief: Mischief,
    active: AtomicBool,
    /// Pieces of plans that were seen, with whose they are.
    seen: Mutex<VecDeque<(String, Bytes)>>,
}

/// One direction of one stream.
struct Direction {
    member: String,
    /// From the hub to the member.
    down: bool,
    /// What was said on it.
    own: VecDeque<Bytes>,
    /// What was held back.
    back: Option<Bytes>,
}

impl Direction {
    fn new(member: &str, down: bool) -> Self {
        Self {
            member: member.into(),
            down,
            own: VecDeque::new(),
            back: None,
        }
    }
}

/// Starts the relay; members that dial it reach the hub.
pub(super) fn start(world: &World, mischief: Mischief) -> Arc<Meddler> {
    let process = Process::new(MEDDLER);
    let (_, authorities) = tokio::sync::watch::channel(Arc::new(Authorities::from(world.authority())));
    let endpoint = Arc::new(Endpoint::new(authorities, DAY, DAY).expect("an endpoint"));
    let (members, incoming) = mpsc::channel(4);
    let (anonymous, _) = mpsc::channel(4);
    let accepted = Accepted { members, anonymous };
    tokio::spawn(tls::accept(
        world.net.listen(&process),
        endpoint,
        DAY,
        accepted,
        || {},
        Arc::new(|_| {}),
    ));
    let meddler = Arc::new(Meddler {
        net: world.net.clone(),
        dialer: world.net.dialer(&process),
        identities: world.identities.clone(),
        mischief,
        active: AtomicBool::new(true),
        seen: Mutex::default(),
    });
    let incoming = tokio_stream::StreamExt::map(ReceiverStream::new(incoming), Ok::<_, io::Error>);
    let serving = Server::builder()
        .add_service(Relay(meddler.clone()))
        .serve_with_incoming(incoming);
    tokio::spawn(serving);
    meddler
}

impl Meddler {
    /// From now on the relay is honest. What it dropped stays dropped until the streams begin anew.
    pub(super) fn stop(&self) {
        self.active.store(false, Ordering::Relaxed);
    }

    fn roll(&self, sides: usize) -> usize {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "small"
        )]
        let rolled = (self.net.chance() * sides as f64) as usize;
        rolled.min(sides - 1)
    }

    /// What arrives instead of this message.
    fn meddle(&self, message: Bytes, on: &mut Direction) -> Vec<Bytes> {
        if self.mischief == Mischief::LaterVersion {
            return vec![
                later(&message, on.down),
                unknown(),
                later(&message_nobody_knows(), on.down),
            ];
        }
        if !self.active.load(Ordering::Relaxed) {
            return on.back.take().into_iter().chain([message]).collect();
        }
        if !may_be_touched(&message, on.down) {
            return vec![message];
        }
        remember(&mut on.own, message.clone());
        if on.down {
            let mut seen = self.seen.lock().expect("no panic");
            remember(&mut seen, (on.member.clone(), message.clone()));
        }
        let mut out = match self.roll(16) {
            0 => vec![message.clone(), message],
            1 => vec![],
            2 => on.back.replace(message).into_iter().collect(),
            // A damaged acknowledgement is a forged one, which a relay with the member's key can always say.
            3 if on.down => vec![self.damaged(&message)],
            4 | 5 => {
                let again = on.own[self.roll(on.own.len())].clone();
                vec![message, again]
            }
            6 | 7 if on.down => {
                // One's own of an earlier stream is what the hub's key can always say.
                let seen = self.seen.lock().expect("no panic");
                let others: Vec<_> = seen.iter().filter(|(member, _)| *member != on.member).collect();
                let other = (!others.is_empty()).then(|| others[self.roll(others.len())].1.clone());
                other.into_iter().chain([message]).collect()
            }
            _ => vec![message],
        };
        if self.roll(2) == 0 {
            out.extend(on.back.take());
        }
        out
    }

    /// One byte is another, past the tags that say what it is.
    fn damaged(&self, message: &Bytes) -> Bytes {
        let mut bytes = message.to_vec();
        let at = bytes.len() / 3 + self.roll(bytes.len() - bytes.len() / 3);
        bytes[at] ^= 1 << self.roll(8);
        bytes.into()
    }
}

fn remember<T>(memory: &mut VecDeque<T>, message: T) {
    memory.push_back(message);
    if memory.len() > MEMORY {
        memory.pop_front();
    }
}

/// Plans and what is said about them. Who meddles with the rest only talks for the member, whose key it has.
fn may_be_touched(message: &Bytes, down: bool) -> bool {
    use member_message::Message;
    if down {
        let read = HubMessage::decode(message.clone());
        return matches!(
            read,
            Ok(HubMessage {
                message: Some(hub_message::Message::Plan(_))
            })
        );
    }
    let read = MemberMessage::decode(message.clone());
    matches!(
        read,
        Ok(MemberMessage {
            message: Some(Message::Ack(_) | Message::Nack(_) | Message::Resync(_))
        })
    )
}

/// A number and a text under tags that no version has.
fn unknown() -> Bytes {
    let mut bytes = Vec::new();
    prost::encoding::uint64::encode(1000, &7, &mut bytes);
    prost::encoding::string::encode(1001, &"from a later version".to_owned(), &mut bytes);
    bytes.into()
}

fn message_nobody_knows() -> Bytes {
    let mut bytes = Vec::new();
    prost::encoding::bytes::encode(999, &unknown().to_vec(), &mut bytes);
    bytes.into()
}

/// The message as a later version would say it: more in it, and, of a plan's piece, more in that.
fn later(message: &Bytes, down: bool) -> Bytes {
    let plan = down.then(|| HubMessage::decode(message.clone()).ok()).flatten();
    let mut bytes = match plan.and_then(|m| m.message) {
        Some(hub_message::Message::Plan(frame)) => {
            let mut inner = PlanFrame::encode_to_vec(&frame);
            inner.extend_from_slice(&unknown());
            let mut outer = Vec::new();
            prost::encoding::bytes::encode(2, &inner, &mut outer);
            outer
        }
        _ => message.to_vec(),
    };
    bytes.extend_from_slice(&unknown());
    bytes.into()
}

/// Messages as bytes.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = src.remaining();
        Ok(Some(src.copy_to_bytes(length)))
    }
}

#[derive(Clone)]
struct Relay(Arc<Meddler>);

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl NamedService for Relay {
    const NAME: &'static str = "spillway.link.v1.Link";
}

impl tower::Service<http::Request<Body>> for Relay {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Later<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).streaming(this, request).await) })
    }
}

impl StreamingService<Bytes> for Relay {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = Later<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let meddler = self.0.clone();
        Box::pin(relay(meddler, request))
    }
}

async fn relay(
    meddler: Arc<Meddler>,
    request: Request<Streaming<Bytes>>,
) -> Result<Response<ReceiverStream<Result<Bytes, Status>>>, Status> {
    let unavailable = |what: &str| Status::unavailable(what.to_owned());
    let certificates = request
        .peer_certs()
        .ok_or_else(|| unavailable("no certificate"))?;
    let member = CertificateInfo::read(&certificates[0])
        .map_err(|_| unavailable("a bad certificate"))?
        .member;
    let identity = &meddler.identities[&member];
    let limit = std::time::Duration::from_secs(5);
    let stream = dial(
        &meddler.dialer,
        &format!("{HUB}:1"),
        Trust::Identity(identity),
        limit,
    )
    .await
    .map_err(|_| unavailable("no hub"))?;
    let channel = over(stream).await.map_err(|_| unavailable("no hub"))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|_| unavailable("no hub"))?;
    let (up, upwards) = mpsc::channel(4);
    let path = http::uri::PathAndQuery::from_static(CONNECT);
    let answer = client
        .streaming(Request::new(ReceiverStream::new(upwards)), path, Raw)
        .await?;
    let (down, downwards) = mpsc::channel(4);
    tokio::spawn(pass(
        meddler.clone(),
        request.into_inner(),
        up,
        |message| message,
        Direction::new(&member, false),
    ));
    let direction = Direction::new(&member, true);
    tokio::spawn(pass(meddler, answer.into_inner(), down, Ok, direction));
    Ok(Response::new(ReceiverStream::new(downwards)))
}

async fn pass<T>(
    meddler: Arc<Meddler>,
    mut from: Streaming<Bytes>,
    to: mpsc::Sender<T>,
    wrap: impl Fn(Bytes) -> T,
    mut on: Direction,
) {
    loop {
        let message = tokio::select! {
            message = from.message() => message,
            () = to.closed() => return,
        };
        let Ok(Some(message)) = message else {
            return;
        };
        for instead in meddler.meddle(message, &mut on) {
            if to.send(wrap(instead)).await.is_err() {
                return;
            }
        }
    }
}

//! TCP connections that live long.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::super::record::Answer;
use super::line::{self, Checker};
use super::report::{FlowReport, Meter};
use super::{Flow, FlowKind};

/// What both directions of a connection know.
struct Counts {
    sent: u64,
    checker: Checker,
    meter: Meter,
}

/// A connection on which the client sends at its pace and the server echoes.
pub(super) async fn driven(flow: Flow) -> FlowReport {
    let seed = flow.seed;
    hold(flow, format!("echo {seed:08x}"), |flow, writer, counts| {
        Box::pin(send(flow, writer, counts))
    })
    .await
}

/// A connection on which only the server sends.
pub(super) async fn pushed(flow: Flow) -> FlowReport {
    let (seed, pace) = (flow.seed, flow.plan.pace.as_micros());
    hold(
        flow,
        format!("push {seed:08x} {pace}"),
        |flow, writer, _counts| Box::pin(wait(flow, writer)),
    )
    .await
}

type Work<'a> = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;

async fn hold(
    flow: Flow,
    request: String,
    write: impl for<'a> Fn(&'a Flow, OwnedWriteHalf, &'a RefCell<Counts>) -> Work<'a>,
) -> FlowReport {
    let counts = RefCell::new(Counts {
        sent: 0,
        checker: Checker::new(flow.seed),
        meter: Meter::new(flow.plan.gap),
    });
    let mut from = None;
    let mut sources = BTreeSet::new();
    let outcome = async {
        let (stream, source) = timeout(flow.plan.timeout, open(&flow, &request))
            .await
            .map_err(|_| format!("no connection within {:?}", flow.plan.timeout))??;
        from = stream.local_addr().ok();
        sources.insert(source);
        let (reader, writer) = stream.into_split();
        let both = async {
            tokio::try_join!(
                async {
                    write(&flow, writer, &counts)
                        .await
                        .map_err(|e| format!("sending: {e}"))
                },
                receive(&flow, reader, &counts),
            )
        };
        tokio::select! {
            done = both => done.map(drop),
            () = overdue(&flow) => Err(format!("not all had arrived {:?} after the end", flow.plan.drain)),
        }
    }
    .await;
    let mut counts = counts.into_inner();
    let received = counts.checker.count();
    let sent = match flow.kind {
        FlowKind::Pushed => counts.checker.ended().unwrap_or(0),
        _ => counts.sent,
    };
    if outcome.is_err() && !counts.meter.is_new() {
        // What began at the last record lasts until now, at least.
        counts.meter.note(Instant::now());
    }
    let (longest, gaps) = counts.meter.finish();
    FlowReport {
        kind: flow.kind,
        to: flow.to,
        from,
        sources,
        sent,
        received,
        bytes: received * line::LENGTH as u64,
        lost: sent.saturating_sub(received),
        repeated: 0,
        broken: outcome.err(),
        longest,
        gaps,
    }
}

async fn open(flow: &Flow, request: &str) -> Result<(TcpStream, SocketAddr), String> {
    let words = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what}: {error}")
    };
    let mut stream = TcpStream::connect(flow.to).await.map_err(words("connect"))?;
    stream.set_nodelay(true).map_err(words("connected"))?;
    let request = format!("{request} {}\n", flow.plan.tag);
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(words("request"))?;
    // Byte by byte: what follows the line is the flow's.
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < 200 {
        answer.push(stream.read_u8().await.map_err(words("answer"))?);
    }
    let source = Answer::parse(&String::from_utf8_lossy(&answer)).map_err(|error| format!("{error:#}"))?;
    Ok((stream, source))
}

/// Sends records until told to stop, then says so by closing its direction.
async fn send(flow: &Flow, mut writer: OwnedWriteHalf, counts: &RefCell<Counts>) -> io::Result<()> {
    let mut stop = flow.stop.clone();
    let mut ticks = interval(flow.plan.pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            _ = ticks.tick() => {}
        }
        let number = counts.borrow().sent;
        writer.write_all(&line::record(flow.seed, number)).await?;
        counts.borrow_mut().sent = number + 1;
    }
    writer.shutdown().await
}

async fn wait(flow: &Flow, mut writer: OwnedWriteHalf) -> io::Result<()> {
    stopped(&mut flow.stop.clone()).await;
    writer.shutdown().await
}

/// Takes records until the server has said how many there were.
async fn receive(flow: &Flow, mut reader: OwnedReadHalf, counts: &RefCell<Counts>) -> Result<(), String> {
    let mut buffer = vec![0; 16 * 1024];
    let mut ready = Some(&flow.ready);
    loop {
        let length = reader
            .read(&mut buffer)
            .await
            .map_err(|error| format!("receiving: {error}"))?;
        let mut counts = counts.borrow_mut();
        if length == 0 {
            let (count, sent) = (counts.checker.count(), counts.checker.ended());
            return match sent {
                Some(sent) if sent == count => Ok(()),
                Some(sent) => Err(format!("{count} records came of {sent}")),
                None => Err("closed by the other side".to_owned()),
            };
        }
        if counts.checker.take(&buffer[..length])? > 0 {
            counts.meter.note(Instant::now());
            if let Some(ready) = ready.take() {
                let _nobody_waits = ready.send(flow.index);
            }
        }
    }
}

/// Ends when the flow should have ended.
async fn overdue(flow: &Flow) {
    stopped(&mut flow.stop.clone()).await;
    tokio::time::sleep(flow.plan.drain).await;
}

/// Ends when it is time to stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ended = stop.wait_for(|stop| *stop).await;
}

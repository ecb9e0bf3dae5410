//! What a connection is made of below TLS: bytes both ways. TCP, except where a test brings a network of its own.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::tls::Place;

/// Bytes both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One connection.
pub(crate) struct Wire {
    io: Box<dyn Duplex>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    place: Option<(Pin<Box<WaitForCancellationFutureOwned>>, Place)>,
}

impl Wire {
    /// A connection over `io` that says it comes from `peer`.
    #[cfg(test)]
    pub(crate) fn new(io: impl Duplex + 'static, peer: Option<SocketAddr>) -> Self {
        Self {
            io: Box::new(io),
            local: None,
            peer,
            place: None,
        }
    }

    fn tcp(stream: TcpStream) -> Self {
        // Messages are small and waited for. Where that can't be set they only come later.
        let _ = stream.set_nodelay(true);
        Self {
            local: stream.local_addr().ok(),
            peer: stream.peer_addr().ok(),
            io: Box::new(stream),
            place: None,
        }
    }

    /// From now on it lives as long as this place, the one before is given up.
    pub(crate) fn take(&mut self, place: Place) {
        self.place = Some((Box::pin(place.ended.clone().cancelled_owned()), place));
    }

    /// Where it comes from.
    pub(crate) const fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Whoever uses a connection waits for what comes, so it is enough to end that.
        if let Some((ended, _)) = &mut self.place
            && ended.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl Connected for Wire {
    // What tonic looks for when it is asked who calls.
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo {
            local_addr: self.local,
            remote_addr: self.peer,
        }
    }
}

/// Where a hub's connections come from.
#[async_trait]
pub(crate) trait Listen: Send + 'static {
    /// The next one. After an error it may be asked again.
    async fn accept(&mut self) -> io::Result<Wire>;
}

#[async_trait]
impl Listen for TcpListener {
    async fn accept(&mut self) -> io::Result<Wire> {
        Self::accept(self).await.map(|(stream, _)| Wire::tcp(stream))
    }
}

/// How a member gets a connection.
#[async_trait]
pub(crate) trait Dial: Send + Sync {
    /// A connection to `address` (`host:port`).
    async fn dial(&self, address: &str) -> io::Result<Wire>;

    /// A number from 0 to 1 that spreads members' calls over time.
    fn jitter(&self) -> f64 {
        rand::random()
    }
}

/// Over the machine's network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tcp;

#[async_trait]
impl Dial for Tcp {
    async fn dial(&self, address: &str) -> io::Result<Wire> {
        TcpStream::connect(address).await.map(Wire::tcp)
    }
}

//! gRPC over one connection that was dialled by us: no hidden reconnecting, so every failure is seen.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// A channel over this connection; broken for good when that is.
pub(super) async fn over(stream: TlsStream<TcpStream>) -> Result<Channel, tonic::transport::Error> {
    let stream = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    // The scheme says only that tonic shall not add TLS of its own.
    Endpoint::from_static("http://hub.spillway.internal")
        .initial_stream_window_size(1 << 20)
        .connect_with_connector(connector)
        .await
}

/// The error with all that caused it, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The TLS alert by which the other side refused our certificate, if that is what happened. In TLS 1.3 it
/// arrives after our handshake is over.
pub(super) fn refused_certificate(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    let mut next = Some(error);
    while let Some(current) = next {
        let tls = current.downcast_ref::<rustls::Error>().or_else(|| {
            let io = current.downcast_ref::<std::io::Error>()?;
            io.get_ref()?.downcast_ref::<rustls::Error>()
        });
        if let Some(rustls::Error::AlertReceived(alert)) = tls {
            return Some(*alert);
        }
        next = current.source();
    }
    None
}

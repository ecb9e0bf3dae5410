//! gRPC over one connection that was dialled by us: no hidden reconnecting, so every failure is seen.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::TokioIo;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::DisconnectReason;
use crate::wire::Wire;

/// A channel over this connection; broken for good when that is.
pub(crate) async fn over(stream: TlsStream<Wire>) -> Result<Channel, tonic::transport::Error> {
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

/// How rustls words an alert. HTTP/2 hands on only the words of what went wrong below it.
const ALERT: &str = "received fatal alert: ";

/// What it means where the other side refused our certificate. In TLS 1.3 that is heard only after our
/// own handshake is over.
pub(super) fn refused_certificate(error: &dyn Error) -> Option<DisconnectReason> {
    let text = chain(error);
    let (_, after) = text.split_once(ALERT)?;
    let alert: String = after.chars().take_while(char::is_ascii_alphanumeric).collect();
    Some(match alert.as_str() {
        "CertificateExpired" => DisconnectReason::Expired("too long ago to be renewed".into()),
        _ => DisconnectReason::NotAccepted(format!("TLS alert {alert}")),
    })
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn alerts_are_known_by_the_words_that_rustls_uses() {
        let heard = |alert| {
            let tls = rustls::Error::AlertReceived(alert);
            refused_certificate(&tonic::Status::from_error(
                std::io::Error::other(tls.to_string()).into(),
            ))
        };
        assert!(matches!(
            heard(AlertDescription::CertificateExpired),
            Some(DisconnectReason::Expired(_))
        ));
        let unknown = heard(AlertDescription::UnknownCA);
        assert_eq!(
            unknown,
            Some(DisconnectReason::NotAccepted("TLS alert UnknownCA".into()))
        );
        assert_eq!(refused_certificate(&tonic::Status::unavailable("gone")), None);
    }
}

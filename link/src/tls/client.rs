//! The member's end: one TLS connection, with errors that tell apart what a person must do.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::verify::{PinOutcome, PinVerifier};
use super::{ALPN, provider};
use crate::pki::{MemberIdentity, Pin, PkiError, certificates, private_key};
use crate::wire::{Dial, Wire};
use crate::{DEFAULT_PORT, SERVER_NAME};

/// What makes a server the right one, and who we are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trust<'a> {
    /// Before joining: the CA with this pin; we are nobody.
    Pin(Pin),
    /// After: the CAs of the identity; we show its certificate.
    Identity(&'a MemberIdentity),
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum DialError {
    /// Name lookup or TCP.
    Unreachable(String),
    /// The server isn't the right one, or TLS failed otherwise.
    Tls { cause: String, pin: Option<PinOutcome> },
    /// What we hold can't be used.
    Identity(PkiError),
}

/// Connects by `way` to `endpoint` (`host:port`, or `host` for the usual port). Whatever the address, the server
/// must show a certificate for [`SERVER_NAME`].
pub(crate) async fn dial(
    way: &dyn Dial,
    endpoint: &str,
    trust: Trust<'_>,
    limit: Duration,
) -> Result<TlsStream<Wire>, DialError> {
    let outcome = Arc::new(OnceLock::new());
    let config = config(trust, outcome.clone()).map_err(DialError::Identity)?;
    let name = ServerName::try_from(SERVER_NAME)
        .map_err(|e| DialError::Identity(PkiError::unusable("the hub's name", &e)))?;

    let wire = timeout(limit, way.dial(&address(endpoint)))
        .await
        .map_err(|_| DialError::Unreachable(format!("no answer within {limit:?}")))?
        .map_err(|e| DialError::Unreachable(e.to_string()))?;
    let failed = |cause: String| DialError::Tls {
        cause,
        pin: outcome.get().cloned(),
    };
    let connector = TlsConnector::from(Arc::new(config));
    let stream = timeout(limit, connector.connect(name, wire))
        .await
        .map_err(|_| failed(format!("no TLS handshake within {limit:?}")))?
        .map_err(|e| failed(e.to_string()))?;
    if stream.get_ref().1.alpn_protocol() == Some(ALPN) {
        Ok(stream)
    } else {
        Err(failed("it doesn't speak HTTP/2".into()))
    }
}

fn config(trust: Trust<'_>, outcome: Arc<OnceLock<PinOutcome>>) -> Result<ClientConfig, PkiError> {
    let bad = |what| move |e: rustls::Error| PkiError::unusable(what, &e);
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad("the TLS provider"))?
        .dangerous();
    let mut config = match trust {
        Trust::Pin(pin) => builder
            .with_custom_certificate_verifier(Arc::new(PinVerifier { pin, outcome }))
            .with_no_client_auth(),
        Trust::Identity(identity) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates("the CA bundle", &identity.ca_pem)? {
                roots.add(authority).map_err(bad("the CA bundle"))?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
                .build()
                .map_err(|e| PkiError::unusable("the CA bundle", &e))?;
            builder
                .with_custom_certificate_verifier(verifier)
                .with_client_auth_cert(
                    certificates("the member's certificate", &identity.chain_pem)?,
                    private_key(&identity.key_pem)?,
                )
                .map_err(bad("the member's certificate"))?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// `host:port` of an endpoint; forgives a scheme and fills a missing port in.
fn address(endpoint: &str) -> String {
    let bare = endpoint
        .trim()
        .trim_start_matches("https://")
        .trim_end_matches('/');
    let has_port = match bare.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')),
        None => false,
    };
    match (has_port, bare.contains(':') && !bare.starts_with('[')) {
        (true, _) => bare.into(),
        (false, true) => format!("[{bare}]:{DEFAULT_PORT}"),
        (false, false) => format!("{bare}:{DEFAULT_PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn endpoints_get_the_usual_port_unless_they_name_one() {
        for (endpoint, dialled) in [
            ("hub.example.com", "hub.example.com:9443"),
            ("hub.example.com:443", "hub.example.com:443"),
            ("https://hub.example.com:443/", "hub.example.com:443"),
            ("192.0.2.1", "192.0.2.1:9443"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("2001:db8::1", "[2001:db8::1]:9443"),
            ("[2001:db8::1]", "[2001:db8::1]:9443"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ] {
            assert_eq!(address(endpoint), dialled);
        }
    }
}

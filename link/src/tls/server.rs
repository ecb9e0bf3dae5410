//! The hub's end: its certificate, replaceable while it runs, and the handshakes, off the accept loop.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::lobby::{Displaced, Limits, Lobby, source};
use super::verify::GraceVerifier;
use super::{ALPN, provider};
use crate::hub::{Crowd, ServeError};
use crate::pki::{Authorities, AuthoritiesWatch, CertificateInfo, PkiError, certificates, private_key};
use crate::wire::{Listen, Wire};

/// Handshakes at once. One takes milliseconds where nobody dawdles.
const HANDSHAKES: Limits = Limits {
    total: 256,
    each: 256,
};
/// Connections that show no certificate at once. Many clusters may come from behind one address.
const STRANGERS: Limits = Limits {
    total: 256,
    each: 128,
};
/// Connections of one member at once: it needs one, and a second while the first isn't known to be dead.
const MEMBERS: Limits = Limits {
    total: usize::MAX,
    each: 4,
};

/// The hub's TLS settings. Each handshake takes what is current.
#[derive(Debug)]
pub(crate) struct Endpoint {
    authorities: AuthoritiesWatch,
    lifetime: Duration,
    grace: Duration,
    current: ArcSwap<ServerConfig>,
}

impl Endpoint {
    pub(crate) fn new(
        authorities: AuthoritiesWatch,
        lifetime: Duration,
        grace: Duration,
    ) -> Result<Self, ServeError> {
        let first = config(&authorities.borrow(), lifetime, grace)?;
        let current = ArcSwap::from_pointee(first);
        Ok(Self {
            authorities,
            lifetime,
            grace,
            current,
        })
    }

    /// Replaces the certificate at half of each one's life and when the CAs change, for as long as it is polled.
    pub(crate) async fn keep_fresh(&self) {
        let mut wait = self.lifetime / 2;
        let mut authorities = self.authorities.clone();
        // They may have changed since `new` looked.
        authorities.mark_changed();
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = authorities.changed() => if changed.is_err() {
                    // Nobody changes them any more.
                    tokio::time::sleep(wait).await;
                },
            }
            let now = authorities.borrow_and_update().clone();
            match config(&now, self.lifetime, self.grace) {
                Ok(fresh) => {
                    self.current.store(Arc::new(fresh));
                    wait = self.lifetime / 2;
                }
                Err(e) => {
                    warn!(error = %e, "the hub's endpoint certificate can't be renewed; trying again");
                    wait = self.lifetime / 20;
                }
            }
        }
    }
}

fn config(
    authorities: &Authorities,
    lifetime: Duration,
    grace: Duration,
) -> Result<ServerConfig, ServeError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities.trusted() {
        roots.add(authority.clone())?;
    }
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| PkiError::unusable("the CA certificate", &e))?;
    let (key, issued) = authorities.signing().issue_server(lifetime)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(GraceVerifier { inner, grace }))
        .with_single_cert(
            certificates("the endpoint's certificate", &issued.chain_pem)?,
            private_key(&key)?,
        )?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// Where connections go whose handshake succeeded.
pub(crate) struct Accepted {
    /// Those that showed a member's certificate.
    pub(crate) members: mpsc::Sender<TlsStream<Wire>>,
    /// Those that showed none.
    pub(crate) anonymous: mpsc::Sender<TlsStream<Wire>>,
}

/// Accepts connections, until nobody wants them any more. Those that are too many of their kind make way for newer
/// ones.
pub(crate) async fn accept(
    mut listener: impl Listen,
    endpoint: Arc<Endpoint>,
    limit: Duration,
    out: Accepted,
    failed: impl Fn() + Clone + Send + 'static,
    displaced: Displaced,
) {
    let handshakes = Lobby::new(Crowd::Handshake, HANDSHAKES, displaced.clone());
    let strangers = Lobby::new(Crowd::Stranger, STRANGERS, displaced.clone());
    let members = Lobby::new(Crowd::Member, MEMBERS, displaced);
    loop {
        let accepted = tokio::select! {
            () = out.members.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let mut wire = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, most likely: closing connections is what helps, so let that happen.
                warn!(error = %e, "a connection can't be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let peer = wire.peer();
        wire.take(handshakes.enter(source(peer)));
        let acceptor = TlsAcceptor::from(endpoint.current.load_full());
        let (to_members, to_strangers) = (out.members.clone(), out.anonymous.clone());
        let (members, strangers) = (members.clone(), strangers.clone());
        let failed = failed.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(limit, acceptor.accept(wire)).await {
                Ok(Ok(mut stream)) => {
                    let (wire, tls) = stream.get_mut();
                    let leaf = tls.peer_certificates().and_then(<[_]>::first);
                    // One without a name gets no further than being told so.
                    let member = leaf.map(|c| CertificateInfo::read(c).map(|c| c.member).unwrap_or_default());
                    let out = if let Some(member) = member {
                        wire.take(members.enter(member));
                        to_members
                    } else {
                        wire.take(strangers.enter(source(peer)));
                        to_strangers
                    };
                    let _ = out.send(stream).await;
                }
                Ok(Err(e)) => {
                    debug!(?peer, error = %e, "a TLS handshake failed");
                    failed();
                }
                Err(_) => {
                    debug!(?peer, "a TLS handshake took too long");
                    failed();
                }
            }
        });
    }
}

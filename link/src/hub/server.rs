//! The listening socket and the service for members.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming, async_trait};
use tracing::{info, warn};

use super::enroll::EnrollService;
use super::registry::Registry;
use super::session::{self, Context, Wires, good};
use super::{HubBackend, HubConfig, LinkEvent, Renewal, ServeError, SessionInfo, StreamEnd};
use crate::frames::MESSAGE_LIMIT;
use crate::pki::{AuthoritiesWatch, CertificateInfo, RequestedKey, Serial};
use crate::proto::enrollment_server::EnrollmentServer;
use crate::proto::link_server::{Link, LinkServer};
use crate::proto::{self, HubMessage, MemberMessage};
use crate::tls::{self, Accepted, Endpoint};
use crate::wire::Listen;

/// Messages between a session and its connection. Small: what waits here can't be replaced by newer.
const QUEUE: usize = 4;
/// Streams and calls a connection may have open at once; a member needs two.
const STREAMS: u32 = 8;
/// Largest message of a caller without a certificate: a token and a request.
const STRANGERS_MESSAGE: usize = 64 << 10;
/// Longest wait for sessions to tell the backend of their end.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves members from when `in_sync` completes, that is, when the backend has read everything that plans are made of,
/// until `shutdown` does; then ends their streams and returns. New `authorities` are in force for handshakes,
/// certificates and bundles from the moment they are sent.
pub async fn serve(
    listener: TcpListener,
    authorities: AuthoritiesWatch,
    config: HubConfig,
    backend: Arc<dyn HubBackend>,
    in_sync: impl Future<Output = ()> + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    serve_on(listener, authorities, config, backend, in_sync, shutdown).await
}

/// [`serve`], wherever connections come from.
pub(crate) async fn serve_on(
    listener: impl Listen,
    authorities: AuthoritiesWatch,
    config: HubConfig,
    backend: Arc<dyn HubBackend>,
    in_sync: impl Future<Output = ()> + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let mut shutdown = std::pin::pin!(shutdown);
    // Who calls meanwhile waits in the kernel's backlog.
    tokio::select! {
        () = in_sync => {}
        () = &mut shutdown => return Ok(()),
    }
    let endpoint = Arc::new(Endpoint::new(
        authorities.clone(),
        config.server_lifetime,
        config.renewal_grace,
    )?);
    let config = Arc::new(config);
    let ending = CancellationToken::new();
    let (alive, mut all_ended) = mpsc::channel::<()>(1);
    let (handshake_limit, anonymous_limit) = (config.handshake_limit, config.anonymous_limit);
    let link = Arc::new(LinkService {
        authorities: authorities.clone(),
        config: config.clone(),
        backend: backend.clone(),
        registry: Arc::new(Registry::default()),
        sessions: AtomicU64::new(0),
        shutdown: ending.clone(),
        alive: alive.downgrade(),
    });
    let enrollment = EnrollService::new(authorities, config, backend.clone());

    let (member, members) = mpsc::channel(QUEUE);
    let (stranger, strangers) = mpsc::channel(QUEUE);
    let accepted = Accepted {
        members: member,
        anonymous: stranger,
    };
    let accepting = tokio::spawn(tls::accept(
        listener,
        endpoint.clone(),
        handshake_limit,
        accepted,
        {
            let backend = backend.clone();
            move || backend.happened(LinkEvent::HandshakeFailed)
        },
        {
            let backend = backend.clone();
            Arc::new(move |crowd| backend.happened(LinkEvent::Displaced(crowd)))
        },
    ));
    let for_members = Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(15)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_service(
            LinkServer::from_arc(link.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
        .serve_with_incoming_shutdown(
            ReceiverStream::new(members).map(Ok::<_, std::io::Error>),
            ending.clone().cancelled_owned(),
        );
    // Strangers get little room and little time. The link's service is there to tell them why not.
    let for_strangers = Server::builder()
        .max_concurrent_streams(1)
        .max_connection_age(anonymous_limit)
        .max_connection_age_grace(anonymous_limit)
        .add_service(EnrollmentServer::new(enrollment).max_decoding_message_size(STRANGERS_MESSAGE))
        .add_service(LinkServer::from_arc(link).max_decoding_message_size(STRANGERS_MESSAGE))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(strangers).map(Ok::<_, std::io::Error>),
            ending.clone().cancelled_owned(),
        );
    let server = async { tokio::try_join!(for_members, for_strangers).map(drop) };
    let mut server = std::pin::pin!(server);
    let result = tokio::select! {
        result = &mut server => result,
        () = endpoint.keep_fresh() => Ok(()),
        () = &mut shutdown => {
            ending.cancel();
            // A client that keeps its connection open must not keep us.
            tokio::time::timeout(GOODBYE, &mut server).await.unwrap_or(Ok(()))
        }
    };
    ending.cancel();
    accepting.abort();
    drop(alive);
    let _ = tokio::time::timeout(GOODBYE, all_ended.recv()).await;
    Ok(result?)
}

struct LinkService {
    authorities: AuthoritiesWatch,
    config: Arc<HubConfig>,
    backend: Arc<dyn HubBackend>,
    registry: Arc<Registry>,
    sessions: AtomicU64,
    shutdown: CancellationToken,
    /// Every session holds a strong one; the end of the last is how the endpoint knows that all ended.
    alive: mpsc::WeakSender<()>,
}

impl LinkService {
    /// Who calls, from the certificate that the handshake verified.
    #[allow(clippy::result_large_err, reason = "tonic's error type")]
    fn caller<T>(&self, request: &Request<T>) -> Result<SessionInfo, Status> {
        let certificates = request.peer_certs();
        let leaf = certificates.as_ref().and_then(|c| c.first());
        let leaf = leaf.ok_or_else(|| Status::unauthenticated("members show a certificate"))?;
        let certificate = CertificateInfo::read(leaf).map_err(|e| Status::unauthenticated(e.to_string()))?;
        Ok(SessionInfo {
            member: certificate.member,
            serial: certificate.serial,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            id: self.sessions.fetch_add(1, Ordering::Relaxed) + 1,
            peer: request.remote_addr(),
            agent_version: String::new(),
            protocol: 0,
            held: None,
        })
    }
}

#[async_trait]
impl Link for LinkService {
    type ConnectStream = ReceiverStream<Result<HubMessage, Status>>;

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::RenewResponse>, Status> {
        let caller = self.caller(&request)?;
        // One that has ended may renew (the handshake has checked the grace), a revoked one never.
        if self.backend.revoked(&caller) {
            return Err(Status::permission_denied("the member's certificate was revoked"));
        }
        let key = RequestedKey::from_csr(&request.into_inner().csr_der)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let serial = Serial::random();
        // One version of them for signature, record and bundle.
        let authorities = self.authorities.borrow().clone();
        let issued = authorities
            .signing()
            .issue_member(&key, &caller.member, serial, self.config.member_lifetime)
            .map_err(|e| Status::internal(e.to_string()))?;
        let renewal = Renewal {
            old: caller,
            new_serial: serial,
            valid_from: issued.not_before,
            trust: authorities.state().clone(),
        };
        let SessionInfo {
            member, serial: old, ..
        } = &renewal.old;
        self.backend.renewed(&renewal).await.map_err(|e| {
            warn!(member, error = %e, "a certificate can't be renewed now");
            Status::unavailable(e.to_string())
        })?;
        info!(member, old, new = %serial, "a certificate was renewed");
        Ok(Response::new(proto::RenewResponse {
            certificate: Some(proto::Certificate {
                chain_pem: issued.chain_pem,
                ca_pem: authorities.bundle_pem().into(),
            }),
        }))
    }

    async fn connect(
        &self,
        request: Request<Streaming<MemberMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let info = self.caller(&request)?;
        if let Err(status) = good(&*self.backend, &info) {
            warn!(
                member = info.member,
                serial = info.serial,
                reason = status.message(),
                "a member was refused"
            );
            self.backend.happened(LinkEvent::Ended(StreamEnd::of(&status)));
            return Err(status);
        }
        let alive = self
            .alive
            .upgrade()
            .ok_or_else(|| Status::unavailable("this hub replica shuts down"))?;
        let (outbound, stream) = mpsc::channel(QUEUE);
        let context = Context {
            config: self.config.clone(),
            backend: self.backend.clone(),
            registry: self.registry.clone(),
            authorities: self.authorities.clone(),
            shutdown: self.shutdown.clone(),
        };
        let wires = Wires {
            inbound: request.into_inner(),
            outbound,
        };
        tokio::spawn(async move {
            session::run(context, info, wires).await;
            drop(alive);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

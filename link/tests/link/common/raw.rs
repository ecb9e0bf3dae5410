//! Counterparts that speak the protocol by hand, to say what ours never would.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use spillway_link::pki::{CertificateAuthority, MemberIdentity, Secret};
use spillway_link::proto::link_client::LinkClient;
use spillway_link::proto::link_server::{Link, LinkServer};
use spillway_link::proto::{self, HubMessage, MemberMessage, hub_message, member_message};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect()
}

fn key(pem: &Secret) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).unwrap()
}

/// A TLS connection to the hub with this identity, or with none.
pub async fn tls(
    hub: SocketAddr,
    ca_pem: &str,
    identity: Option<&MemberIdentity>,
) -> io::Result<TlsStream<TcpStream>> {
    let config = client_config(&rustls::version::TLS13, ca_pem, identity);
    connect(hub, Arc::new(config)).await
}

pub async fn connect(hub: SocketAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(hub).await?;
    let name = ServerName::try_from("hub.spillway.internal").unwrap();
    TlsConnector::from(config).connect(name, tcp).await
}

/// TLS settings of a client, with resumption as rustls has it by default.
pub fn client_config(
    version: &'static rustls::SupportedProtocolVersion,
    ca_pem: &str,
    identity: Option<&MemberIdentity>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(chain(ca_pem).remove(0)).unwrap();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(i) => builder
            .with_client_auth_cert(chain(&i.chain_pem), key(&i.key_pem))
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A channel to the hub with this identity, or with none.
pub async fn channel(hub: SocketAddr, ca_pem: &str, identity: Option<&MemberIdentity>) -> Channel {
    let tls = tls(hub, ca_pem, identity).await.unwrap();
    let once = Arc::new(Mutex::new(Some(TokioIo::new(tls))));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = once.lock().unwrap().take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    Endpoint::from_static("http://hub")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

/// A member's stream, by hand.
pub struct RawMember {
    pub out: mpsc::Sender<MemberMessage>,
    pub inbound: Streaming<HubMessage>,
}

impl RawMember {
    pub async fn connect(
        hub: SocketAddr,
        ca_pem: &str,
        identity: Option<&MemberIdentity>,
        hello: proto::Hello,
    ) -> Result<Self, Status> {
        let (out, stream) = mpsc::channel(16);
        let first = MemberMessage {
            message: Some(member_message::Message::Hello(hello)),
        };
        out.send(first).await.unwrap();
        let channel = channel(hub, ca_pem, identity).await;
        let inbound = LinkClient::new(channel)
            .connect(ReceiverStream::new(stream))
            .await?;
        Ok(Self {
            out,
            inbound: inbound.into_inner(),
        })
    }

    pub async fn say(&self, message: member_message::Message) {
        let message = MemberMessage {
            message: Some(message),
        };
        self.out.send(message).await.unwrap();
    }

    /// The next plan frame; answers no pings.
    pub async fn frame(&mut self) -> proto::PlanFrame {
        super::within("a plan frame", async {
            loop {
                let message = self.inbound.message().await.unwrap().unwrap();
                if let Some(hub_message::Message::Plan(frame)) = message.message {
                    return frame;
                }
            }
        })
        .await
    }
}

pub fn hello() -> proto::Hello {
    proto::Hello {
        protocol: 1,
        agent_version: "raw".into(),
        ..proto::Hello::default()
    }
}

/// TLS settings of a server with this chain.
pub fn server_config(chain_pem: &str, key_pem: &Secret) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain(chain_pem), key(key_pem))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A server that writes down every decrypted byte it gets and answers nothing.
pub struct Recorder {
    pub address: SocketAddr,
    pub bytes: mpsc::UnboundedReceiver<Result<Vec<u8>, String>>,
}

impl Recorder {
    /// Sends an `Err` for each connection without a handshake, an `Ok` for whatever comes after one, and
    /// an empty `Ok` at a connection's end.
    pub async fn start(config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, bytes) = mpsc::unbounded_channel();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = match acceptor.accept(stream).await {
                    Ok(stream) => stream,
                    Err(e) => {
                        let _ = sender.send(Err(e.to_string()));
                        continue;
                    }
                };
                let mut buffer = vec![0; 1 << 16];
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(n) if n > 0 => drop(sender.send(Ok(buffer[..n].to_vec()))),
                        _ => break,
                    }
                }
                let _ = sender.send(Ok(Vec::new()));
            }
        });
        Self { address, bytes }
    }
}

/// A hub that says what it is told to, and tells what it hears.
pub struct ScriptedHub {
    script: Mutex<Option<mpsc::Receiver<Result<HubMessage, Status>>>>,
    heard: mpsc::UnboundedSender<member_message::Message>,
}

pub struct Script {
    pub address: SocketAddr,
    pub say: mpsc::Sender<Result<HubMessage, Status>>,
    pub heard: mpsc::UnboundedReceiver<member_message::Message>,
}

impl Script {
    pub async fn send(&self, message: hub_message::Message) {
        let message = HubMessage {
            message: Some(message),
        };
        self.say.send(Ok(message)).await.unwrap();
    }
}

#[tonic::async_trait]
impl Link for ScriptedHub {
    type ConnectStream = ReceiverStream<Result<HubMessage, Status>>;

    async fn renew(&self, _: Request<proto::RenewRequest>) -> Result<Response<proto::RenewResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn connect(
        &self,
        request: Request<Streaming<MemberMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let mut inbound = request.into_inner();
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Ok(Some(MemberMessage {
                message: Some(message),
            })) = inbound.message().await
            {
                let _ = heard.send(message);
            }
        });
        let script = self.script.lock().unwrap().take();
        script
            .map(|s| Response::new(ReceiverStream::new(s)))
            .ok_or_else(|| Status::unavailable("the script is played once"))
    }
}

/// Starts a [`ScriptedHub`]; its first words are a welcome.
pub async fn scripted(authority: &CertificateAuthority) -> Script {
    let (key_pem, issued) = authority.issue_server(super::DAY).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&issued.chain_pem, &key_pem)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (streams, incoming) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                let _ = streams.send(Ok::<_, io::Error>(stream)).await;
            }
        }
    });
    let (say, script) = mpsc::channel(64);
    let (tell, heard) = mpsc::unbounded_channel();
    let hub = ScriptedHub {
        script: Mutex::new(Some(script)),
        heard: tell,
    };
    let server = Server::builder()
        .add_service(LinkServer::new(hub))
        .serve_with_incoming(ReceiverStream::new(incoming));
    tokio::spawn(server);
    let script = Script { address, say, heard };
    script
        .send(hub_message::Message::Welcome(proto::Welcome {
            hub_id: "hub-1".into(),
            epoch: 5,
            protocol: 1,
        }))
        .await;
    script
}

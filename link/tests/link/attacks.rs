//! What a stranger, a thief or a member gone bad can try on the members' port: it is refused, it is counted, and nobody else
//! notices.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use spillway_core::plan::Digest;
use spillway_link::hub::{Crowd, EnrollRefusal, HubConfig, LinkEvent, StreamEnd};
use spillway_link::member::{ConnectionState, EnrollError, EnrollParams, enroll, enroll_with};
use spillway_link::pki::{CertificateInfo, KeyAndCsr, Token};
use spillway_link::proto::enrollment_client::EnrollmentClient;
use spillway_link::proto::link_client::LinkClient;
use spillway_link::proto::{self, member_message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Code;

use crate::common::raw::{RawMember, channel, hello, tls};
use crate::common::{Hub, HubEvent, Member, plan, quick_config, within};

/// Who must not notice anything: gets a plan, over the stream it had before.
struct Bystander {
    member: Member,
    session: u64,
    plans: usize,
}

impl Bystander {
    async fn start(hub: &mut Hub) -> Self {
        let member = Member::start(vec![hub.endpoint()], hub.identity("bystander"));
        let session = hub.connected("bystander").await.id;
        let mut this = Self {
            member,
            session,
            plans: 0,
        };
        this.is_served(hub).await;
        this
    }

    async fn is_served(&mut self, hub: &mut Hub) {
        self.plans += 1;
        let digest = hub
            .store
            .publish("bystander", &plan(&["a", &format!("r{}", self.plans)]));
        assert_eq!(self.member.update().await.target, digest);
        let state = self.member.handle.state().borrow().clone();
        assert!(matches!(state, ConnectionState::Connected { .. }), "{state:?}");
        let session = self.session;
        while let Ok(event) = hub.events.try_recv() {
            let is_end = matches!(&event, HubEvent::Disconnected(info, _) if info.id == session);
            assert!(!is_end, "the bystander's stream ended: {event:?}");
        }
    }
}

async fn counted(hub: &mut Hub, wanted: LinkEvent) {
    hub.next(&format!("{wanted:?}"), |e| match e {
        HubEvent::Happened(event) if *event == wanted => Some(()),
        _ => None,
    })
    .await;
}

fn joining(hub: &Hub, token: Token) -> EnrollParams {
    EnrollParams {
        endpoints: vec![hub.endpoint()],
        pin: hub.authority.pin(),
        token,
        member: "fra-1".into(),
        limit: Duration::from_secs(10),
    }
}

/// A request that claims to be of this member, as the administrator's.
fn claiming(member: &str) -> KeyAndCsr {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["hub.spillway.internal".into()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, member);
    let uri = format!("spillway://member/{member}");
    params
        .subject_alt_names
        .push(SanType::URI(Ia5String::try_from(uri).unwrap()));
    let csr = params.serialize_request(&key).unwrap();
    KeyAndCsr {
        key_pem: spillway_link::pki::Secret::new(key.serialize_pem()),
        csr_der: csr.der().to_vec(),
    }
}

fn name_in(chain_pem: &str) -> String {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let leaf = CertificateDer::from_pem_slice(chain_pem.as_bytes()).unwrap();
    CertificateInfo::read(&leaf).unwrap().member
}

/// The stream of member fra-1, whose words are the test's own.
async fn fra_1(hub: &mut Hub) -> RawMember {
    let ca = hub.authority.certificate_pem().to_owned();
    let raw = RawMember::connect(hub.address, &ca, Some(&hub.identity("fra-1")), hello())
        .await
        .unwrap();
    hub.connected("fra-1").await;
    raw
}

#[tokio::test]
async fn a_replayed_token_is_worth_nothing() {
    let hub = Hub::start().await;
    let token = hub.store.token("fra-1", Ok(()));
    enroll(joining(&hub, token.clone())).await.unwrap();
    let again = enroll(joining(&hub, token)).await;
    assert_eq!(again, Err(EnrollError::Refused(EnrollRefusal::TokenUsed)));
}

#[tokio::test]
async fn a_request_in_anothers_name_gives_ones_own() {
    let hub = Hub::start().await;
    let token = hub.store.token("fra-1", Ok(()));
    let joined = enroll_with(&joining(&hub, token), &claiming("ber-1"))
        .await
        .unwrap();
    assert_eq!(joined.certificate().unwrap().member, "fra-1");

    let ca = hub.authority.certificate_pem();
    let renewed = LinkClient::new(channel(hub.address, ca, Some(&joined)).await)
        .renew(proto::RenewRequest {
            csr_der: claiming("ber-1").csr_der,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(name_in(&renewed.certificate.unwrap().chain_pem), "fra-1");
}

#[tokio::test]
async fn a_stolen_certificate_ends_with_its_revocation_on_live_streams_too() {
    let mut hub = Hub::start().await;
    let mut bystander = Bystander::start(&mut hub).await;
    let ca = hub.authority.certificate_pem().to_owned();
    let stolen = hub.identity("fra-1");
    let mut thief = RawMember::connect(hub.address, &ca, Some(&stolen), hello())
        .await
        .unwrap();
    hub.connected("fra-1").await;
    // What it opened while the certificate was good.
    let spare = channel(hub.address, &ca, Some(&stolen)).await;

    hub.store
        .revoked
        .lock()
        .unwrap()
        .insert(stolen.certificate().unwrap().serial);
    counted(&mut hub, LinkEvent::Ended(StreamEnd::Revoked)).await;
    let end = within("the end", async {
        loop {
            match thief.inbound.message().await {
                Ok(Some(_)) => {}
                end => return end,
            }
        }
    })
    .await;
    assert_eq!(end.unwrap_err().code(), Code::PermissionDenied);
    hub.store.publish("fra-1", &plan(&["secret"]));

    let mut client = LinkClient::new(spare);
    let renewal = proto::RenewRequest {
        csr_der: KeyAndCsr::generate().unwrap().csr_der,
    };
    assert_eq!(
        client.renew(renewal).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let again = RawMember::connect(hub.address, &ca, Some(&stolen), hello()).await;
    assert_eq!(again.err().unwrap().code(), Code::PermissionDenied);
    bystander.is_served(&mut hub).await;
}

#[tokio::test]
async fn what_a_member_says_is_said_in_its_own_name() {
    let mut hub = Hub::start().await;
    let ca = hub.authority.certificate_pem().to_owned();
    let others = hub.store.publish("ber-1", &plan(&["a"]));
    let own = hub.store.publish("fra-1", &plan(&["b"]));
    let mut liar = RawMember::connect(hub.address, &ca, Some(&hub.identity("fra-1")), hello())
        .await
        .unwrap();
    assert_eq!(liar.frame().await.target_digest, own.as_bytes());
    // That it holds another's plan, and what another's nodes are.
    liar.say(member_message::Message::Ack(proto::Ack {
        nonce: 1,
        digest: others.as_bytes().to_vec(),
    }))
    .await;
    liar.say(member_message::Message::Report(proto::ReportPart {
        first: true,
        last: true,
        nodes: vec![br#"{"name":"ber-1-n1"}"#.to_vec()],
        ..proto::ReportPart::default()
    }))
    .await;
    let reporter = hub
        .next("the report", |e| match e {
            HubEvent::Reported(member, _) => Some(member.clone()),
            HubEvent::Acknowledged(member, _) => panic!("{member} is believed to hold a plan"),
            _ => None,
        })
        .await;
    assert_eq!(reporter, "fra-1");
}

#[tokio::test]
async fn a_message_too_large_ends_the_stream_of_who_sent_it() {
    let mut hub = Hub::start().await;
    let mut bystander = Bystander::start(&mut hub).await;
    let ca = hub.authority.certificate_pem().to_owned();
    let raw = fra_1(&mut hub).await;
    raw.say(member_message::Message::Nack(proto::Nack {
        nonce: 1,
        reason: "x".repeat(5 << 20),
        ..proto::Nack::default()
    }))
    .await;
    counted(&mut hub, LinkEvent::Ended(StreamEnd::Protocol)).await;

    // A stranger's may be far smaller.
    let stranger = channel(hub.address, &ca, None).await;
    let request = proto::EnrollRequest {
        token: "x".repeat(100 << 10),
        ..proto::EnrollRequest::default()
    };
    let refusal = EnrollmentClient::new(stranger).enroll(request).await.unwrap_err();
    assert_eq!(refusal.code(), Code::OutOfRange, "{refusal:?}");
    bystander.is_served(&mut hub).await;
}

#[tokio::test]
async fn a_report_without_end_ends_the_stream() {
    let mut hub = Hub::start().await;
    let mut bystander = Bystander::start(&mut hub).await;
    let raw = fra_1(&mut hub).await;
    let node = format!(r#"{{"name":"n","message":"{}"}}"#, "x".repeat(1000)).into_bytes();
    let part = |first| proto::MemberMessage {
        message: Some(member_message::Message::Report(proto::ReportPart {
            first,
            nodes: vec![node.clone(); 100],
            ..proto::ReportPart::default()
        })),
    };
    let mut sent = 0;
    while raw.out.send(part(sent == 0)).await.is_ok() {
        sent += 1;
        assert!(sent < 1000, "it takes it all");
    }
    counted(&mut hub, LinkEvent::Ended(StreamEnd::Protocol)).await;
    bystander.is_served(&mut hub).await;
}

#[tokio::test]
async fn who_is_slow_on_purpose_is_cut_off_at_each_step() {
    let config = HubConfig {
        handshake_limit: Duration::from_millis(300),
        anonymous_limit: Duration::from_millis(300),
        silence_limit: Duration::from_millis(600),
        ping_interval: Duration::from_millis(50),
        ..quick_config()
    };
    let mut hub = Hub::start_with(config).await;
    let mut bystander = Bystander::start(&mut hub).await;
    let ca = hub.authority.certificate_pem().to_owned();

    // A byte of a handshake now and then.
    let mut drip = TcpStream::connect(hub.address).await.unwrap();
    within("the end of the handshake", async {
        let record = [22, 3, 1, 2, 0, 1];
        for byte in record.into_iter().chain(std::iter::repeat(0)) {
            let wait = tokio::time::timeout(Duration::from_millis(50), drip.read_u8()).await;
            if wait.is_ok() || drip.write_u8(byte).await.is_err() {
                return;
            }
        }
    })
    .await;
    counted(&mut hub, LinkEvent::HandshakeFailed).await;

    // A handshake, and then nothing.
    let mut mute = tls(hub.address, &ca, None).await.unwrap();
    let end = within("the end of the stranger", mute.read(&mut [0; 1024])).await;
    assert!(!matches!(end, Ok(n) if n > 100), "{end:?}");

    // A stream, and then no hello.
    let (_out, stream) = tokio::sync::mpsc::channel(1);
    let identity = hub.identity("fra-1");
    let answer = LinkClient::new(channel(hub.address, &ca, Some(&identity)).await)
        .connect(tokio_stream::wrappers::ReceiverStream::new(stream))
        .await;
    let mut inbound = answer.unwrap().into_inner();
    let end = within("the end of the stream", inbound.message()).await;
    assert_eq!(end.unwrap_err().code(), Code::DeadlineExceeded);
    counted(&mut hub, LinkEvent::Ended(StreamEnd::Silent)).await;
    bystander.is_served(&mut hub).await;
}

/// A connection from another address of this machine.
async fn half_open(hub: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(hub).await.unwrap()
}

#[tokio::test]
async fn ten_thousand_half_open_connections_keep_nobody_out() {
    let mut hub = Hub::start().await;
    let mut bystander = Bystander::start(&mut hub).await;
    // No more descriptors than a test may have. The hub has closed the older ones by then.
    let mut open = VecDeque::new();
    for i in 0..10_000 {
        open.push_back(within("a connection", half_open(hub.address)).await);
        if open.len() > 300 {
            open.pop_front();
        }
        if i % 2_500 == 2_499 {
            bystander.is_served(&mut hub).await;
        }
    }
    // As many as there is room for are still there.
    let newcomer = Member::start(vec![hub.endpoint()], hub.identity("newcomer"));
    hub.connected("newcomer").await;
    drop(newcomer);
    bystander.is_served(&mut hub).await;
    drop(open);
    counted_at_least(&hub, Crowd::Handshake, 9_000);
}

fn counted_at_least(hub: &Hub, crowd: Crowd, least: usize) {
    let counts = hub.store.displaced.lock().unwrap();
    let count = counts.get(&crowd).copied().unwrap_or(0);
    assert!(count >= least, "{count} of {crowd:?}");
}

#[tokio::test]
async fn a_crowd_of_strangers_and_a_member_of_many_connections_displace_themselves() {
    let mut hub = Hub::start().await;
    let mut bystander = Bystander::start(&mut hub).await;
    let ca = hub.authority.certificate_pem().to_owned();
    let token = hub.store.token("fra-1", Ok(()));
    let mut strangers = Vec::new();
    for _ in 0..160 {
        strangers.push(tls(hub.address, &ca, None).await.unwrap());
    }
    // From the same address as they.
    enroll(joining(&hub, token)).await.unwrap();
    counted_at_least(&hub, Crowd::Stranger, 30);
    let end = within("the end of the first", strangers[0].read(&mut [0; 1024])).await;
    assert!(!matches!(end, Ok(n) if n > 100), "{end:?}");

    let greedy = hub.identity("greedy");
    let mut connections = Vec::new();
    for _ in 0..10 {
        connections.push(tls(hub.address, &ca, Some(&greedy)).await.unwrap());
    }
    within("the end of the first", async {
        let mut buffer = [0; 1024];
        while matches!(connections[0].read(&mut buffer).await, Ok(n) if n > 0) {}
    })
    .await;
    counted_at_least(&hub, Crowd::Member, 5);
    bystander.is_served(&mut hub).await;
}

#[tokio::test]
async fn a_member_that_talks_without_end_delays_nobody() {
    let mut hub = Hub::start().await;
    let mut bystander = Bystander::start(&mut hub).await;
    let raw = fra_1(&mut hub).await;
    let talking = tokio::spawn(async move {
        loop {
            raw.say(member_message::Message::Ack(proto::Ack {
                nonce: 7,
                digest: Digest::of(b"no").as_bytes().to_vec(),
            }))
            .await;
        }
    });
    for _ in 0..10 {
        bystander.is_served(&mut hub).await;
    }
    assert!(!talking.is_finished());
    talking.abort();
}

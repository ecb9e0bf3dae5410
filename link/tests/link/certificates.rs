//! Who gets in, and who is thrown out again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::HandshakeKind;
use spillway_link::hub::HubConfig;
use spillway_link::member::{ConnectionState, DisconnectReason};
use spillway_link::pki::{CertificateAuthority, MemberIdentity, Secret};
use tokio::io::AsyncReadExt as _;
use tonic::Code;

use crate::common::raw::{RawMember, client_config, connect, hello, tls};
use crate::common::{DAY, Hub, HubEvent, Member, identity, plan, quick_config, within};

fn reason(state: &ConnectionState) -> Option<DisconnectReason> {
    match state {
        ConnectionState::Connecting { reason } => reason.clone(),
        _ => None,
    }
}

fn serial(state: &ConnectionState) -> Option<String> {
    match state {
        ConnectionState::Connected { serial, .. } => Some(serial.clone()),
        _ => None,
    }
}

/// An identity whose certificate ended that long ago.
fn ended(authority: &CertificateAuthority, member: &str, ago: Duration) -> MemberIdentity {
    let ca_key = KeyPair::from_pem(authority.key_pem().expose()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(authority.certificate_pem(), ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let uri = format!("spillway://member/{member}");
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = (SystemTime::now() - ago - DAY).into();
    params.not_after = (SystemTime::now() - ago).into();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    MemberIdentity {
        key_pem: Secret::new(key.serialize_pem()),
        chain_pem: certificate.pem() + authority.certificate_pem(),
        ca_pem: authority.certificate_pem().into(),
    }
}

async fn refusal(hub: &Hub, identity: Option<&MemberIdentity>) -> tonic::Status {
    let ca = hub.authority.certificate_pem();
    match RawMember::connect(hub.address, ca, identity, hello()).await {
        Err(status) => status,
        Ok(_) => panic!("it was let in"),
    }
}

#[tokio::test]
async fn no_certificate_no_stream() {
    let hub = Hub::start().await;
    assert_eq!(refusal(&hub, None).await.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let hub = Hub::start().await;
    let other = CertificateAuthority::generate("other").unwrap();
    let mut stranger = identity(&other, "fra-1", DAY);
    stranger.ca_pem = hub.authority.certificate_pem().into();
    let member = Member::start(vec![hub.endpoint()], stranger);
    let why = member.state("the refusal", reason).await;
    assert!(matches!(why, DisconnectReason::NotAccepted(_)), "{why:?}");
}

#[tokio::test]
async fn a_hub_of_another_ca_is_not_ours() {
    let hub = Hub::start().await;
    let other = CertificateAuthority::generate("other").unwrap();
    let member = Member::start(vec![hub.endpoint()], identity(&other, "fra-1", DAY));
    let why = member.state("the refusal", reason).await;
    assert!(matches!(why, DisconnectReason::NotOurHub { .. }), "{why:?}");
}

#[tokio::test]
async fn the_endpoints_own_certificate_makes_nobody_a_member() {
    let hub = Hub::start().await;
    let (key_pem, issued) = hub.authority.issue_server(DAY).unwrap();
    let posing = MemberIdentity {
        key_pem,
        chain_pem: issued.chain_pem,
        ca_pem: hub.authority.certificate_pem().into(),
    };
    refusal(&hub, Some(&posing)).await;
}

#[tokio::test]
async fn one_that_has_ended_gets_a_new_one_and_nothing_else() {
    let mut hub = Hub::start().await;
    let old = ended(&hub.authority, "fra-1", DAY);
    let status = refusal(&hub, Some(&old)).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");

    let member = Member::start(vec![hub.endpoint()], old.clone());
    let info = hub.connected("fra-1").await;
    assert_ne!(info.serial, old.certificate().unwrap().serial);
    let stored = member.store.identities.lock().unwrap()[0].certificate().unwrap();
    assert_eq!((stored.serial, stored.member.as_str()), (info.serial, "fra-1"));
}

#[tokio::test]
async fn one_that_ended_too_long_ago_gets_nothing() {
    let hub = Hub::start().await;
    let old = ended(&hub.authority, "fra-1", 31 * DAY);
    let member = Member::start(vec![hub.endpoint()], old);
    let why = member.state("the refusal", reason).await;
    assert!(matches!(why, DisconnectReason::Expired(_)), "{why:?}");
    assert!(member.store.identities.lock().unwrap().is_empty());
}

#[tokio::test]
async fn one_that_ended_and_was_revoked_gets_nothing() {
    let hub = Hub::start().await;
    let old = ended(&hub.authority, "fra-1", DAY);
    let serial = old.certificate().unwrap().serial;
    hub.store.revoked.lock().unwrap().insert(serial);
    let member = Member::start(vec![hub.endpoint()], old);
    let why = member.state("the refusal", reason).await;
    assert!(matches!(why, DisconnectReason::Expired(_)), "{why:?}");
    assert!(member.store.identities.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_live_stream_ends_with_its_certificate() {
    let mut hub = Hub::start().await;
    let short = identity(&hub.authority, "fra-1", Duration::from_secs(2));
    let ca = hub.authority.certificate_pem().to_owned();
    let _stream = RawMember::connect(hub.address, &ca, Some(&short), hello())
        .await
        .unwrap();
    assert!(hub.disconnected("fra-1").await.contains("has ended"));
}

#[tokio::test]
async fn a_revoked_members_live_stream_is_cut_and_it_does_not_come_back() {
    let mut hub = Hub::start().await;
    let (bad, good) = (hub.identity("fra-1"), hub.identity("ber-1"));
    let revoked = bad.certificate().unwrap().serial;
    let member = Member::start(vec![hub.endpoint()], bad);
    let mut other = Member::start(vec![hub.endpoint()], good);
    member.state("the connection", serial).await;
    other.state("the connection", serial).await;

    hub.store.revoked.lock().unwrap().insert(revoked);
    assert!(hub.disconnected("fra-1").await.contains("revoked"));
    let why = member.state("the refusal", reason).await;
    assert!(matches!(why, DisconnectReason::Revoked(_)), "{why:?}");

    let digest = hub.store.publish("fra-1", &plan(&["secret"]));
    assert_eq!(hub.store.publish("ber-1", &plan(&["secret"])), digest);
    assert_eq!(other.update().await.target, digest);
    assert!(member.store.contents.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_renewed_certificate_reaches_the_hub_on_a_new_stream() {
    let mut hub = Hub::start().await;
    // So short that half its life (counted from the backdated beginning) is over at once.
    let young = identity(&hub.authority, "fra-1", Duration::from_secs(60));
    let first = young.certificate().unwrap().serial;
    let mut member = Member::start(vec![hub.endpoint()], young);
    let digest = hub.store.publish("fra-1", &plan(&["a"]));
    assert_eq!(hub.connected("fra-1").await.serial, first);
    let (old, new) = hub
        .next("the renewal", |e| match e {
            HubEvent::Renewed(old, new) => Some((old.clone(), new.clone())),
            _ => None,
        })
        .await;
    assert_eq!(old, first);
    assert_eq!(hub.connected("fra-1").await.serial, new);
    let newest = |s: &ConnectionState| serial(s).filter(|s| *s == new);
    member.state("the new certificate in use", newest).await;
    let stored = member.store.identities.lock().unwrap().clone();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].certificate().unwrap().serial, new);
    assert_eq!(member.update().await.target, digest);
}

#[tokio::test]
async fn the_endpoints_certificate_is_replaced_while_it_runs() {
    // Each handshake below is after the first certificate has ended.
    let config = HubConfig {
        server_lifetime: Duration::from_secs(2),
        ..quick_config()
    };
    let mut hub = Hub::start_with(config).await;
    let begun = SystemTime::now();
    let ca = hub.authority.certificate_pem().to_owned();
    let fra = hub.identity("fra-1");
    let short = identity(&hub.authority, "ber-1", Duration::from_secs(4));
    let _clock = RawMember::connect(hub.address, &ca, Some(&short), hello())
        .await
        .unwrap();
    hub.disconnected("ber-1").await;
    assert!(
        begun.elapsed().unwrap() > Duration::from_secs(3),
        "the first one has ended"
    );
    RawMember::connect(hub.address, &ca, Some(&fra), hello())
        .await
        .unwrap();
    hub.connected("fra-1").await;
}

#[tokio::test]
async fn nothing_older_than_tls_1_3_and_no_resumption() {
    let hub = Hub::start().await;
    let ca = hub.authority.certificate_pem();
    let old = Arc::new(client_config(&rustls::version::TLS12, ca, None));
    assert!(connect(hub.address, old).await.is_err());

    let identity = hub.identity("fra-1");
    let new = Arc::new(client_config(&rustls::version::TLS13, ca, Some(&identity)));
    for _ in 0..2 {
        let mut tls = connect(hub.address, new.clone()).await.unwrap();
        // The server's first words come after any ticket it would send.
        within("the server's settings", tls.read_u8()).await.unwrap();
        assert_eq!(tls.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn strangers_may_not_stay() {
    let config = HubConfig {
        anonymous_limit: Duration::from_millis(300),
        ..quick_config()
    };
    let mut hub = Hub::start_with(config).await;
    let ca = hub.authority.certificate_pem().to_owned();
    let fra = hub.identity("fra-1");
    let _member = RawMember::connect(hub.address, &ca, Some(&fra), hello())
        .await
        .unwrap();
    hub.connected("fra-1").await;
    let mut idle = tls(hub.address, &ca, None).await.unwrap();
    let mut heard = Vec::new();
    let _ = within("the end of the connection", idle.read_to_end(&mut heard)).await;
    assert!(hub.events.try_recv().is_err(), "the member stays");
}

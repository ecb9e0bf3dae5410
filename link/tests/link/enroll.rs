//! Joining: who gets a certificate, for which name, and what never leaves before the hub is known.

use std::time::Duration;

use crate::common::raw::{Recorder, server_config};
use crate::common::{DAY, Hub, identity, within};
use spillway_link::hub::EnrollRefusal;
use spillway_link::member::{EnrollError, EnrollParams, enroll, enroll_with};
use spillway_link::pki::{CertificateAuthority, KeyAndCsr, Pin, Token};

fn params(endpoint: &str, pin: Pin, token: Token) -> EnrollParams {
    EnrollParams {
        endpoints: vec![endpoint.into()],
        pin,
        token,
        member: "fra-1".into(),
        limit: Duration::from_secs(5),
    }
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::generate("other").unwrap()
}

#[tokio::test]
async fn the_right_token_and_pin_give_an_identity_once() {
    let hub = Hub::start().await;
    let token = hub.store.token("fra-1", Ok(()));
    let params = params(&hub.endpoint(), hub.authority.pin(), token);
    let identity = within("the certificate", enroll(params.clone())).await.unwrap();
    identity.check().unwrap();
    assert_eq!(identity.certificate().unwrap().member, "fra-1");
    let again = within("the refusal", enroll(params)).await;
    assert_eq!(again, Err(EnrollError::Refused(EnrollRefusal::TokenUsed)));
}

#[tokio::test]
async fn each_refusal_arrives_as_itself() {
    let hub = Hub::start().await;
    let pin = hub.authority.pin();
    for refusal in [
        EnrollRefusal::TokenUsed,
        EnrollRefusal::TokenExpired,
        EnrollRefusal::NameTaken,
        EnrollRefusal::Unavailable("no API server".into()),
        EnrollRefusal::Invalid("why".into()),
    ] {
        let token = hub.store.token("fra-1", Err(refusal.clone()));
        let got = enroll(params(&hub.endpoint(), pin, token)).await;
        assert_eq!(got, Err(EnrollError::Refused(refusal)));
    }
    let token = hub.store.token("ber-1", Ok(()));
    let got = enroll(params(&hub.endpoint(), pin, token)).await;
    assert_eq!(got, Err(EnrollError::Refused(EnrollRefusal::TokenForOtherMember)));
    let got = enroll(params(&hub.endpoint(), pin, Token::generate())).await;
    assert_eq!(got, Err(EnrollError::Refused(EnrollRefusal::TokenUnknown)));
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_named_when_it_is_the_only_one() {
    let hub = Hub::start().await;
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = unused.local_addr().unwrap().to_string();
    drop(unused);
    let token = hub.store.token("fra-1", Ok(()));
    let mut params = params(&dead, hub.authority.pin(), token);
    match enroll(params.clone()).await {
        Err(EnrollError::HubUnreachable { endpoint, .. }) => assert_eq!(endpoint, dead),
        other => panic!("{other:?}"),
    }
    params.endpoints.push(hub.endpoint());
    enroll(params).await.unwrap();
}

/// Tries to join at a server that writes everything down; gives the error and what it wrote down.
async fn at_recorder(recorder: &mut Recorder, pin: Pin, token: Token) -> (EnrollError, Vec<u8>) {
    let endpoint = recorder.address.to_string();
    let mut params = params(&endpoint, pin, token);
    params.limit = Duration::from_secs(1);
    let joining = tokio::spawn(enroll(params));
    let mut seen = Vec::new();
    let mut token_seen = false;
    while let Some(Ok(bytes)) = within("the recorder", recorder.bytes.recv()).await {
        if bytes.is_empty() {
            break;
        }
        seen.extend(bytes);
        // It never answers: enough was seen.
        if !token_seen && seen.windows(5).any(|w| w == b"spw1.") {
            token_seen = true;
            joining.abort();
        }
    }
    let error = match joining.await {
        Ok(outcome) => outcome.expect_err("a recorder gives no certificate"),
        Err(_) => EnrollError::Protocol("cut off by the test".into()),
    };
    (error, seen)
}

#[tokio::test]
async fn with_another_pin_nothing_is_sent_and_with_the_right_one_the_token_is() {
    let real = authority();
    let (key, issued) = real.issue_server(DAY).unwrap();
    let mut recorder = Recorder::start(server_config(&issued.chain_pem, &key)).await;

    let expected = authority().pin();
    let (error, seen) = at_recorder(&mut recorder, expected, Token::generate()).await;
    match error {
        EnrollError::PinMismatch { expected: e, got, .. } => {
            assert_eq!((e, got), (expected, Some(real.pin())));
        }
        other => panic!("{other}"),
    }
    assert!(
        seen.is_empty(),
        "{} bytes were sent before the pin was right",
        seen.len()
    );

    // The recorder does see a token where one is sent.
    let token = Token::generate();
    let (_, seen) = at_recorder(&mut recorder, real.pin(), token.clone()).await;
    assert!(
        seen.windows(token.expose().len())
            .any(|w| w == token.expose().as_bytes())
    );
}

#[tokio::test]
async fn showing_the_pinned_ca_beside_ones_own_certificate_is_not_enough() {
    let (real, evil) = (authority(), authority());
    let (key, issued) = evil.issue_server(DAY).unwrap();
    let leaf = issued
        .chain_pem
        .split_inclusive("-----END CERTIFICATE-----\n")
        .next()
        .unwrap();
    let chain = format!("{leaf}{}", real.certificate_pem());
    let mut recorder = Recorder::start(server_config(&chain, &key)).await;
    let (error, seen) = at_recorder(&mut recorder, real.pin(), Token::generate()).await;
    assert!(matches!(error, EnrollError::NotTheHub { .. }), "{error}");
    assert!(seen.is_empty());
}

#[tokio::test]
async fn a_member_cannot_pose_as_the_hub() {
    let real = authority();
    let member = identity(&real, "ber-1", DAY);
    let mut recorder = Recorder::start(server_config(&member.chain_pem, &member.key_pem)).await;
    let (error, seen) = at_recorder(&mut recorder, real.pin(), Token::generate()).await;
    assert!(matches!(error, EnrollError::NotTheHub { .. }), "{error}");
    assert!(seen.is_empty());
}

#[tokio::test]
async fn a_name_that_is_none_and_a_request_that_is_none_are_refused() {
    let hub = Hub::start().await;
    let token = hub.store.token("Fra/1", Ok(()));
    let mut bad_name = params(&hub.endpoint(), hub.authority.pin(), token.clone());
    bad_name.member = "Fra/1".into();
    let got = enroll(bad_name).await;
    assert!(
        matches!(got, Err(EnrollError::Refused(EnrollRefusal::Invalid(_)))),
        "{got:?}"
    );

    let mut key = KeyAndCsr::generate().unwrap();
    *key.csr_der.last_mut().unwrap() ^= 1;
    let token = hub.store.token("fra-1", Ok(()));
    let got = enroll_with(&params(&hub.endpoint(), hub.authority.pin(), token), &key).await;
    assert!(
        matches!(got, Err(EnrollError::Refused(EnrollRefusal::Invalid(_)))),
        "{got:?}"
    );
}

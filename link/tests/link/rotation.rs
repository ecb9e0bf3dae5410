//! One CA follows another while members are connected.

use std::sync::Arc;

use spillway_link::member::{EnrollParams, enroll};
use spillway_link::pki::{Authorities, CertificateAuthority, MemberIdentity, Pin};

use crate::common::raw::{RawMember, hello, tls};
use crate::common::{Hub, HubEvent, LIMIT, Member, plan, reload};

/// Waits until the member has renewed and is back with its new certificate.
async fn renewed(hub: &mut Hub, member: &Member) -> MemberIdentity {
    let new = hub
        .next("a renewal", |e| match e {
            HubEvent::Renewed(_, new) => Some(new.clone()),
            _ => None,
        })
        .await;
    assert_eq!(hub.connected("fra-1").await.serial, new);
    let stored = member.store.identities.lock().unwrap();
    let stored = stored.last().expect("stored before it was used").clone();
    assert_eq!(stored.certificate().unwrap().serial, new);
    stored
}

fn authorities(signing: &CertificateAuthority, besides: &[&CertificateAuthority]) -> Arc<Authorities> {
    let besides: Vec<_> = besides.iter().map(|ca| ca.certificate_pem()).collect();
    Arc::new(Authorities::new(reload(signing), &besides).unwrap())
}

async fn lets_in(hub: &Hub, ca: &CertificateAuthority, identity: &MemberIdentity) -> bool {
    let ca = ca.certificate_pem();
    tls(hub.address, ca, Some(identity)).await.is_ok()
        && RawMember::connect(hub.address, ca, Some(identity), hello())
            .await
            .is_ok()
}

#[tokio::test]
async fn a_ca_follows_another_and_no_member_notices() {
    let mut hub = Hub::start().await;
    let old = reload(&hub.authority);
    let next = CertificateAuthority::generate("hub-1").unwrap();
    let first = hub.identity("fra-1");
    let mut member = Member::start(vec![hub.endpoint()], first.clone());
    hub.connected("fra-1").await;

    // The next one is trusted before anything is signed by it.
    hub.authorities.send_replace(authorities(&old, &[&next]));
    let held = renewed(&mut hub, &member).await;
    assert_eq!(
        held.ca_pem,
        old.certificate_pem().to_owned() + next.certificate_pem()
    );

    // It signs; who trusts only the one before would no longer take this for its hub.
    hub.authorities.send_replace(authorities(&next, &[&old]));
    let held = renewed(&mut hub, &member).await;
    assert!(lets_in(&hub, &next, &held).await);
    assert!(
        !lets_in(&hub, &old, &held).await,
        "the endpoint shows the next one"
    );
    assert!(
        lets_in(&hub, &next, &first).await,
        "certificates of the one before are still good"
    );

    // The one before is forgotten.
    hub.authorities.send_replace(authorities(&next, &[]));
    let held = renewed(&mut hub, &member).await;
    assert_eq!(held.ca_pem, next.certificate_pem());
    assert!(
        !lets_in(&hub, &next, &first).await,
        "and what it signed is worth nothing"
    );

    let target = hub.store.publish("fra-1", &plan(&["a"]));
    assert_eq!(member.update().await.target, target);
}

#[tokio::test]
async fn whoever_joins_meanwhile_gets_both_and_is_pinned_to_the_one_that_signs() {
    let hub = Hub::start().await;
    let old = reload(&hub.authority);
    let next = CertificateAuthority::generate("hub-1").unwrap();
    let join = async |pin: Pin, name: &str| {
        enroll(EnrollParams {
            endpoints: vec![hub.endpoint()],
            pin,
            token: hub.store.token(name, Ok(())),
            member: name.into(),
            limit: LIMIT,
        })
        .await
    };
    hub.authorities.send_replace(authorities(&old, &[&next]));
    let early = join(old.pin(), "fra-1").await.unwrap();
    assert!(early.ca_pem.contains(next.certificate_pem()));

    hub.authorities.send_replace(authorities(&next, &[&old]));
    let late = join(next.pin(), "fra-2").await.unwrap();
    assert!(lets_in(&hub, &next, &late).await && lets_in(&hub, &next, &early).await);
    assert!(
        join(old.pin(), "fra-3").await.is_err(),
        "a join command of before"
    );
}

#[tokio::test]
async fn one_that_missed_the_word_hears_it_when_it_comes_back() {
    let mut hub = Hub::start().await;
    let old = reload(&hub.authority);
    let next = CertificateAuthority::generate("hub-1").unwrap();
    hub.authorities.send_replace(authorities(&old, &[&next]));
    let member = Member::start(vec![hub.endpoint()], hub.identity("fra-1"));
    hub.connected("fra-1").await;
    assert!(
        renewed(&mut hub, &member)
            .await
            .ca_pem
            .contains(next.certificate_pem())
    );
}

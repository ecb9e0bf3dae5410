//! What reads bytes of the network, for `fuzz/`. Not part of the interface.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use prost::Message as _;
use rustls::pki_types::CertificateDer;
use spillway_core::plan::digest_of;

use crate::frames::{Hub, Staging, Step, digest};
use crate::hub::{HubConfig, inventory};
use crate::member::Held;
use crate::pki::{CertificateInfo, Pin, RequestedKey, Token};
use crate::proto::{HubMessage, MemberMessage, hub_message, member_message};
use crate::reports::Assembly;

/// A hub's words to a member, each led by its length. Whatever they are, the member holds nothing, or what a whole
/// update announced.
pub fn hub_messages(mut bytes: &[u8]) {
    let hub = Hub {
        id: "h".into(),
        epoch: 1,
        member: "m".into(),
    };
    let (mut staging, mut held) = (Staging::default(), Held::default());
    while let Ok(message) = HubMessage::decode_length_delimited(&mut bytes) {
        let Some(hub_message::Message::Plan(frame)) = message.message else {
            if bytes.is_empty() {
                return;
            }
            continue;
        };
        if let Step::Ready { update, .. } = staging.accept(frame, &held, &hub) {
            if update.full {
                held.digests = BTreeMap::new();
            }
            held.digests.retain(|k, _| !update.removes.contains(k));
            let upserts = update.upserts.into_iter().map(|(key, (resource, digest))| {
                assert_eq!(resource.key(), key, "a resource under another's name");
                (key, digest)
            });
            held.digests.extend(upserts);
            held.hub_id = update.hub_id;
            held.epoch = update.epoch;
            assert_eq!(held.digest(), Some(update.target));
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// A member's words to the hub, each led by its length.
pub fn member_messages(mut bytes: &[u8]) {
    use member_message::Message;
    let config = HubConfig::new("h", 1);
    let mut reports = Assembly::default();
    while let Ok(message) = MemberMessage::decode_length_delimited(&mut bytes) {
        match message.message {
            Some(Message::Hello(hello)) => {
                if let Some(held) = inventory(&config, &hello) {
                    assert_eq!(Some(digest_of(&held)), digest(&hello.digest));
                }
            }
            Some(Message::Report(part)) => {
                let Ok(_) = reports.accept(&part) else { return };
            }
            _ => {}
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// What comes with joining: a token, a pin, a request for a certificate, a certificate.
pub fn joining(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Token::from_str(text);
        if let Ok(pin) = Pin::from_str(text) {
            assert_eq!(Pin::from_str(&pin.to_string()).ok(), Some(pin));
        }
    }
    let _ = RequestedKey::from_csr(bytes);
    let _ = CertificateInfo::read(&CertificateDer::from(bytes));
}

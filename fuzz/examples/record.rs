//! Writes what this version says on the link into `fuzz/corpus`, where it isn't recorded yet. What is there stays as it
//! was written: later versions must read it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool of ours")]

use std::fs;
use std::path::PathBuf;

use prost::Message as _;
use spillway_core::plan::{Digest, Plan, Resource, ResourceKey, ResourceKind};
use spillway_link::pki::{CertificateAuthority, KeyAndCsr, RequestedKey, Serial, Token};
use spillway_link::proto::{
    Ack, Held, Hello, HubMessage, Key, Leave, MemberMessage, Nack, Ping, PlanFrame, Pong, ReportPart, Resync,
    Upsert, Welcome, hub_message, member_message,
};

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let file = corpus().join(target).join(name);
    if !file.exists() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, bytes).unwrap();
        println!("{}", file.display());
    }
}

fn hub(messages: impl IntoIterator<Item = hub_message::Message>) -> Vec<u8> {
    let messages = messages.into_iter().map(|m| HubMessage { message: Some(m) });
    messages
        .flat_map(|m| m.encode_length_delimited_to_vec())
        .collect()
}

fn member(messages: impl IntoIterator<Item = member_message::Message>) -> Vec<u8> {
    let messages = messages.into_iter().map(|m| MemberMessage { message: Some(m) });
    messages
        .flat_map(|m| m.encode_length_delimited_to_vec())
        .collect()
}

fn resource(kind: ResourceKind) -> Resource {
    let bytes = fs::read(corpus().join("resources").join(kind.as_str())).unwrap();
    let name = String::new();
    match Resource::decode(&ResourceKey { kind, name }, &bytes).unwrap() {
        Resource::Member(mut own) => {
            own.member = "m".into();
            Resource::Member(own)
        }
        other => other,
    }
}

fn frame(nonce: u64, base: Option<&Plan>, plan: &Plan) -> PlanFrame {
    let upserts = plan.resources().map(|(key, resource, _)| Upsert {
        key: Some(Key {
            kind: key.kind.as_str().into(),
            name: key.name.clone(),
        }),
        content: resource.encode(),
    });
    let goes = base.map(Plan::digests).unwrap_or_default();
    PlanFrame {
        nonce,
        last: true,
        base_digest: base.map(|b| b.digest().as_bytes().to_vec()).unwrap_or_default(),
        target_digest: plan.digest().as_bytes().to_vec(),
        removal_intended: true,
        upserts: upserts.collect(),
        removes: goes
            .keys()
            .filter(|k| plan.get(k).is_none())
            .map(|k| Key {
                kind: k.kind.as_str().into(),
                name: k.name.clone(),
            })
            .collect(),
        ..PlanFrame::default()
    }
}

fn main() {
    use ResourceKind::{Gateway, Member, Peer, Policy};
    use hub_message::Message as H;
    use member_message::Message as M;
    let plan = Plan::new([Member, Peer, Gateway, Policy].map(resource));
    let fewer = Plan::new([Member, Policy].map(resource));
    let welcome = H::Welcome(Welcome {
        hub_id: "h".into(),
        epoch: 1,
        protocol: 1,
    });
    let first = H::Plan(frame(1, None, &plan));
    write(
        "hub-messages",
        "whole-plan",
        &hub([welcome.clone(), first.clone()]),
    );
    let delta = H::Plan(frame(2, Some(&plan), &fewer));
    write(
        "hub-messages",
        "whole-plan-and-delta",
        &hub([first, H::Ping(Ping {}), delta]),
    );
    let (one, two) = (frame(1, None, &plan), frame(1, None, &plan));
    let halves = [
        PlanFrame {
            last: false,
            upserts: one.upserts[..2].to_vec(),
            ..one
        },
        PlanFrame {
            index: 1,
            upserts: two.upserts[2..].to_vec(),
            ..two
        },
    ];
    write("hub-messages", "plan-in-pieces", &hub(halves.map(H::Plan)));

    let inventory = plan.digests().into_iter().map(|(key, digest)| Held {
        kind: key.kind.as_str().into(),
        name: key.name,
        digest: digest.as_bytes().to_vec(),
    });
    let hello = M::Hello(Hello {
        protocol: 1,
        agent_version: "0.1.0".into(),
        hub_id: "h".into(),
        epoch: 1,
        digest: plan.digest().as_bytes().to_vec(),
        inventory: inventory.collect(),
    });
    let digest = Digest::of(b"p").as_bytes().to_vec();
    let ack = M::Ack(Ack {
        nonce: 1,
        digest: digest.clone(),
    });
    let nack = M::Nack(Nack {
        nonce: 2,
        digest: digest.clone(),
        resource: "policy/a".into(),
        reason: "not now".into(),
    });
    let resync = M::Resync(Resync {
        nonce: 0,
        reason: "asked".into(),
    });
    write(
        "member-messages",
        "talk",
        &member([hello, ack, nack, resync, M::Pong(Pong {}), M::Leave(Leave {})]),
    );
    let nodes = ["a", "b"]
        .map(|n| format!(r#"{{"name":"{n}","ready":true,"labels":{{"egress":"true"}}}}"#).into_bytes());
    let part = |first, last, node: usize| {
        M::Report(ReportPart {
            first,
            last,
            agent_version: "0.1.0".into(),
            programmed: digest.clone(),
            nodes: vec![nodes[node].clone()],
            ranges: Vec::new(),
        })
    };
    write(
        "member-messages",
        "report",
        &member([part(true, false, 0), part(false, true, 1)]),
    );

    let key = KeyAndCsr::generate().unwrap();
    let authority = CertificateAuthority::generate("h").unwrap();
    let requested = RequestedKey::from_csr(&key.csr_der).unwrap();
    let day = std::time::Duration::from_secs(86_400);
    let issued = authority
        .issue_member(&requested, "m", Serial::random(), day)
        .unwrap();
    write("joining", "csr", &key.csr_der);
    write("joining", "certificate", &pem(&issued.chain_pem));
    write("joining", "token", Token::generate().expose().as_bytes());
    write("joining", "pin", authority.pin().to_string().as_bytes());
}

/// The bytes of the first block.
fn pem(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    let lines = text.lines().skip(1).take_while(|l| !l.starts_with("-----"));
    let joined: String = lines.collect();
    base64::engine::general_purpose::STANDARD.decode(joined).unwrap()
}

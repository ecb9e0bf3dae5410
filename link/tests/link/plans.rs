//! Plans on their way: what arrives, what doesn't, and who waits for whom.

use std::sync::Arc;
use std::time::Duration;

use spillway_core::plan::{Digest, Plan};
use spillway_crds::hub::MemberNode;
use spillway_link::MemberReport;
use spillway_link::hub::HubConfig;
use spillway_link::member::{ConnectionState, DisconnectReason, Held, LeaveError, RefusedUpdate};
use spillway_link::proto::{self, PlanFrame, hub_message, member_message};
use tokio::sync::Notify;

use crate::common::raw::{RawMember, Script, hello, scripted};
use crate::common::{Hub, HubEvent, Member, next, peer, plan, quick_config, within};

fn connected(state: &ConnectionState) -> Option<()> {
    matches!(state, ConnectionState::Connected { .. }).then_some(())
}

fn keys(member: &Member) -> Vec<String> {
    let contents = member.store.contents.lock().unwrap();
    contents.keys().map(|k| k.name.clone()).collect()
}

async fn start(hub: &Hub, name: &str) -> Member {
    let member = Member::start(vec![hub.endpoint()], hub.identity(name));
    member.state("the connection", connected).await;
    member
}

#[tokio::test]
async fn a_first_plan_is_whole_and_the_next_is_the_difference() {
    let mut hub = Hub::start().await;
    let mut member = start(&hub, "fra-1").await;
    let first = hub.store.publish("fra-1", &plan(&["a", "b", "c"]));
    let update = member.update().await;
    assert!(update.full && update.target == first);
    hub.acknowledged("fra-1", first).await;

    let second = hub.store.publish("fra-1", &plan(&["a", "b", "d"]));
    let update = member.update().await;
    assert!(!update.full);
    assert_eq!((update.upserts.len(), update.removes.len()), (1, 1));
    hub.acknowledged("fra-1", second).await;
    assert_eq!(keys(&member), ["a", "b", "d"]);
    assert_eq!(member.store.held.lock().unwrap().digest(), Some(second));
}

#[tokio::test]
async fn who_reconnects_with_the_plan_gets_nothing_and_who_missed_some_gets_that() {
    let mut hub = Hub::start().await;
    let mut member = start(&hub, "fra-1").await;
    let digest = hub.store.publish("fra-1", &plan(&["a", "b", "c"]));
    member.update().await;
    hub.acknowledged("fra-1", digest).await;

    let mut hub = hub.restart_with(quick_config()).await;
    assert_eq!(hub.connected("fra-1").await.held, Some(digest));
    // Held plans are told as acknowledged, though nothing was sent.
    hub.acknowledged("fra-1", digest).await;
    assert!(member.applied.try_recv().is_err());

    // What is deleted while it is away is gone after it comes back.
    let held = member.store.held.lock().unwrap().clone();
    drop(member);
    let fewer = hub.store.publish("fra-1", &plan(&["a", "b"]));
    let mut back = Member::start_holding(vec![hub.endpoint()], hub.identity("fra-1"), held);
    let update = back.update().await;
    assert!(!update.full && update.upserts.is_empty());
    assert_eq!((update.target, update.removes.len()), (fewer, 1));
}

#[tokio::test]
async fn a_hub_that_fell_behind_is_refused_and_one_that_rose_sends_all() {
    let mut hub = Hub::start().await;
    let mut member = start(&hub, "fra-1").await;
    let digest = hub.store.publish("fra-1", &plan(&["a"]));
    member.update().await;
    hub.acknowledged("fra-1", digest).await;

    let older = HubConfig {
        epoch: 4,
        ..quick_config()
    };
    let mut hub = hub.restart_with(older).await;
    hub.store.publish("fra-1", &plan(&["z"]));
    assert!(hub.refused("fra-1").await.reason.contains("epoch"));
    let why = |s: &ConnectionState| match s {
        ConnectionState::Connecting {
            reason: Some(why @ DisconnectReason::StaleHub { .. }),
        } => Some(why.clone()),
        _ => None,
    };
    let why = member.state("the refusal", why).await;
    assert_eq!(why, DisconnectReason::StaleHub { offered: 4, held: 5 });
    assert_eq!(keys(&member), ["a"]);

    let newer = HubConfig {
        epoch: 6,
        ..quick_config()
    };
    let hub = hub.restart_with(newer).await;
    hub.store.publish("fra-1", &plan(&["a", "z"]));
    let update = member.update().await;
    assert!(update.full && update.epoch == 6);
    assert_eq!(keys(&member), ["a", "z"]);
}

#[tokio::test]
async fn a_refusal_names_the_resource_keeps_the_old_plan_and_is_tried_again() {
    let mut hub = Hub::start().await;
    let mut member = start(&hub, "fra-1").await;
    let good = hub.store.publish("fra-1", &plan(&["a"]));
    member.update().await;
    hub.acknowledged("fra-1", good).await;

    *member.store.verdict.lock().unwrap() = Box::new(|update| {
        let at_fault = update.upserts.keys().find(|k| k.name == "bad").cloned();
        at_fault.map_or(Ok(()), |key| {
            Err(RefusedUpdate {
                resource: Some(key),
                reason: "not on the allow-list".into(),
            })
        })
    });
    let bad = hub.store.publish("fra-1", &plan(&["a", "bad"]));
    for _ in 0..2 {
        let refusal = hub.refused("fra-1").await;
        assert_eq!((refusal.digest, refusal.resource.as_str()), (bad, "peer/bad"));
        assert_eq!(refusal.reason, "not on the allow-list");
    }
    assert_eq!(keys(&member), ["a"]);

    // The old plan again: nothing is sent, and the hub knows that all is well.
    hub.store.publish("fra-1", &plan(&["a"]));
    hub.acknowledged("fra-1", good).await;
    let better = hub.store.publish("fra-1", &plan(&["a", "better"]));
    hub.acknowledged("fra-1", better).await;
    assert_eq!(keys(&member), ["a", "better"]);
}

#[tokio::test]
async fn an_agent_that_panics_refuses_and_lives_on() {
    let mut hub = Hub::start().await;
    let mut member = start(&hub, "fra-1").await;
    *member.store.verdict.lock().unwrap() = Box::new(|update| {
        assert!(!update.upserts.keys().any(|k| k.name == "bad"), "a bug");
        Ok(())
    });
    hub.store.publish("fra-1", &plan(&["bad"]));
    assert!(hub.refused("fra-1").await.reason.contains("failed"));
    // The test's own lock was held by the one that panicked.
    member.store.verdict.clear_poison();
    let digest = hub.store.publish("fra-1", &plan(&["good"]));
    assert_eq!(member.update().await.target, digest);
}

#[tokio::test]
async fn losing_everything_needs_the_hubs_word() {
    let mut hub = Hub::start().await;
    let mut member = start(&hub, "fra-1").await;
    hub.store.publish("fra-1", &plan(&["a", "b"]));
    member.update().await;
    hub.store.publish("fra-1", &Plan::default());
    assert!(hub.refused("fra-1").await.reason.contains("2 of 2"));
    assert_eq!(keys(&member), ["a", "b"]);
    let empty = hub.store.publish_as("fra-1", &Plan::default(), true);
    hub.acknowledged("fra-1", empty).await;
    assert!(keys(&member).is_empty());
}

#[tokio::test]
async fn a_large_plan_travels_in_pieces() {
    let mut hub = Hub::start().await;
    let mut member = start(&hub, "fra-1").await;
    let large = Plan::new((0..120).map(|i| peer(&format!("m{i}"), 300)));
    let size: usize = large.resources().map(|(_, r, _)| r.encode().len()).sum();
    assert!(size > 5_000_000, "{size}");
    let digest = hub.store.publish("fra-1", &large);
    assert_eq!(member.update().await.target, digest);
    hub.acknowledged("fra-1", digest).await;
}

#[tokio::test]
async fn a_member_that_reads_nothing_delays_nobody_and_only_the_newest_plan_follows() {
    let mut hub = Hub::start().await;
    let ca = hub.authority.certificate_pem().to_owned();
    let identity = hub.identity("slow");
    let mut slow = RawMember::connect(hub.address, &ca, Some(&identity), hello())
        .await
        .unwrap();
    hub.connected("slow").await;
    let large = |seed: usize| Plan::new((0..120).map(|i| peer(&format!("m{seed}-{i}"), 300)));
    let first = hub.store.publish_as("slow", &large(0), true);

    let mut quick = start(&hub, "quick").await;
    for round in 1..5 {
        hub.store.publish_as("slow", &large(round), true);
        let digest = hub.store.publish("quick", &plan(&["a", &format!("r{round}")]));
        assert_eq!(quick.update().await.target, digest);
    }

    let mut frame = slow.frame().await;
    while !frame.last {
        frame = slow.frame().await;
    }
    assert_eq!(
        (frame.nonce, frame.target_digest.as_slice()),
        (1, first.as_bytes().as_slice())
    );
    slow.say(member_message::Message::Ack(proto::Ack {
        nonce: 1,
        digest: first.as_bytes().to_vec(),
    }))
    .await;
    let frame = slow.frame().await;
    assert_eq!(frame.nonce, 2);
    assert_eq!(
        frame.target_digest,
        large(4).digest().as_bytes(),
        "those between are skipped"
    );
}

#[tokio::test]
async fn acknowledgements_of_another_update_are_ignored() {
    let mut hub = Hub::start().await;
    let ca = hub.authority.certificate_pem().to_owned();
    let identity = hub.identity("fra-1");
    let mut raw = RawMember::connect(hub.address, &ca, Some(&identity), hello())
        .await
        .unwrap();
    let first = hub.store.publish("fra-1", &plan(&["a"]));
    assert_eq!(raw.frame().await.nonce, 1);
    let ack = |nonce, digest: Digest| {
        member_message::Message::Ack(proto::Ack {
            nonce,
            digest: digest.as_bytes().to_vec(),
        })
    };
    let second = hub.store.publish("fra-1", &plan(&["b"]));
    raw.say(ack(2, first)).await;
    raw.say(ack(0, first)).await;
    raw.say(ack(1, second)).await;
    raw.say(ack(1, first)).await;
    let acknowledged = hub
        .next("the acknowledgement", |e| match e {
            HubEvent::Acknowledged(_, digest) => Some(*digest),
            _ => None,
        })
        .await;
    assert_eq!(acknowledged, first);
    let frame = raw.frame().await;
    assert_eq!(
        (frame.nonce, frame.base_digest.as_slice()),
        (2, first.as_bytes().as_slice())
    );
}

#[tokio::test]
async fn a_silent_member_is_cut_off() {
    let config = HubConfig {
        ping_interval: Duration::from_millis(50),
        silence_limit: Duration::from_millis(300),
        ..quick_config()
    };
    let mut hub = Hub::start_with(config).await;
    let ca = hub.authority.certificate_pem().to_owned();
    let silent = hub.identity("silent");
    // Ours answers pings, and so stays.
    let member = start(&hub, "fra-1").await;
    let _raw = RawMember::connect(hub.address, &ca, Some(&silent), hello())
        .await
        .unwrap();
    assert!(hub.disconnected("silent").await.contains("silent"));
    member.state("the connection", connected).await;
}

#[tokio::test]
async fn a_newer_stream_ends_the_older_first() {
    let mut hub = Hub::start().await;
    let ca = hub.authority.certificate_pem().to_owned();
    let identity = hub.identity("fra-1");
    let _first = RawMember::connect(hub.address, &ca, Some(&identity), hello())
        .await
        .unwrap();
    let first = hub.connected("fra-1").await;
    let _second = RawMember::connect(hub.address, &ca, Some(&identity), hello())
        .await
        .unwrap();
    let mut order = Vec::new();
    hub.next("the second connection", |e| {
        match e {
            HubEvent::Disconnected(info, _) => order.push(("end", info.id)),
            HubEvent::Connected(info) => order.push(("begin", info.id)),
            _ => {}
        }
        (order.len() == 2).then_some(())
    })
    .await;
    assert_eq!(order[0], ("end", first.id));
    assert_eq!(order[1].0, "begin");
}

#[tokio::test]
async fn reports_arrive_whole_and_the_newest_wins() {
    let mut hub = Hub::start().await;
    let member = start(&hub, "fra-1").await;
    let report = MemberReport {
        nodes: (0..500)
            .map(|i| MemberNode {
                name: format!("n{i}"),
                message: "x".repeat(1000),
                ..MemberNode::default()
            })
            .collect(),
        programmed: Some(Digest::of(b"p")),
        agent_version: "1".into(),
        ..MemberReport::default()
    };
    member.store.report.send_replace(report.clone());
    hub.next("the report", |e| match e {
        HubEvent::Reported(m, r) if m == "fra-1" && *r == report => Some(()),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn leaving_is_answered_even_though_it_revokes() {
    let mut hub = Hub::start().await;
    let member = start(&hub, "fra-1").await;
    assert_eq!(member.handle.leave(Duration::from_secs(10)).await, Ok(()));
    hub.next("the leave", |e| {
        matches!(e, HubEvent::Left(m) if m == "fra-1").then_some(())
    })
    .await;
    let left = |s: &ConnectionState| (*s == ConnectionState::Left).then_some(());
    member.state("the end", left).await;
    let again = member.handle.leave(Duration::from_secs(10)).await;
    assert_eq!(again, Err(LeaveError::Stopped));
}

#[tokio::test]
async fn what_is_being_stored_is_stored_to_the_end_when_the_hub_goes_away() {
    let mut hub = Hub::start().await;
    let mut member = start(&hub, "fra-1").await;
    let gate = Arc::new(Notify::new());
    *member.store.gate.lock().unwrap() = Some(gate.clone());
    let digest = hub.store.publish("fra-1", &plan(&["a"]));
    hub.connected("fra-1").await;
    let hub = hub.restart_with(quick_config()).await;
    gate.notify_one();
    assert_eq!(member.update().await.target, digest);
    drop(hub);
}

#[tokio::test]
async fn the_second_endpoint_serves_while_the_first_is_dead() {
    let hub = Hub::start().await;
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = unused.local_addr().unwrap().to_string();
    drop(unused);
    let member = Member::start(vec![dead, hub.endpoint()], hub.identity("fra-1"));
    let at = |s: &ConnectionState| match s {
        ConnectionState::Connected { endpoint, .. } => Some(endpoint.clone()),
        _ => None,
    };
    assert_eq!(member.state("the connection", at).await, hub.endpoint());
}

#[tokio::test]
async fn a_resync_repairs_what_was_damaged() {
    let mut hub = Hub::start().await;
    let mut member = start(&hub, "fra-1").await;
    let digest = hub.store.publish("fra-1", &plan(&["a", "b"]));
    member.update().await;
    hub.acknowledged("fra-1", digest).await;
    member.handle.resync();
    let update = member.update().await;
    assert!(update.full && update.target == digest && update.upserts.len() == 2);
}

/// Frames of a whole plan, one resource a piece.
fn pieces(nonce: u64, plan: &Plan) -> Vec<PlanFrame> {
    let count = plan.len();
    (0u32..)
        .zip(plan.resources())
        .map(|(index, (key, resource, _))| PlanFrame {
            nonce,
            index,
            last: index as usize + 1 == count,
            target_digest: plan.digest().as_bytes().to_vec(),
            upserts: vec![proto::Upsert {
                key: Some(proto::Key {
                    kind: key.kind.as_str().into(),
                    name: key.name.clone(),
                }),
                content: resource.encode(),
            }],
            ..PlanFrame::default()
        })
        .collect()
}

async fn answer(script: &mut Script) -> member_message::Message {
    next(&mut script.heard, "an answer", |m| match m {
        member_message::Message::Hello(_)
        | member_message::Message::Report(_)
        | member_message::Message::Pong(_) => None,
        other => Some(other.clone()),
    })
    .await
}

#[tokio::test]
async fn repeated_cut_off_and_altered_pieces_do_no_harm() {
    let authority = spillway_link::pki::CertificateAuthority::generate("hub-1").unwrap();
    let mut script = scripted(&authority).await;
    let identity = crate::common::identity(&authority, "fra-1", crate::common::DAY);
    let mut member = Member::start_holding(vec![script.address.to_string()], identity, Held::default());
    let good = plan(&["a", "b", "c"]);

    // A piece is missing.
    let mut cut = pieces(1, &good);
    cut.remove(1);
    // A content was altered on the way.
    let mut altered = pieces(2, &good);
    altered[2].upserts[0].content = peer("c", 1).encode();
    // The end comes too early.
    let mut early = pieces(3, &good);
    early[1].last = true;
    early.truncate(2);
    for (nonce, frames) in [(1, cut), (2, altered), (3, early)] {
        for frame in frames {
            script.send(hub_message::Message::Plan(frame)).await;
        }
        match answer(&mut script).await {
            member_message::Message::Resync(resync) => assert_eq!(resync.nonce, nonce),
            other => panic!("{other:?}"),
        }
    }
    assert!(member.applied.try_recv().is_err());

    // Every piece twice, and the whole once more.
    let twice: Vec<_> = pieces(4, &good)
        .into_iter()
        .flat_map(|f| [f.clone(), f])
        .collect();
    for frame in twice.into_iter().chain(pieces(4, &good)) {
        script.send(hub_message::Message::Plan(frame)).await;
    }
    match answer(&mut script).await {
        member_message::Message::Ack(ack) => assert_eq!(ack.digest, good.digest().as_bytes()),
        other => panic!("{other:?}"),
    }
    assert_eq!(member.update().await.target, good.digest());
    // An old update doesn't come back.
    for frame in pieces(3, &plan(&["z"])).into_iter().chain(pieces(5, &good)) {
        script.send(hub_message::Message::Plan(frame)).await;
    }
    assert_eq!(member.update().await.target, good.digest());
    assert!(within("no more", async { member.applied.try_recv().is_err() }).await);
    assert_eq!(keys(&member), ["a", "b", "c"]);
}

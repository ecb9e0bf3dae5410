//! The apply loop's end, with the prober played by the test.

use spillway_core::node::fixtures;
use spillway_crds::member::GatewayNodeState;

use super::*;

const EIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10));

/// b-1 and b-2 are the gateway; this is b-1.
fn two() -> NodeInputs {
    let mut inputs = fixtures::gateway();
    let plan = inputs.plan.as_mut().expect("a plan");
    let mut other = plan.gateways[0].nodes[0].clone();
    other.node = fixtures::node_ref("b", "b-2");
    plan.gateways[0].nodes.push(other);
    let mut second = fixtures::node_of(3);
    second.overlay = fixtures::node_of(4).overlay;
    inputs.nodes.insert("b-2".into(), second);
    inputs
}

fn held() -> BTreeMap<IpAddr, String> {
    BTreeMap::from([(EIP, "frankfurt".to_owned())])
}

fn alive() -> Liveness {
    Liveness {
        alive: [fixtures::node_ref("b", "b-1"), fixtures::node_ref("b", "b-2")].into(),
        ..Liveness::default()
    }
}

#[tokio::test]
async fn an_address_is_given_away_when_its_successor_says_that_it_has_it() {
    let (mut failover, orders, view) = Failover::apart();
    view.send_modify(|v| v.liveness = alive());
    let mut inputs = two();
    failover.prepare(&two(), &mut inputs);
    assert!(inputs.liveness.kept.is_empty());
    failover.done(&inputs, Some(&held()));
    assert!(orders.borrow().held.contains(&EIP) && orders.borrow().programmed.is_some());

    // b-1 is drained by the plan: nothing may be lost.
    let before = inputs;
    let drained = || {
        let mut inputs = two();
        inputs.plan.as_mut().expect("a plan").gateways[0].nodes[0].state = GatewayNodeState::Draining;
        inputs
    };
    let mut inputs = drained();
    failover.prepare(&before, &mut inputs);
    assert_eq!(inputs.liveness.kept, [EIP].into());
    failover.done(&inputs, Some(&held()));
    let b2 = fixtures::node_ref("b", "b-2");
    assert_eq!(
        orders.borrow().asked,
        BTreeMap::from([(b2.clone(), [EIP].into())])
    );

    view.send_modify(|v| v.confirmed = BTreeMap::from([(b2, [EIP].into())]));
    failover.due().await;
    let before = inputs;
    let mut inputs = drained();
    failover.prepare(&before, &mut inputs);
    assert!(inputs.liveness.kept.is_empty());
    failover.done(&inputs, Some(&BTreeMap::new()));
    assert!(orders.borrow().asked.is_empty() && failover.holdings().is_empty());
}

#[tokio::test]
async fn what_is_taken_over_has_a_reason_and_what_was_there_has_none() {
    let (mut failover, _orders, view) = Failover::apart();
    let mut inputs = two();
    failover.prepare(&two(), &mut inputs);
    failover.done(&inputs, Some(&held()));
    assert_eq!(failover.holdings()[0].reason, None);

    let (mut failover, _second, other) = Failover::apart();
    other.send_modify(|v| v.liveness = alive());
    let me = |mut inputs: NodeInputs| {
        inputs.node = "b-2".into();
        inputs
    };
    let mut inputs = me(two());
    failover.prepare(&me(two()), &mut inputs);
    failover.done(&inputs, Some(&BTreeMap::new()));
    other.send_modify(|v| {
        let b1 = fixtures::node_ref("b", "b-1");
        v.liveness.alive.remove(&b1);
        v.liveness.dead.insert(b1);
    });
    let before = inputs;
    let mut inputs = me(two());
    failover.prepare(&before, &mut inputs);
    failover.done(&inputs, Some(&held()));
    let holding = &failover.holdings()[0];
    assert_eq!(holding.reason.as_deref(), Some("node b/b-1 doesn't answer"));
    drop(view);
}

#[tokio::test]
async fn what_is_held_is_announced_once_more_when_a_colleague_dies() {
    let (mut failover, _orders, view) = Failover::apart();
    view.send_modify(|v| v.liveness = alive());
    let mut inputs = two();
    failover.prepare(&two(), &mut inputs);
    failover.done(&inputs, Some(&held()));
    assert!(failover.take_unannounced().is_empty());
    view.send_modify(|v| {
        let b2 = fixtures::node_ref("b", "b-2");
        v.liveness.alive.remove(&b2);
        v.liveness.dead.insert(b2);
    });
    let before = inputs;
    let mut inputs = two();
    failover.prepare(&before, &mut inputs);
    failover.done(&inputs, Some(&held()));
    assert_eq!(failover.take_unannounced(), [EIP]);
    assert!(failover.take_unannounced().is_empty(), "once");
}

#[tokio::test]
async fn an_ending_agent_waits_for_its_successor_but_not_for_ever() {
    let (mut failover, orders, view) = Failover::apart();
    // No gateway: nobody minds.
    failover.farewell().say().await;
    assert!(!orders.borrow().leaving);

    view.send_modify(|v| v.liveness = alive());
    let mut inputs = two();
    failover.prepare(&two(), &mut inputs);
    failover.done(&inputs, Some(&held()));
    let limit = Duration::from_millis(200);
    let started = Instant::now();
    failover.farewell().say_within(limit).await;
    assert!(orders.borrow().leaving);
    assert!(started.elapsed() >= FAREWELL + limit, "nobody took it");

    // Everybody knows that it goes, and somebody else has it.
    view.send_modify(|v| {
        let b1 = fixtures::node_ref("b", "b-1");
        v.liveness.alive.remove(&b1);
        v.liveness.retiring.insert(b1);
        v.confirmed = BTreeMap::from([(fixtures::node_ref("b", "b-2"), [EIP].into())]);
    });
    let before = inputs;
    let mut inputs = two();
    failover.prepare(&before, &mut inputs);
    failover.done(&inputs, Some(&BTreeMap::new()));
    let limit = Duration::from_secs(60);
    failover.farewell().say_within(limit).await;
}

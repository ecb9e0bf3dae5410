//! The compiler against an oracle that decides for one pod and one destination, straight from the words of
//! the plan.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use proptest::prelude::*;
use spillway_crds::address::AddressPair;
use spillway_crds::hub::{DestinationPort, Destinations, OnUnavailable, Protocol, Sources};
use spillway_crds::member::{PlannedPolicySpec, PlannedThrough, PolicyRef};

use super::flows::Verdict;
use super::inputs::NodeInputs;
use super::{compile, fixtures};

/// Destinations crowd around this address.
const BASE: u32 = u32::from_be_bytes([198, 51, 100, 0]);

fn cidrs() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec((24u8..=32, 0u32..32), 0..3).prop_map(|list| {
        let net = |(length, low)| IpNet::new(Ipv4Addr::from(BASE + low).into(), length);
        list.into_iter()
            .map(|n| net(n).expect("length").trunc().to_string())
            .collect()
    })
}

/// Ports crowd around 443.
fn port() -> impl Strategy<Value = DestinationPort> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp]);
    let range = prop::option::of((440i32..446, prop::option::of(0i32..4)));
    (protocol, range).prop_map(|(protocol, range)| {
        let range = range.filter(|_| protocol != Protocol::Icmp);
        DestinationPort {
            protocol,
            port: range.map(|(port, _)| port),
            end_port: range.and_then(|(port, more)| Some(port + more?)),
        }
    })
}

/// Packets that policies may tell apart: the protocol, its number and a port.
const PACKETS: [(Option<Protocol>, u8, u16); 9] = [
    (Some(Protocol::Tcp), 6, 439),
    (Some(Protocol::Tcp), 6, 442),
    (Some(Protocol::Tcp), 6, 443),
    (Some(Protocol::Tcp), 6, 448),
    (Some(Protocol::Udp), 17, 443),
    (Some(Protocol::Udp), 17, 53),
    (Some(Protocol::Icmp), 1, 0),
    (Some(Protocol::Sctp), 132, 443),
    (None, 47, 443),
];

prop_compose! {
    fn policy()(
        name in "[a-d]",
        created in 0i64..3,
        priority in -1i32..2,
        sources in prop::option::weighted(0.2, prop::sample::select(vec![
            "10.244.0.5/32".to_owned(), "10.244.0.4/30".to_owned(), "10.244.9.0/24".to_owned()])),
        app in "[xy]",
        cidrs in cidrs(),
        except in cidrs(),
        ports in prop::option::weighted(0.4, prop::collection::vec(port(), 1..3)),
        through in prop::collection::vec(0usize..3, 0..3),
        block in any::<bool>(),
    ) -> PlannedPolicySpec {
        let ports = ports.unwrap_or_default();
        PlannedPolicySpec {
            source: PolicyRef { namespace: Some("payments".into()), name },
            created,
            priority,
            namespaces: None,
            pods: fixtures::app(&app),
            sources: sources.map(|cidrs| Sources { cidrs: vec![cidrs] }),
            to: Destinations { cidrs, except, ports },
            bandwidth: None,
            through: through
                .into_iter()
                .map(|g| PlannedThrough { gateway: format!("g{g}"), identity: identity(g) })
                .collect(),
            on_unavailable: if block { OnUnavailable::Block } else { OnUnavailable::NodeIP },
        }
    }
}

fn identity(gateway: usize) -> u16 {
    u16::try_from(gateway).expect("few") + 10
}

prop_compose! {
    /// Gateways g0 to g2, each with or without a ready node and an IPv4 egress IP.
    fn inputs()(
        policies in prop::collection::btree_map("[a-d]", policy(), 0..4),
        gateways in prop::collection::vec((any::<bool>(), prop::bool::weighted(0.8)), 3),
    ) -> NodeInputs {
        let mut inputs = fixtures::source();
        inputs.pods = vec![
            fixtures::pod("x", "x", &["10.244.0.5"]),
            fixtures::pod("y", "y", &["10.244.0.6"]),
        ];
        if let Some(plan) = &mut inputs.plan {
            // One object a name, as in any API server.
            plan.policies = policies
                .into_iter()
                .map(|(name, mut p)| { p.source.name = name; p })
                .collect();
            plan.gateways = gateways
                .into_iter()
                .enumerate()
                .map(|(g, (ready, v4))| {
                    let egress = AddressPair { ipv4: v4.then(|| format!("203.0.113.{g}")), ipv6: None };
                    let nodes = if ready { vec![fixtures::node_ref("b", "b-1")] } else { Vec::new() };
                    fixtures::gateway_of(&format!("g{g}"), identity(g), egress, nodes, false)
                })
                .collect();
        }
        inputs
    }
}

/// What the plan says about one packet.
fn oracle(
    inputs: &NodeInputs,
    pod: IpAddr,
    app: &str,
    destination: IpAddr,
    (protocol, port): (Option<Protocol>, u16),
) -> Option<Verdict> {
    let plan = inputs.plan.as_ref().expect("a plan");
    let within = |list: &[String]| {
        list.iter()
            .map(|c| c.parse::<IpNet>().expect("CIDR"))
            .filter(|c| c.contains(&destination))
            .map(|c| c.prefix_len())
            .max()
    };
    let selected = |p: &&PlannedPolicySpec| {
        let from = |s: &Sources| {
            s.cidrs
                .iter()
                .any(|c| c.parse::<IpNet>().expect("CIDR").contains(&pod))
        };
        p.pods == fixtures::app(app) && p.sources.as_ref().is_none_or(from)
    };
    // How many ports the narrowest entry around the packet's port has.
    let around = |policy: &PlannedPolicySpec| {
        let sizes = policy.to.ports.iter().filter_map(|entry| {
            if Some(entry.protocol) != protocol {
                return None;
            }
            let Some(first) = entry.port else {
                return Some(65_536);
            };
            let last = entry.end_port.unwrap_or(first);
            (first..=last)
                .contains(&i32::from(port))
                .then_some(last - first + 1)
        });
        sizes.min()
    };
    let mut claims: Vec<(u8, i32, i32, i64, &str, &PlannedPolicySpec)> = Vec::new();
    for policy in plan.policies.iter().filter(selected) {
        let length = if policy.to.cidrs.is_empty() {
            Some(0)
        } else {
            within(&policy.to.cidrs)
        };
        let ports = if policy.to.ports.is_empty() {
            Some(i32::MAX)
        } else {
            around(policy)
        };
        if let (Some(length), Some(ports), None) = (length, ports, within(&policy.to.except)) {
            claims.push((
                u8::MAX - length,
                ports,
                -policy.priority,
                policy.created,
                &policy.source.name,
                policy,
            ));
        }
    }
    claims.sort_by_key(|(length, ports, priority, created, name, _)| {
        (*length, *ports, *priority, *created, *name)
    });
    let (.., policy) = claims.first()?;
    let v4 = |g: &&spillway_crds::member::PlannedGatewaySpec| g.identities[0].egress_ip.ipv4.is_some();
    let there = policy.through.iter().filter_map(|t| {
        let gateway = plan.gateways.iter().find(|g| g.gateway == t.gateway);
        gateway
            .filter(|g| !g.nodes.is_empty())
            .map(|g| (t.identity, v4(&g)))
    });
    let there: Vec<(u16, bool)> = there.collect();
    let others: Vec<u16> = there
        .iter()
        .filter(|(id, v4)| *v4 && *id != there[0].0)
        .map(|(id, _)| *id)
        .collect();
    match there.first() {
        Some((_, false)) => Some(Verdict::Block),
        Some((id, true)) if others.is_empty() => Some(Verdict::Identity(*id)),
        Some((id, true)) => Some(Verdict::Prefer(*id, others.into_iter().collect())),
        None if policy.on_unavailable == OnUnavailable::NodeIP => None,
        None if policy.through.is_empty() => Some(Verdict::Block),
        None => Some(Verdict::Wait(policy.through.iter().map(|t| t.identity).collect())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_packet_goes_where_the_plan_says(inputs in inputs(), far in any::<u32>()) {
        let state = compile(&inputs);
        for (pod, app) in [("10.244.0.5", "x"), ("10.244.0.6", "y")] {
            let pod: IpAddr = pod.parse().expect("address");
            let near = (0..40).map(|low| BASE + low).chain([BASE - 1, BASE + 255, BASE + 256, far]);
            for destination in near.map(|a| IpAddr::from(Ipv4Addr::from(a))) {
                let local = state.flows.local.iter().any(|i| i.contains(destination));
                for (protocol, number, port) in PACKETS {
                    let found = state.flows.judge(pod, destination, (number, port));
                    let expected = oracle(&inputs, pod, app, destination, (protocol, port)).filter(|_| !local);
                    prop_assert_eq!(found, expected, "{} to {}, {:?} {}", app, destination, protocol, port);
                }
            }
        }
    }

    #[test]
    fn every_chain_and_set_that_is_named_exists(inputs in inputs()) {
        let table = compile(&inputs).ruleset.expect("a table");
        let rules: Vec<&String> = table.chains.values().flat_map(|c| &c.rules).collect();
        for word in rules.iter().flat_map(|r| r.split(' ')) {
            if let Some(set) = word.strip_prefix('@').filter(|s| !s.starts_with("th,")) {
                prop_assert!(table.sets.contains_key(set), "{}", set);
            }
        }
        for value in table.sets.values().flat_map(|s| s.elements.values()).flatten() {
            if let super::nft::Atom::Jump(chain) | super::nft::Atom::Goto(chain) = value {
                prop_assert!(table.chains.contains_key(chain), "{}", chain);
            }
        }
    }
}

//! Who leaves with which egress IP, from what users wrote to what nodes hold, against an oracle that knows nothing of
//! either.

mod oracle;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use proptest::prelude::*;
use spillway_core::node::compile;
use spillway_core::node::flows::Verdict;
use spillway_core::node::inputs::{NodeInputs, NodePlan, Pod};
use spillway_core::plan::Resource;
use spillway_core::resolve::{FederationState, GatewayInput, MemberInput, PolicyInput, Resolution, resolve};
use spillway_crds::address::AddressPair;
use spillway_crds::hub::{
    AddressPool, DestinationPort, Destinations, EgressGatewaySpec, GatewayNodes, MemberNode, Protocol,
    Sources, Through, Translation,
};
use spillway_crds::member::{EgressNodeSpec, PolicyRef};
use spillway_crds::{ConditionType, LabelSelector};

use oracle::{
    CROWD, GATEWAYS, MEMBERS, NAMESPACES, Probe, Rule, Subject, egress_ip, leaves_with, member_labels,
    namespace_labels, oracle, rule, subject,
};
use words::Dice;

fn written(rule: &Rule) -> PolicyInput {
    let texts = |list: &[Ipv4Net]| list.iter().map(ToString::to_string).collect();
    PolicyInput {
        source: source(rule),
        created: rule.created,
        members: rule.members.written(),
        namespaces: rule.namespace.is_none().then(|| rule.namespaces.written()),
        pods: rule.pods.written(),
        sources: (!rule.sources.is_empty()).then(|| Sources {
            cidrs: texts(&rule.sources),
        }),
        to: Destinations {
            cidrs: texts(&rule.cidrs),
            except: texts(&rule.except),
            ports: rule
                .ports
                .iter()
                .map(|(protocol, range)| DestinationPort {
                    protocol: *protocol,
                    port: range.map(|(first, _)| first.into()),
                    end_port: range
                        .filter(|(first, last)| first < last)
                        .map(|(_, last)| last.into()),
                })
                .collect(),
        },
        priority: rule.priority,
        through: rule
            .through
            .iter()
            .map(|(gateway, fixed)| Through {
                gateway: GATEWAYS[*gateway].into(),
                egress_ip: fixed.map(|digit| AddressPair {
                    ipv4: Some(egress_ip(*gateway, digit).to_string()),
                    ipv6: None,
                }),
                ..Through::default()
            })
            .collect(),
        ..PolicyInput::default()
    }
}

fn source(rule: &Rule) -> PolicyRef {
    PolicyRef {
        namespace: rule.namespace.map(Into::into),
        name: rule.name.clone(),
    }
}

fn federation(rules: &[Rule]) -> FederationState {
    let members = MEMBERS.iter().zip(1u16..).map(|(name, id)| MemberInput {
        name: (*name).into(),
        created: i64::from(id),
        labels: member_labels(name),
        partition: "default".into(),
        reported: true,
        nodes: vec![MemberNode {
            name: format!("{name}-n1"),
            overlay: AddressPair {
                ipv4: Some(format!("100.64.{}.1", id * 4)),
                ipv6: Some(format!("fd64:5711:0:{id:x}::1")),
            },
            underlay: AddressPair {
                ipv4: Some(format!("172.30.{id}.1")),
                ipv6: None,
            },
            ready: true,
            ..MemberNode::default()
        }],
        ..MemberInput::default()
    });
    let gateways = GATEWAYS.iter().enumerate().map(|(i, name)| GatewayInput {
        name: (*name).into(),
        spec: EgressGatewaySpec {
            // Every member hosts one, so all ways out are walked: here and through the tunnel.
            nodes: vec![GatewayNodes {
                member: MEMBERS[i].into(),
                selector: LabelSelector::default(),
            }],
            addresses: AddressPool {
                ipv4: vec![format!("{}-{}", egress_ip(i, 0), egress_ip(i, 9))],
                ..AddressPool::default()
            },
            translation: Translation::GatewayNode,
            ..EgressGatewaySpec::default()
        },
        ..GatewayInput::default()
    });
    FederationState {
        members: members.collect(),
        gateways: gateways.collect(),
        policies: rules.iter().map(written).collect(),
        ..FederationState::default()
    }
}

/// Resolves until everything is recorded.
fn settle(state: &mut FederationState) -> Resolution {
    for _ in 0..5 {
        let resolution = resolve(state);
        if resolution.allocations.is_empty() {
            return resolution;
        }
        for member in &mut state.members {
            if let Some(given) = resolution.allocations.members.get(&member.name) {
                member.member_id = Some(given.id);
                member.overlay = Some(given.overlay.clone());
            }
        }
        for gateway in &mut state.gateways {
            if let Some(given) = resolution.allocations.gateways.get(&gateway.name) {
                gateway.identities.clone_from(&given.identities);
                gateway.slices.clone_from(&given.slices);
            }
        }
    }
    panic!("allocations never settle")
}

/// The inputs of the member's node.
fn inputs(state: &FederationState, resolution: &Resolution, member: &str, pods: &[Subject]) -> NodeInputs {
    let plan = &resolution.plans[member];
    let mut planned = NodePlan {
        digest: plan.digest().to_string(),
        ..NodePlan::default()
    };
    for (_, resource, _) in plan.resources() {
        match resource.clone() {
            Resource::Member(m) => planned.member = m,
            Resource::Policy(p) => planned.policies.push(p),
            Resource::Gateway(g) => planned.gateways.push(g),
            Resource::Peer(p) => planned.peers.push(p),
        }
    }
    let node = &state
        .members
        .iter()
        .find(|m| m.name == member)
        .expect("a member")
        .nodes[0];
    let spec = EgressNodeSpec {
        overlay: node.overlay.clone(),
        underlay: node.underlay.clone(),
        incarnation: None,
    };
    NodeInputs {
        node: node.name.clone(),
        plan: Some(planned),
        nodes: [(node.name.clone(), spec)].into(),
        namespaces: NAMESPACES
            .iter()
            .map(|n| ((*n).to_owned(), namespace_labels(n)))
            .collect(),
        pods: pods
            .iter()
            .filter(|p| p.member == member)
            .enumerate()
            .map(|(i, p)| Pod {
                namespace: p.namespace.into(),
                name: format!("pod-{i}"),
                labels: p.labels.clone(),
                addresses: [IpAddr::from(p.address)].into(),
                ..Pod::default()
            })
            .collect(),
        ..NodeInputs::default()
    }
}

/// What a node makes of each probe: the egress IP, or nothing where the packet is left alone.
type Effective = BTreeMap<(&'static str, Ipv4Addr, Probe), Option<Ipv4Addr>>;

/// A packet's protocol number and port.
fn numbers(packet: Option<(Protocol, u16)>) -> (u8, u16) {
    match packet {
        None => (47, 0),
        Some((Protocol::Tcp, port)) => (6, port),
        Some((Protocol::Udp, port)) => (17, port),
        Some((Protocol::Sctp, port)) => (132, port),
        Some((Protocol::Icmp, _)) => (1, 0),
    }
}

/// Kinds of packets that rules may tell apart.
const PACKETS: [Option<(Protocol, u16)>; 8] = [
    Some((Protocol::Tcp, 437)),
    Some((Protocol::Tcp, 440)),
    Some((Protocol::Tcp, 443)),
    Some((Protocol::Udp, 440)),
    Some((Protocol::Udp, 53)),
    Some((Protocol::Sctp, 440)),
    Some((Protocol::Icmp, 0)),
    None,
];

fn effective(
    state: &FederationState,
    resolution: &Resolution,
    pods: &[Subject],
    probes: &[Probe],
) -> Effective {
    let mut all = Effective::new();
    for member in MEMBERS {
        let inputs = inputs(state, resolution, member, pods);
        let flows = compile(&inputs).flows;
        let plan = inputs.plan.as_ref().expect("set above");
        let identities = plan.gateways.iter().flat_map(|g| &g.identities);
        let addresses: BTreeMap<u16, Ipv4Addr> = identities
            .map(|i| {
                (
                    i.id,
                    i.egress_ip
                        .ipv4
                        .as_ref()
                        .expect("IPv4 pools")
                        .parse()
                        .expect("an address"),
                )
            })
            .collect();
        for pod in pods.iter().filter(|p| p.member == member) {
            for probe in probes {
                let (to, packet) = *probe;
                let verdict = flows.judge(pod.address.into(), to.into(), numbers(packet));
                let egress = verdict.map(|verdict| match verdict {
                    Verdict::Identity(id) | Verdict::Prefer(id, _) => addresses[&id],
                    blocked => panic!("{blocked:?}, though all gateways are there"),
                });
                all.insert((member, pod.address, *probe), egress);
            }
        }
    }
    all
}

fn agree(seed: u64, policies: usize, pods: u32, probes: u32) {
    let mut dice = Dice(seed);
    let mut rules: Vec<Rule> = (0..policies).map(|i| rule(&mut dice, i)).collect();
    let mut names = BTreeSet::new();
    rules.retain(|r| names.insert((r.namespace, r.name.clone())));
    let pods: Vec<Subject> = (0..pods).map(|i| subject(&mut dice, i)).collect();
    let probes: Vec<Probe> = (0..probes)
        .map(|i| {
            let to = match i {
                0 | 1 => Ipv4Addr::new(8, 8, 8, 8),
                2 => Ipv4Addr::new(198, 51, 7, 7),
                _ => Ipv4Addr::from(CROWD + dice.below(70)),
            };
            (to, dice.of(&PACKETS))
        })
        .collect();
    let mut state = federation(&rules);
    let resolution = settle(&mut state);
    let found = effective(&state, &resolution, &pods, &probes);
    let mut winners: BTreeSet<PolicyRef> = BTreeSet::new();
    for pod in &pods {
        for probe in &probes {
            let rule = oracle(&rules, pod, *probe);
            winners.extend(rule.map(source));
            let got = found[&(pod.member, pod.address, *probe)];
            assert_eq!(
                got,
                rule.map(leaves_with),
                "seed {seed}: {pod:?} to {probe:?}: {rule:?}"
            );
        }
    }
    for (policy, outcome) in &resolution.policies {
        let effective = outcome
            .verdicts
            .iter()
            .find(|v| v.kind == ConditionType::Effective);
        let effective = effective.expect("always said");
        assert!(
            effective.status == Some(true) || !winners.contains(policy),
            "seed {seed}: {policy:?} is said to win nothing, and wins: {}",
            effective.message
        );
        assert_eq!(
            outcome.shadowed.is_some(),
            effective.reason.ends_with("hadowed"),
            "{effective:?}"
        );
    }
    // After every restart, with objects that arrive in another order.
    state.policies.reverse();
    state.members.reverse();
    let again = settle(&mut state);
    assert_eq!(effective(&state, &again, &pods, &probes), found, "seed {seed}");
    assert_eq!(again.policies, resolution.policies, "seed {seed}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn a_thousand_policies_over_three_hundred_pods(seed in any::<u64>()) {
        agree(seed, 1000, 300, 40);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_few_policies_that_overlap(seed in any::<u64>(), policies in 0usize..12) {
        agree(seed, policies, 30, 70);
    }
}

//! Who leaves with which egress IP, from what users wrote to what nodes hold, against an oracle that knows nothing of
//! either: it reads the policies as their documentation says, one pod and one destination at a time.

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
    AddressPool, Destinations, EgressGatewaySpec, GatewayNodes, MemberNode, Sources, Through, Translation,
};
use spillway_crds::member::{EgressNodeSpec, PolicyRef};
use spillway_crds::{ConditionType, LabelSelector, Operator, Requirement};

type Labels = BTreeMap<String, String>;

/// Numbers out of one seed (a linear congruential generator with Knuth's constants).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 33).expect("31 bits") % n
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(u32::try_from(list.len()).expect("few")) as usize]
    }
}

/// What a selector asks for, in words of the oracle's own.
#[derive(Clone, Debug)]
enum Asks {
    All,
    Is(&'static str, &'static str),
    OneOf(&'static str, Vec<&'static str>),
    NoneOf(&'static str, Vec<&'static str>),
    Has(&'static str),
    Both(Box<Asks>, Box<Asks>),
}

impl Asks {
    fn met(&self, labels: &Labels) -> bool {
        let value = |key: &str| labels.get(key).map(String::as_str);
        match self {
            Self::All => true,
            Self::Is(key, wanted) => value(key) == Some(wanted),
            Self::OneOf(key, wanted) => value(key).is_some_and(|v| wanted.contains(&v)),
            Self::NoneOf(key, unwanted) => !value(key).is_some_and(|v| unwanted.contains(&v)),
            Self::Has(key) => value(key).is_some(),
            Self::Both(a, b) => a.met(labels) && b.met(labels),
        }
    }

    fn written(&self) -> LabelSelector {
        let mut selector = LabelSelector::default();
        self.write(&mut selector);
        selector
    }

    fn write(&self, to: &mut LabelSelector) {
        let mut add = |key: &str, operator, values: &[&str]| {
            to.match_expressions.push(Requirement {
                key: key.into(),
                operator,
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            });
        };
        match self {
            Self::All => {}
            Self::Is(key, value) => {
                to.match_labels.insert((*key).into(), (*value).into());
            }
            Self::OneOf(key, values) => add(key, Operator::In, values),
            Self::NoneOf(key, values) => add(key, Operator::NotIn, values),
            Self::Has(key) => add(key, Operator::Exists, &[]),
            Self::Both(a, b) => {
                a.write(to);
                b.write(to);
            }
        }
    }
}

const NAMESPACES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
const GATEWAYS: [&str; 3] = ["frankfurt", "paris", "vienna"];
const MEMBERS: [&str; 3] = ["m1", "m2", "m3"];
/// Destinations crowd around this address.
const CROWD: u32 = u32::from_be_bytes([198, 51, 100, 0]);

/// A policy as the oracle knows it.
#[derive(Clone, Debug)]
struct Rule {
    name: String,
    namespace: Option<&'static str>,
    created: i64,
    priority: i32,
    members: Asks,
    namespaces: Asks,
    pods: Asks,
    sources: Vec<Ipv4Net>,
    cidrs: Vec<Ipv4Net>,
    except: Vec<Ipv4Net>,
    /// Gateway and, where it is fixed, the last digit of its egress IP.
    through: Vec<(usize, Option<u8>)>,
}

fn pods_asked(dice: &mut Dice) -> Asks {
    match dice.below(7) {
        0 => Asks::All,
        1 | 2 => Asks::Is("app", dice.of(&["a", "b", "c"])),
        3 => Asks::OneOf("app", vec!["a", "b"]),
        4 => Asks::NoneOf("tier", vec![dice.of(&["front", "back"])]),
        5 => Asks::Has("tier"),
        _ => Asks::Both(
            Box::new(Asks::Is("app", dice.of(&["a", "b"]))),
            Box::new(Asks::Is("tier", dice.of(&["front", "back"]))),
        ),
    }
}

fn net(dice: &mut Dice) -> Ipv4Net {
    let length = match dice.below(10) {
        0 => 0,
        1 => 16,
        n => u8::try_from(22 + n).expect("small"),
    };
    Ipv4Net::new(Ipv4Addr::from(CROWD + dice.below(64)), length)
        .expect("length")
        .trunc()
}

fn rule(dice: &mut Dice, number: usize) -> Rule {
    let namespace = (!dice.one_in(3)).then(|| dice.of(&NAMESPACES));
    let mut cidrs: Vec<Ipv4Net> = (0..dice.below(4)).map(|_| net(dice)).collect();
    let mut except: Vec<Ipv4Net> = (0..dice.below(3))
        .map(|_| net(dice))
        .filter(|n| n.prefix_len() > 20)
        .collect();
    for list in [&mut cidrs, &mut except] {
        list.sort();
        list.dedup();
    }
    let first = dice.below(3) as usize;
    let mut through = vec![(first, None)];
    if dice.one_in(2) {
        through[0].1 = Some(u8::try_from(dice.below(5)).expect("small"));
    }
    if dice.one_in(4) {
        through.push(((first + 1) % 3, None));
    }
    Rule {
        // Equal names in different namespaces, and names that sort otherwise than by age.
        name: format!("p{:03}", (number * 7919) % 1000),
        namespace,
        created: i64::from(dice.below(40)),
        priority: if dice.one_in(3) {
            i32::try_from(dice.below(5)).expect("small") - 2
        } else {
            0
        },
        members: match dice.below(4) {
            0 => Asks::Is("region", dice.of(&["eu", "us"])),
            1 => Asks::Is("name", dice.of(&MEMBERS)),
            _ => Asks::All,
        },
        namespaces: match dice.below(3) {
            0 => Asks::Is("team", dice.of(&["red", "blue"])),
            1 => Asks::Is("kubernetes.io/metadata.name", dice.of(&NAMESPACES)),
            _ => Asks::All,
        },
        pods: pods_asked(dice),
        sources: if dice.one_in(6) {
            let first = Ipv4Addr::from(u32::from_be_bytes([10, 244, 0, 0]) + dice.below(100));
            vec![
                Ipv4Net::new(first, 24 + u8::try_from(dice.below(9)).expect("small"))
                    .expect("length")
                    .trunc(),
            ]
        } else {
            Vec::new()
        },
        cidrs,
        except,
        through,
    }
}

fn member_labels(name: &str) -> Labels {
    let region = if name == "m3" { "us" } else { "eu" };
    [("name".into(), name.into()), ("region".into(), region.into())].into()
}

fn namespace_labels(name: &str) -> Labels {
    let team = if matches!(name, "alpha" | "beta") {
        "red"
    } else {
        "blue"
    };
    [
        ("kubernetes.io/metadata.name".into(), name.into()),
        ("team".into(), team.into()),
    ]
    .into()
}

/// A pod with the member it is in.
#[derive(Debug)]
struct Subject {
    member: &'static str,
    namespace: &'static str,
    labels: Labels,
    address: Ipv4Addr,
}

fn subject(dice: &mut Dice, number: u32) -> Subject {
    let mut labels: Labels = [("app".to_owned(), dice.of(&["a", "b", "c", "d"]).to_owned())].into();
    if dice.one_in(2) {
        labels.insert("tier".into(), dice.of(&["front", "back"]).into());
    }
    // A third in each member, with the same addresses in all.
    let member = MEMBERS[number as usize % 3];
    Subject {
        member,
        namespace: dice.of(&NAMESPACES),
        labels,
        address: Ipv4Addr::from(u32::from_be_bytes([10, 244, 0, 1]) + number / 3),
    }
}

/// True where `a` goes before `b` for a packet that both take, with prefixes of the lengths given.
fn goes_before(a: (&Rule, u8), b: (&Rule, u8)) -> bool {
    if a.1 != b.1 {
        return a.1 > b.1;
    }
    if a.0.priority != b.0.priority {
        return a.0.priority > b.0.priority;
    }
    if a.0.created != b.0.created {
        return a.0.created < b.0.created;
    }
    // Cluster-wide policies have no namespace, which sorts before all.
    let name = |r: &Rule| (r.namespace.unwrap_or(""), r.name.clone());
    name(a.0) < name(b.0)
}

/// The policy that takes a packet of `pod` to `to`.
fn oracle<'a>(rules: &'a [Rule], pod: &Subject, to: Ipv4Addr) -> Option<&'a Rule> {
    let mut best: Option<(&Rule, u8)> = None;
    for rule in rules {
        let place = match rule.namespace {
            Some(namespace) => namespace == pod.namespace,
            None => rule.namespaces.met(&namespace_labels(pod.namespace)),
        };
        let source = rule.sources.is_empty() || rule.sources.iter().any(|s| s.contains(&pod.address));
        if !place || !source || !rule.members.met(&member_labels(pod.member)) || !rule.pods.met(&pod.labels) {
            continue;
        }
        if rule.except.iter().any(|n| n.contains(&to)) {
            continue;
        }
        let mut length = if rule.cidrs.is_empty() { Some(0) } else { None };
        for cidr in rule.cidrs.iter().filter(|n| n.contains(&to)) {
            length = length.max(Some(cidr.prefix_len()));
        }
        if let Some(length) = length
            && best.is_none_or(|best| goes_before((rule, length), best))
        {
            best = Some((rule, length));
        }
    }
    best.map(|(rule, _)| rule)
}

/// The egress IP that a policy's packets leave with: all gateways are there, so the first one's.
fn leaves_with(rule: &Rule) -> Ipv4Addr {
    let (gateway, fixed) = rule.through[0];
    egress_ip(gateway, fixed.unwrap_or(0))
}

fn egress_ip(gateway: usize, digit: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, u8::try_from(gateway + 1).expect("small"), 10 + digit)
}

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
                ipv6: Vec::new(),
            },
            translation: Translation::GatewayNode,
            encryption: None,
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
type Effective = BTreeMap<(&'static str, Ipv4Addr, Ipv4Addr), Option<Ipv4Addr>>;

fn effective(
    state: &FederationState,
    resolution: &Resolution,
    pods: &[Subject],
    probes: &[Ipv4Addr],
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
            let class = flows.pods.get(&pod.address.into()).map(|c| &flows.classes[c]);
            for probe in probes {
                let address = IpAddr::from(*probe);
                let verdict = class.and_then(|c| {
                    let after = c.partition_point(|(i, _)| i.first() <= address);
                    c[..after]
                        .last()
                        .filter(|(i, _)| i.contains(address))
                        .map(|(_, v)| *v)
                });
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
    let probes: Vec<Ipv4Addr> = (0..probes)
        .map(|i| match i {
            0 => Ipv4Addr::new(8, 8, 8, 8),
            1 => Ipv4Addr::new(198, 51, 7, 7),
            _ => Ipv4Addr::from(CROWD + dice.below(70)),
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
                "seed {seed}: {pod:?} to {probe}: {rule:?}"
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

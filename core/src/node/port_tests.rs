//! Policies with ports: what the tables hold, and what becomes of flows.

use std::net::IpAddr;

use spillway_crds::hub::{DestinationPort, OnUnavailable, Protocol};
use spillway_crds::member::PlannedPolicySpec;

use super::flows::{Flow, Verdict};
use super::inputs::{NodeInputs, NodePlan};
use super::nft::{Atom, Ruleset};
use super::tests::nft_accepts;
use super::{compile, fixtures, problems};

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

fn plan(inputs: &mut NodeInputs) -> &mut NodePlan {
    inputs.plan.as_mut().expect("fixtures have a plan")
}

fn port(protocol: Protocol, port: Option<i32>, end_port: Option<i32>) -> DestinationPort {
    DestinationPort {
        protocol,
        port,
        end_port,
    }
}

/// The fixtures' policy for TCP 443 and 8000 to 8010 and for ICMP alone.
fn bank() -> PlannedPolicySpec {
    let mut policy = fixtures::bank();
    policy.to.ports = vec![
        port(Protocol::Tcp, Some(443), None),
        port(Protocol::Tcp, Some(8000), Some(8010)),
        port(Protocol::Icmp, None, None),
    ];
    policy
}

fn source() -> NodeInputs {
    let mut inputs = fixtures::source();
    plan(&mut inputs).policies = vec![bank()];
    inputs
}

/// A chain with the map of its name, on the chain's own names left out.
fn port_chains(table: &Ruleset) -> Vec<String> {
    let mut out = Vec::new();
    for (name, chain) in table.chains.iter().filter(|(name, _)| name.starts_with("ports_")) {
        let elements = table.sets[name].elements.iter();
        let elements: Vec<_> = elements
            .map(|(key, value)| super::nft::Set::element(key, value.as_ref()))
            .collect();
        let rules = chain.rules.join("; ").replace(name, "ports");
        out.push(format!("{{ {} }} {rules}", elements.join(", ")));
    }
    out
}

#[test]
fn one_chain_looks_ports_up_and_whole_destinations_meet_none() {
    let state = compile(&source());
    nft_accepts(&state);
    let table = state.ruleset.expect("a table");
    let errors = "ct state related meta l4proto { icmp, ipv6-icmp }";
    let entries = |icmp: &str| {
        format!(
            "{{ {icmp} . 0-65535 : goto egress_7, tcp . 443 : goto egress_7, tcp . 8000-8010 : goto egress_7 }} {errors} ct mark \
             and 0xff000000 == 0x53000000 goto follow; {errors} return; meta l4proto . th dport vmap @ports"
        )
    };
    let chains = port_chains(&table);
    assert_eq!(
        chains.len(),
        2,
        "one a family, whatever the number of addresses: {chains:?}"
    );
    for icmp in ["icmp", "ipv6-icmp"] {
        let sorted = |s: &str| {
            let mut parts: Vec<_> = s.split([',', '{', '}']).map(str::trim).collect::<Vec<_>>();
            parts.sort_unstable();
            parts.join("|")
        };
        let wanted = sorted(&entries(icmp));
        assert!(
            chains.iter().any(|c| sorted(c) == wanted),
            "{wanted} is none of {chains:#?}"
        );
    }
    let to = table
        .sets
        .iter()
        .find(|(name, _)| name.starts_with("to4_"))
        .expect("a class")
        .1;
    assert_eq!(to.elements.len(), 2, "what lies before and behind the exception");
    let leads =
        |value: &Option<Atom>| matches!(value, Some(Atom::Goto(chain)) if chain.starts_with("ports_"));
    assert!(to.elements.values().all(leads));

    let plain = compile(&fixtures::source()).ruleset.expect("a table");
    assert!(port_chains(&plain).is_empty() && !plain.chains.contains_key("follow"));
    let class = |t: &Ruleset| {
        let mut classes = t.chains.iter().filter(|(name, _)| name.starts_with("class_"));
        classes.next().expect("a class").1.clone()
    };
    assert_eq!(
        class(&plain),
        class(&table),
        "a class meets the same rules with ports and without"
    );
}

#[test]
fn equal_ports_share_a_chain_and_different_ones_do_not() {
    let mut inputs = source();
    let mut other = bank();
    other.source.name = "other".into();
    other.to.cidrs = vec!["192.0.2.0/24".into()];
    other.to.except.clear();
    plan(&mut inputs).policies.push(other);
    let chains = |inputs: &NodeInputs| port_chains(&compile(inputs).ruleset.expect("a table")).len();
    assert_eq!(chains(&inputs), 2);
    plan(&mut inputs).policies[1].to.ports.pop();
    assert_eq!(chains(&inputs), 3);
    plan(&mut inputs).policies[1].to.ports.clear();
    assert_eq!(chains(&inputs), 2, "without ports there is nothing to look up");
}

#[test]
fn what_a_policy_leaves_alone_is_left_alone_though_another_takes_the_rest() {
    let mut inputs = source();
    let mut gone = bank();
    gone.source.name = "gone".into();
    gone.to.ports = vec![port(Protocol::Tcp, Some(80), None)];
    gone.through.clear();
    gone.on_unavailable = OnUnavailable::NodeIP;
    plan(&mut inputs).policies = vec![fixtures::bank(), gone];
    let state = compile(&inputs);
    nft_accepts(&state);
    let judge = |port| state.flows.judge(ip("10.244.0.5"), ip("198.51.100.1"), (6, port));
    assert_eq!(judge(443), Some(Verdict::Identity(7)));
    assert_eq!(
        judge(80),
        None,
        "its author lets it leave with the node's address"
    );
    let chains = port_chains(state.ruleset.as_ref().expect("a table"));
    assert!(
        chains
            .iter()
            .all(|c| c.contains("tcp . 80 : return") && c.ends_with("goto egress_7")),
        "{chains:?}"
    );
    let sealed = port_chains(state.seal.as_ref().expect("a seal"));
    assert!(
        sealed
            .iter()
            .all(|c| c.contains("tcp . 80 : return") && c.ends_with("goto sealed")),
        "{sealed:?}"
    );
}

#[test]
fn the_seal_knows_ports_and_not_whose_they_are() {
    let table = compile(&source()).seal.expect("a seal");
    let chains = port_chains(&table);
    assert_eq!(chains.len(), 2);
    assert!(
        chains
            .iter()
            .all(|c| c.contains("tcp . 443 : goto sealed") && !c.ends_with("goto sealed")),
        "{chains:?}"
    );
    let plain = |t: &Ruleset| {
        let sets = t.sets.iter().filter(|(name, _)| name.starts_with("to"));
        sets.map(|(_, set)| set.elements.len()).sum::<usize>()
    };
    assert_eq!(plain(&table), 0, "no destination is sealed as a whole");

    // Another policy takes the rest: all is sealed, whoever's it is.
    let mut inputs = source();
    let mut rest = fixtures::bank();
    rest.source.name = "rest".into();
    plan(&mut inputs).policies.push(rest);
    let table = compile(&inputs).seal.expect("a seal");
    assert_eq!((port_chains(&table).len(), plain(&table)), (0, 3));
}

#[test]
fn the_guard_holds_claimed_ports_only() {
    let mut inputs = NodeInputs {
        guard: true,
        ..source()
    };
    inputs.pods.clear();
    let state = compile(&inputs);
    nft_accepts(&state);
    for table in [&state.ruleset, &state.seal] {
        let table = table.as_ref().expect("a table");
        assert!(table.sets["claimed4"].elements.is_empty());
        assert_eq!(table.sets["claimed_ports4"].elements.len(), 2);
        let chains = port_chains(table);
        assert_eq!(chains.len(), 2);
        assert!(
            chains.iter().all(|c| c.contains("tcp . 443 : goto claimed")
                && c.ends_with("meta l4proto . th dport vmap @ports")),
            "{chains:?}"
        );
        assert_eq!(table.chains["claimed"].rules, ["counter drop"]);
    }
    let mut rest = fixtures::bank();
    rest.source.name = "rest".into();
    plan(&mut inputs).policies.push(rest);
    let table = compile(&inputs).ruleset.expect("a table");
    assert!(port_chains(&table).is_empty() && !table.chains.contains_key("claimed"));
    assert_eq!(table.sets["claimed4"].elements.len(), 2);
}

#[test]
fn flows_to_other_ports_are_left_alone() {
    let flows = compile(&source()).flows;
    let to = |protocol, to_port| Flow {
        source: ip("10.244.0.5"),
        destination: ip("198.51.100.1"),
        translated: ip("10.0.0.1"),
        port: 40_000,
        protocol,
        to_port,
        mark: 0,
    };
    assert!(flows.cut(&to(6, 443)) && flows.cut(&to(6, 8005)) && flows.cut(&to(1, 77)));
    assert!(!flows.cut(&to(6, 80)) && !flows.cut(&to(17, 443)) && !flows.cut(&to(6, 8011)));
    let ours = |flow: Flow| Flow {
        translated: ip("100.64.4.1"),
        mark: 0x5300_0007,
        ..flow
    };
    assert!(!flows.cut(&ours(to(6, 443))));
    assert!(flows.cut(&ours(to(6, 80))), "its port is the policy's no longer");

    // Ports added to a policy are looked at where its pods' flows are.
    let mut more = source();
    plan(&mut more).policies[0]
        .to
        .ports
        .push(port(Protocol::Tcp, Some(80), None));
    let more = compile(&more).flows.narrowed(&flows);
    assert!(more.cut(&to(6, 80)));
    assert!(more.only.expect("comparable").contains(&ip("10.244.0.5")));
}

#[test]
fn ports_that_cannot_be_read_block_the_destination_whatever_the_port() {
    let mut inputs = source();
    plan(&mut inputs).policies[0].to.ports = vec![port(Protocol::Tcp, Some(443), Some(80))];
    let state = compile(&inputs);
    let judge = |port| state.flows.judge(ip("10.244.0.5"), ip("198.51.100.1"), (6, port));
    assert_eq!(
        (judge(443), judge(22)),
        (Some(Verdict::Block), Some(Verdict::Block))
    );
    let found = problems(&inputs).join("\n");
    assert!(
        found.contains("spec.to.ports") && found.contains("swap the two"),
        "{found}"
    );
}

#[test]
fn too_many_cases_block_and_are_told_of() {
    let mut inputs = fixtures::source();
    let nested = |layer: u8| {
        let mut policy = fixtures::bank();
        policy.source.name = format!("layer-{layer}");
        policy.to.cidrs = vec![format!("198.51.100.0/{}", 8 + layer)];
        policy.to.cidrs[0] = policy.to.cidrs[0]
            .parse::<ipnet::IpNet>()
            .expect("net")
            .trunc()
            .to_string();
        policy.to.except.clear();
        policy.to.ports = (0..64)
            .map(|n| port(Protocol::Tcp, Some(1 + i32::from(layer) * 200 + n * 2), None))
            .collect();
        policy
    };
    let other = |inputs: &mut NodeInputs| {
        let mut other = fixtures::bank();
        other.source.name = "other".into();
        other.pods = fixtures::app("web");
        plan(inputs).policies.push(other);
    };
    plan(&mut inputs).policies = (0..24).map(nested).collect();
    other(&mut inputs);
    let state = compile(&inputs);
    let judge = |pod, to, port| state.flows.judge(ip(pod), ip(to), (6, port));
    assert_eq!(judge("10.244.0.5", "198.51.100.1", 1), Some(Verdict::Block));
    assert_eq!(
        judge("10.244.0.5", "198.51.100.1", 22),
        Some(Verdict::Block),
        "nobody knows"
    );
    assert_eq!(judge("10.244.0.5", "203.0.113.1", 1), None);
    assert_eq!(
        judge("10.244.0.7", "198.51.100.1", 443),
        Some(Verdict::Identity(7)),
        "other pods are spared"
    );
    let found = problems(&inputs).join("\n");
    assert!(found.contains("2 pods") || found.contains("3 pods"), "{found}");
    assert!(found.contains("10.244.0.5"), "{found}");
    plan(&mut inputs).policies.truncate(3);
    assert!(problems(&inputs).is_empty());
}

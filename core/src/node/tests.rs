//! The compiler's result for whole nodes.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use spillway_crds::LabelSelector;
use spillway_crds::address::AddressPair;
use spillway_crds::hub::OnUnavailable;
use spillway_crds::member::{Grants, PlannedPolicySpec, PlannedThrough, PolicyRef};

use super::flows::{Flow, Verdict};
use super::inputs::{NodeInputs, NodePlan, Pod};
use super::nft::Atom;
use super::state::{DesiredState, RouteTarget};
use super::{compile, compile_numbered, fixtures, problems};

fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

/// The state without the parts that repeat what the table says (the seal has tests of its own), then the table as nft reads it.
pub(super) fn show(state: &DesiredState) -> String {
    let tables = [&state.ruleset, &state.steering].into_iter().flatten();
    let table: String = tables.map(super::nft::Ruleset::render).collect();
    let rest = DesiredState {
        ruleset: None,
        steering: None,
        seal: None,
        flows: super::flows::Flows::default(),
        ..state.clone()
    };
    let rest = serde_json::to_string_pretty(&rest).expect("encodes");
    format!("{rest}\n{table}")
}

/// Has the real nft check the table, in a network namespace of its own.
pub(super) fn nft_accepts(state: &DesiredState) {
    let mut text = state.ruleset.as_ref().expect("a table").render();
    text.extend(
        [&state.steering, &state.seal]
            .into_iter()
            .flatten()
            .map(super::nft::Ruleset::render),
    );
    // The steering table hooks into the device.
    let script = "ip link add spillway0 type bridge && nft -c -f -";
    let mut child = Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare and nft are installed");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(text.as_bytes())
        .expect("written");
    let output = child.wait_with_output().expect("ends");
    assert!(
        output.status.success(),
        "{}\n{text}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn plan(inputs: &mut NodeInputs) -> &mut NodePlan {
    inputs.plan.as_mut().expect("fixtures have a plan")
}

fn verdict_of(state: &DesiredState, pod: &str, destination: &str) -> Option<Verdict> {
    state.flows.judge(ip(pod), ip(destination), (6, 443))
}

#[test]
fn a_source_node() {
    let state = compile(&fixtures::source());
    nft_accepts(&state);
    insta::assert_snapshot!(show(&state));
}

#[test]
fn a_source_node_with_the_guard() {
    let inputs = NodeInputs {
        guard: true,
        ..fixtures::source()
    };
    let state = compile(&inputs);
    nft_accepts(&state);
    // The rest is that of the node without it.
    let tables = [state.ruleset, state.seal].map(|table| {
        let mut table = table.expect("a table");
        let of_the_guard = |name: &str| {
            ["podranges", "claimed", "known"]
                .iter()
                .any(|g| name.starts_with(g))
        };
        table.sets.retain(|name, _| of_the_guard(name));
        table
            .chains
            .retain(|name, _| ["classify", "seal", "unknown"].contains(&name.as_str()));
        table.render()
    });
    insta::assert_snapshot!(tables.concat());
}

#[test]
fn a_gateway_node() {
    let state = compile(&fixtures::gateway());
    nft_accepts(&state);
    insta::assert_snapshot!(show(&state));
}

#[test]
fn a_node_that_is_both() {
    let state = compile(&fixtures::both());
    nft_accepts(&state);
    insta::assert_snapshot!(show(&state));
}

#[test]
fn a_stateless_gateways_source_node() {
    let state = compile(&fixtures::stateless_source());
    nft_accepts(&state);
    insta::assert_snapshot!(show(&state));
}

#[test]
fn a_stateless_gateways_node() {
    let state = compile(&fixtures::stateless_gateway());
    nft_accepts(&state);
    insta::assert_snapshot!(show(&state));
}

#[test]
fn a_stateless_gateways_node_with_pods_of_its_own() {
    let state = compile(&fixtures::stateless_both());
    nft_accepts(&state);
    insta::assert_snapshot!(show(&state));
}

#[test]
fn without_a_plan_and_after_a_teardown_nothing_is_wanted() {
    let inputs = NodeInputs {
        plan: None,
        ..fixtures::source()
    };
    assert_eq!(compile(&inputs), DesiredState::default());
}

#[test]
fn a_policy_none_of_whose_destinations_can_be_read_blocks_or_lets_be() {
    let mut inputs = fixtures::source();
    plan(&mut inputs).policies[0].to.cidrs = vec!["198.51.100.0/33".into()];
    let state = compile(&inputs);
    nft_accepts(&state);
    for destination in ["198.51.100.1", "192.0.2.1"] {
        assert_eq!(
            verdict_of(&state, "10.244.0.5", destination),
            Some(Verdict::Block)
        );
    }
    assert_eq!(verdict_of(&state, "10.244.0.5", "198.51.100.9"), None, "excepted");
    assert!(problems(&inputs).iter().any(|p| p.contains("198.51.100.0/33")));
    plan(&mut inputs).policies[0].on_unavailable = OnUnavailable::NodeIP;
    assert_eq!(verdict_of(&compile(&inputs), "10.244.0.5", "198.51.100.1"), None);
}

#[test]
fn a_policy_without_any_gateway_blocks_or_lets_be() {
    let mut inputs = fixtures::source();
    plan(&mut inputs).gateways[0].nodes.clear();
    let state = compile(&inputs);
    nft_accepts(&state);
    let wait = Some(Verdict::Wait([7].into_iter().collect()));
    assert_eq!(verdict_of(&state, "10.244.0.5", "198.51.100.1"), wait);
    assert_eq!(verdict_of(&state, "fd00:244::5", "2001:db8:99::1"), wait);
    assert_eq!(verdict_of(&state, "10.244.0.5", "198.51.100.9"), None, "excepted");
    assert!(state.rules.is_empty(), "no gateway in use, no rule");
    insta::assert_snapshot!(show(&state));

    plan(&mut inputs).policies[0].on_unavailable = OnUnavailable::NodeIP;
    let state = compile(&inputs);
    assert_eq!(verdict_of(&state, "10.244.0.5", "198.51.100.1"), None);
    nft_accepts(&state);
}

#[test]
fn before_this_node_has_an_overlay_address_selected_pods_are_blocked() {
    let mut inputs = fixtures::source();
    inputs.nodes.get_mut("a-1").expect("own node").overlay = AddressPair::default();
    let state = compile(&inputs);
    assert_eq!(state.tunnel, None);
    assert_eq!(
        verdict_of(&state, "10.244.0.5", "198.51.100.1"),
        Some(Verdict::Wait([7].into_iter().collect()))
    );
    nft_accepts(&state);
    assert_eq!(problems(&inputs).len(), 2, "{:?}", problems(&inputs));
}

#[test]
fn the_next_gateway_of_a_policy_steps_in() {
    let mut inputs = fixtures::source();
    let plan = plan(&mut inputs);
    plan.gateways.push(fixtures::gateway_of(
        "paris",
        9,
        AddressPair {
            ipv4: Some("203.0.113.20".into()),
            ipv6: None,
        },
        vec![fixtures::node_ref("b", "b-1")],
        false,
    ));
    plan.policies[0].through.push(PlannedThrough {
        gateway: "paris".into(),
        identity: 9,
    });
    assert_eq!(
        verdict_of(&compile(&inputs), "10.244.0.5", "198.51.100.1"),
        Some(Verdict::Prefer(7, [9].into_iter().collect()))
    );
    inputs.plan.as_mut().expect("plan").gateways[0].nodes.clear();
    let state = compile(&inputs);
    assert_eq!(
        verdict_of(&state, "10.244.0.5", "198.51.100.1"),
        Some(Verdict::Identity(9))
    );
    assert_eq!(
        verdict_of(&state, "fd00:244::5", "2001:db8:99::1"),
        Some(Verdict::Block),
        "a gateway without an address of the family is no reason to leave from another"
    );
}

#[test]
fn a_policys_edit_changes_elements_and_nothing_else() {
    let before = compile(&fixtures::source()).ruleset.expect("table");
    let mut inputs = fixtures::source();
    plan(&mut inputs).policies[0].to.cidrs = vec!["192.0.2.0/24".into()];
    let after = compile(&inputs).ruleset.expect("table");
    assert_eq!(before.chains, after.chains);
    let changed: Vec<_> = before
        .sets
        .iter()
        .filter(|(n, s)| after.sets[*n] != **s)
        .map(|(n, _)| n)
        .collect();
    assert!(changed.iter().all(|n| n.starts_with("to")), "{changed:?}");
}

#[test]
fn a_pod_comes_and_goes_as_one_element() {
    let before = compile(&fixtures::source()).ruleset.expect("table");
    let mut inputs = fixtures::source();
    inputs
        .pods
        .push(fixtures::pod("billing-2", "billing", &["10.244.0.8"]));
    let after = compile(&inputs).ruleset.expect("table");
    assert_eq!(before.chains, after.chains);
    let changed: Vec<_> = before
        .sets
        .iter()
        .filter(|(n, s)| after.sets[*n] != **s)
        .map(|(n, _)| n)
        .collect();
    assert_eq!(changed, ["pods4"]);
}

#[test]
fn an_address_belongs_to_its_youngest_living_pod() {
    let mut inputs = fixtures::source();
    let mut reused = fixtures::pod("web-1", "web", &["10.244.0.5"]);
    reused.created = 2_000;
    inputs.pods.insert(0, reused.clone());
    assert_eq!(verdict_of(&compile(&inputs), "10.244.0.5", "198.51.100.1"), None);
    inputs.pods.reverse();
    assert_eq!(verdict_of(&compile(&inputs), "10.244.0.5", "198.51.100.1"), None);
    inputs
        .pods
        .iter_mut()
        .filter(|p| p.name == "web-1")
        .for_each(|p| p.finished = true);
    assert_eq!(
        verdict_of(&compile(&inputs), "10.244.0.5", "198.51.100.1"),
        Some(Verdict::Identity(7))
    );
}

#[test]
fn pods_of_the_hosts_network_and_other_namespaces_are_left_alone() {
    let mut inputs = fixtures::source();
    inputs.pods[0].host_network = true;
    inputs.pods[1].namespace = "other".into();
    assert!(compile(&inputs).flows.pods.is_empty());
}

#[test]
fn pods_of_namespaces_that_are_not_granted_are_left_alone() {
    let inputs = fixtures::source();
    let granting = |namespace: &str| NodeInputs {
        grants: Grants {
            namespaces: Some(vec![namespace.into()]),
            ..Grants::default()
        },
        ..inputs.clone()
    };
    let all = compile(&inputs).flows.pods;
    assert!(!all.is_empty());
    assert_eq!(compile(&granting("payments")).flows.pods, all);
    assert!(compile(&granting("other")).flows.pods.is_empty());
}

#[test]
fn a_cluster_policy_selects_namespaces_by_label() {
    let mut inputs = fixtures::source();
    plan(&mut inputs).policies = vec![PlannedPolicySpec {
        source: PolicyRef {
            namespace: None,
            name: "all".into(),
        },
        namespaces: Some(fixtures::app("finance")),
        ..fixtures::bank()
    }];
    assert!(
        compile(&inputs).flows.pods.is_empty(),
        "the namespace hasn't been seen"
    );
    inputs
        .namespaces
        .insert("payments".into(), fixtures::app("finance").match_labels);
    assert_eq!(
        compile(&inputs).flows.pods.len(),
        3,
        "web-0 isn't billing, billing has three addresses"
    );
}

#[test]
fn spillways_own_pods_are_never_selected() {
    let mut inputs = fixtures::source();
    plan(&mut inputs).policies = vec![PlannedPolicySpec {
        source: PolicyRef {
            namespace: None,
            name: "everything".into(),
        },
        namespaces: Some(LabelSelector::default()),
        pods: LabelSelector::default(),
        ..fixtures::bank()
    }];
    let before = compile(&inputs).flows.pods;
    let agent = Pod {
        namespace: "spillway-system".into(),
        ..fixtures::pod("spillway-member-agent", "agent", &["10.244.0.99"])
    };
    let address = agent.addresses.clone();
    inputs.pods.push(agent);
    assert_eq!(compile(&inputs).flows.pods, before);
    inputs.settings.namespace = "elsewhere".into();
    let selected = compile(&inputs).flows.pods;
    assert!(address.iter().all(|a| selected.contains_key(a)));
}

#[test]
fn the_older_policy_wins_and_the_name_decides_the_rest() {
    let mut inputs = fixtures::source();
    let plan = plan(&mut inputs);
    plan.gateways.push(fixtures::gateway_of(
        "paris",
        9,
        AddressPair {
            ipv4: Some("203.0.113.20".into()),
            ipv6: None,
        },
        vec![fixtures::node_ref("b", "b-1")],
        false,
    ));
    let mut other = fixtures::bank();
    other.source.name = "aaa".into();
    other.through = vec![PlannedThrough {
        gateway: "paris".into(),
        identity: 9,
    }];
    plan.policies.insert(0, other);
    assert_eq!(
        verdict_of(&compile(&inputs), "10.244.0.6", "198.51.100.1"),
        Some(Verdict::Identity(9))
    );
    inputs.plan.as_mut().expect("plan").policies[0].created = 1_001;
    assert_eq!(
        verdict_of(&compile(&inputs), "10.244.0.6", "198.51.100.1"),
        Some(Verdict::Identity(7))
    );
    inputs.plan.as_mut().expect("plan").policies[0].to.cidrs = vec!["198.51.100.1/32".into()];
    let state = compile(&inputs);
    nft_accepts(&state);
    assert_eq!(
        verdict_of(&state, "10.244.0.6", "198.51.100.1"),
        Some(Verdict::Identity(9)),
        "more specific"
    );
}

#[test]
fn destinations_over_all_addresses_are_understood_by_nft() {
    let mut inputs = fixtures::source();
    let plan = plan(&mut inputs);
    plan.policies[0].to.cidrs.clear();
    plan.policies[0].to.except = vec![
        "0.0.0.0/32".into(),
        "255.255.255.255/32".into(),
        "ffff::/16".into(),
    ];
    nft_accepts(&compile(&inputs));
    inputs.plan.as_mut().expect("plan").policies[0].to.except.clear();
    nft_accepts(&compile(&inputs));
    inputs.plan.as_mut().expect("plan").policies[0].to.except = vec!["128.0.0.0/1".into(), "::/1".into()];
    nft_accepts(&compile(&inputs));
}

#[test]
fn a_gateway_keeps_its_number_when_another_comes() {
    let mut inputs = fixtures::source();
    let before = compile_numbered(&inputs).gateway_indexes;
    assert_eq!(before["frankfurt"], 1);
    inputs.gateway_indexes = before;
    let plan = plan(&mut inputs);
    plan.gateways.push(fixtures::gateway_of(
        "amsterdam",
        9,
        AddressPair {
            ipv4: Some("203.0.113.20".into()),
            ipv6: None,
        },
        vec![fixtures::node_ref("b", "b-1")],
        false,
    ));
    let mut policy = fixtures::bank();
    policy.to.cidrs = vec!["192.0.2.0/24".into()];
    policy.source.name = "second".into();
    policy.through = vec![PlannedThrough {
        gateway: "amsterdam".into(),
        identity: 9,
    }];
    plan.policies.push(policy);
    let after = compile_numbered(&inputs).gateway_indexes;
    assert_eq!((after.len(), after["frankfurt"]), (2, 1));
    let state = compile(&inputs);
    assert_eq!(state.rules.len(), 4, "one a gateway and family");
    let unreachable = state
        .routes
        .iter()
        .filter(|r| r.target == RouteTarget::Unreachable)
        .count();
    assert_eq!(unreachable, 4);
    nft_accepts(&state);
}

#[test]
fn rules_routes_and_guards_grow_with_gateways_only() {
    let few = compile(&fixtures::source());
    let mut inputs = fixtures::source();
    for n in 0..40u8 {
        let mut policy = fixtures::bank();
        policy.source.name = format!("more-{n}");
        policy.to.cidrs = vec![format!("192.0.{n}.0/24")];
        policy.pods = fixtures::app(&format!("app-{n}"));
        plan(&mut inputs).policies.push(policy);
        inputs.pods.push(fixtures::pod(
            &format!("p-{n}"),
            &format!("app-{n}"),
            &[&format!("10.244.1.{n}")],
        ));
    }
    let many = compile(&inputs);
    nft_accepts(&many);
    assert_eq!((&few.rules, &few.routes), (&many.rules, &many.routes));
    let without_classes = |state: &DesiredState| {
        let table = state.ruleset.clone().expect("table");
        let mut chains = table.chains;
        chains.retain(|name, _| !name.starts_with("class_"));
        chains
    };
    assert_eq!(without_classes(&few), without_classes(&many));
}

#[test]
fn an_egress_ip_that_is_the_nodes_own_is_neither_routed_nor_answered_for() {
    let mut inputs = fixtures::gateway();
    let own: ipnet::IpNet = "203.0.113.10/24".parse().expect("net");
    inputs
        .facts
        .links
        .get_mut("eth1")
        .expect("link")
        .addresses
        .insert(own);
    let state = compile(&inputs);
    assert!(state.proxies.iter().all(|p| p.address.is_ipv6()));
    assert!(state.routes.iter().all(|r| r.destination.addr() != own.addr()));
}

#[test]
fn without_ipv6_in_the_kernel_only_the_table_speaks_of_it() {
    let mut inputs = fixtures::both();
    inputs.facts.without_ipv6 = true;
    let state = compile(&inputs);
    assert!(state.routes.iter().all(|r| r.destination.addr().is_ipv4()));
    assert!(state.rules.iter().all(|r| !r.ipv6));
    assert!(state.neighbours.iter().all(|n| n.address.is_ipv4()));
    assert!(state.proxies.iter().all(|p| p.address.is_ipv4()));
    assert!(state.sysctls.keys().all(|k| !k.contains("ipv6")));
}

#[test]
fn flows_that_began_otherwise_are_cut() {
    let flow = |source: &str, destination: &str, translated: &str, mark| Flow {
        source: ip(source),
        destination: ip(destination),
        translated: ip(translated),
        port: 0,
        protocol: 6,
        to_port: 443,
        mark,
    };
    let source = compile(&fixtures::source()).flows;
    let kept = flow("10.244.0.5", "198.51.100.1", "100.64.4.1", 0x5301_0007);
    assert!(!source.cut(&kept), "as the plan has it");
    assert!(
        source.cut(&Flow {
            mark: 0,
            translated: ip("10.0.0.1"),
            ..kept
        }),
        "older than the policy"
    );
    assert!(
        source.cut(&Flow {
            mark: 0x5300_0008,
            ..kept
        }),
        "another identity"
    );
    assert!(
        source.cut(&Flow {
            source: ip("10.244.0.7"),
            ..kept
        }),
        "the pod isn't selected any more"
    );
    assert!(
        source.cut(&Flow {
            destination: ip("198.51.100.9"),
            ..kept
        }),
        "excepted since"
    );
    assert!(
        !source.cut(&flow("10.244.0.5", "10.244.9.9", "10.244.0.5", 0)),
        "within the cluster"
    );
    assert!(
        !source.cut(&flow("10.244.0.5", "192.0.2.1", "10.0.0.1", 0x80)),
        "not ours"
    );
    assert!(
        !source.cut(&flow("10.0.0.1", "192.0.2.1", "10.0.0.1", 0)),
        "the node's own"
    );

    let gateway = compile(&fixtures::gateway()).flows;
    let kept = flow("100.64.4.1", "198.51.100.1", "203.0.113.10", 0x5300_0007);
    assert!(!gateway.cut(&kept));
    assert!(
        gateway.cut(&Flow {
            mark: 0x5300_0008,
            ..kept
        }),
        "not granted"
    );
    assert!(
        gateway.cut(&Flow {
            translated: ip("203.0.113.11"),
            ..kept
        }),
        "another egress IP"
    );
    assert!(
        gateway.cut(&Flow {
            source: ip("100.64.12.1"),
            ..kept
        }),
        "no member of this identity"
    );

    let torn_down = DesiredState::default().flows;
    assert!(torn_down.is_empty());
    let leaving = torn_down.after(&source);
    let ours = flow("10.244.0.5", "198.51.100.1", "100.64.4.1", 0x5300_0007);
    assert!(
        !leaving.is_empty() && leaving.cut(&ours),
        "it would keep an address that is nobody's any more"
    );
    assert!(!leaving.cut(&flow("10.244.0.5", "198.51.100.1", "10.0.0.1", 0)));
    assert!(
        torn_down
            .after(&gateway)
            .cut(&flow("100.64.4.1", "198.51.100.1", "203.0.113.10", 0x5300_0007))
    );

    let both = compile(&fixtures::both()).flows;
    assert!(!both.cut(&flow("10.244.0.5", "198.51.100.1", "203.0.113.10", 0x5300_0007)));
    assert!(both.cut(&flow("10.244.0.5", "198.51.100.1", "10.0.0.2", 0)));
}

#[test]
fn others_bits_of_a_connection_mark_are_neither_read_nor_written() {
    let state = compile(&fixtures::both());
    let table = state.ruleset.expect("table");
    for rule in table.chains.values().flat_map(|c| &c.rules) {
        if let Some((_, value)) = rule.split_once("ct mark set ") {
            let keeps = value.starts_with("ct mark and 0x00ff0000 or 0x53");
            let tunnelled = rule == "ct state new ct mark set meta mark or 0x53000000";
            assert!(keeps || tunnelled, "{rule}");
        } else if let Some((_, read)) = rule.split_once("ct mark and ") {
            let tag = read.starts_with("0xff000000 == 0x53") || read.starts_with("0xff000000 != 0x53");
            let into_tunnel = rule == "meta mark set ct mark and 0x0000ffff";
            assert!(tag || read.starts_with("0xff00ffff ") || into_tunnel, "{rule}");
        }
    }
    for set in ["eip4", "eip6", "leaves", "sliced", "into", "away"] {
        for key in table.sets[set].elements.keys() {
            assert!(
                matches!(key[..], [Atom::Number(n)] if n >> 24 == 0x53),
                "{set}: {key:?}"
            );
        }
    }
}

#[test]
fn of_two_nodes_with_one_overlay_address_one_is_left_out_and_named() {
    let mut inputs = fixtures::source();
    let mut double = plan(&mut inputs).peers[0].clone();
    double.member = "c".into();
    double.nodes[0].underlay.ipv4 = Some("10.0.0.3".into());
    plan(&mut inputs).peers.push(double);
    let mut own = plan(&mut inputs).peers[0].clone();
    own.member = "d".into();
    own.nodes[0].overlay = fixtures::node_of(1).overlay;
    plan(&mut inputs).peers.push(own);
    let state = compile(&inputs);
    assert_eq!(state.forwarding, compile(&fixtures::source()).forwarding);
    assert_eq!(state.neighbours, compile(&fixtures::source()).neighbours);
    let found = problems(&inputs).join("\n");
    assert!(found.contains("c/b-1") && found.contains("d/b-1"), "{found}");
    assert_eq!(
        verdict_of(&state, "10.244.0.5", "198.51.100.1"),
        Some(Verdict::Identity(7)),
        "neighbours go on"
    );
}

#[test]
fn an_egress_ip_that_is_somebody_elses_is_never_routed_into_the_tunnel() {
    for address in [
        "10.0.0.1",
        "10.0.0.9",
        "10.0.0.77",
        "100.64.8.1",
        "127.0.0.1",
        "0.0.0.0",
    ] {
        let mut inputs = fixtures::gateway();
        inputs.nodes.insert(
            "b-2".into(),
            spillway_crds::member::EgressNodeSpec {
                underlay: AddressPair {
                    ipv4: Some("10.0.0.77".into()),
                    ipv6: None,
                },
                ..fixtures::node_of(9)
            },
        );
        inputs.network.sources[0].cidrs.push("10.0.0.9/32".into());
        let mut second = plan(&mut inputs).gateways[0].clone();
        second.gateway = "wrong".into();
        second.identities[0].id = 8;
        second.identities[0].egress_ip = AddressPair {
            ipv4: Some(address.into()),
            ipv6: None,
        };
        plan(&mut inputs).gateways.push(second);
        let state = compile(&inputs);
        let proxied = |a: &str| state.proxies.iter().any(|p| p.address == ip(a));
        assert!(!proxied(address) && proxied("203.0.113.10"), "{address}");
        let table = state.ruleset.as_ref().expect("table");
        assert!(
            table.chains["leaves_8"]
                .rules
                .contains(&"meta nfproto ipv4 counter drop".to_owned())
        );
        let found = problems(&inputs).join("\n");
        assert!(found.contains("wrong") && found.contains(address), "{found}");
        nft_accepts(&state);
    }
}

#[test]
fn grants_that_lie_within_each_other_are_one() {
    let mut inputs = fixtures::gateway();
    let granted = &mut plan(&mut inputs).gateways[0].identities[0].granted;
    let mut within = granted[0].clone();
    within.ipv4 = Some("100.64.5.0/24".into());
    granted.push(within);
    let state = compile(&inputs);
    assert_eq!(
        state.ruleset.as_ref().map(|t| t.sets["granted4"].elements.len()),
        Some(2)
    );
    nft_accepts(&state);
}

#[test]
fn only_sources_that_are_judged_otherwise_are_looked_at_again() {
    let before = compile(&fixtures::source()).flows;
    let only = |inputs: &NodeInputs| compile(inputs).flows.narrowed(&before).only;
    assert_eq!(only(&fixtures::source()), Some(BTreeSet::new()));
    let mut inputs = fixtures::source();
    inputs
        .pods
        .push(fixtures::pod("billing-2", "billing", &["10.244.0.8"]));
    inputs.pods[1].finished = true;
    let both = ["10.244.0.6", "10.244.0.8"].map(ip);
    assert_eq!(only(&inputs), Some(both.into()));
    let mut inputs = fixtures::source();
    plan(&mut inputs).policies[0].to.cidrs.pop();
    assert_eq!(only(&inputs).map(|o| o.len()), Some(3), "all pods of the policy");
    let mut inputs = fixtures::source();
    inputs.network.sources[0].cidrs.push("10.9.0.0/16".into());
    assert_eq!(only(&inputs), None, "anybody's");
    let mut inputs = fixtures::source();
    inputs.nodes.insert("a-1".into(), fixtures::node_of(9));
    assert_eq!(only(&inputs), None, "another overlay address");
}

#[test]
fn inputs_survive_their_encoding() {
    for inputs in [fixtures::source(), fixtures::both(), NodeInputs::default()] {
        let text = serde_json::to_string(&inputs).expect("encodes");
        let read: NodeInputs = serde_json::from_str(&text).expect("decodes");
        assert_eq!(read, inputs);
    }
}

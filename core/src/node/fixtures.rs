//! Inputs of a small federation, for tests here and in other packages.
//!
//! ```text
//! member a: a-1 10.0.0.1 / 100.64.4.1 / fd64:5711:0:1::1     pods 10.244.0.5, fd00:244::5 …
//! member b: b-1 10.0.0.2 / 100.64.8.1 / fd64:5711:0:2::1     first node of gateway "frankfurt"
//! gateway frankfurt: identity 7 → 203.0.113.10, 2001:db8:1::10, granted to a and b
//!   stateless_…: the same gateway with nodes b-1 and b-2, translation: SourceNode and slices of a-1, b-1 and b-2
//! policy payments/bank: pods app=billing to 198.51.100.0/24 but .9, and 2001:db8:99::/64
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use spillway_crds::LabelSelector;
use spillway_crds::address::{AddressPair, PrefixPair};
use spillway_crds::hub::{AddressSlices, Destinations, OnUnavailable, PortRange, PortSlice, Translation};
use spillway_crds::member::{
    ClusterNetworkSpec, EgressNodeSpec, GatewayNode, GatewayNodeState, Grants, NodeRef, POD_RANGES, PeerNode,
    PlannedGatewaySpec, PlannedIdentity, PlannedMemberSpec, PlannedPeerSpec, PlannedPolicySpec,
    PlannedThrough, PolicyRef, RangeSource, SERVICE_RANGES, Tunnel,
};

use super::gateways::Liveness;
use super::inputs::{NodeInputs, NodePlan, Pod, Settings};
use super::state::{Facts, LinkFacts};

fn addresses(v4: &str, v6: &str) -> AddressPair {
    AddressPair {
        ipv4: Some(v4.into()),
        ipv6: Some(v6.into()),
    }
}

fn prefixes(v4: &str, v6: &str) -> PrefixPair {
    PrefixPair {
        ipv4: Some(v4.into()),
        ipv6: Some(v6.into()),
    }
}

/// Overlay prefixes of member number `id`.
pub fn overlay_of(id: u8) -> PrefixPair {
    prefixes(
        &format!("100.64.{}.0/22", id * 4),
        &format!("fd64:5711:0:{id}::/64"),
    )
}

/// The first node of member number `id`, with the underlay address `10.0.0.ID`.
pub fn node_of(id: u8) -> EgressNodeSpec {
    EgressNodeSpec {
        overlay: addresses(&format!("100.64.{}.1", id * 4), &format!("fd64:5711:0:{id}::1")),
        underlay: addresses(&format!("10.0.0.{id}"), &format!("fd00:10::{id}")),
        incarnation: None,
    }
}

fn network() -> ClusterNetworkSpec {
    ClusterNetworkSpec {
        sources: [
            (POD_RANGES, ["10.244.0.0/16", "fd00:244::/48"]),
            (SERVICE_RANGES, ["10.96.0.0/12", "fd00:96::/108"]),
        ]
        .map(|(source, cidrs)| RangeSource {
            source: source.into(),
            cidrs: cidrs.map(str::to_owned).to_vec(),
        })
        .to_vec(),
    }
}

fn member(name: &str, id: u8) -> PlannedMemberSpec {
    PlannedMemberSpec {
        member: name.into(),
        member_id: id.into(),
        overlay: overlay_of(id),
        overlay_range: prefixes("100.64.0.0/10", "fd64:5711::/48"),
        partition: "default".into(),
        tunnel: Tunnel::default(),
        encrypted: false,
        uncallable: Vec::new(),
    }
}

fn peer(name: &str, id: u8) -> PlannedPeerSpec {
    let node = node_of(id);
    PlannedPeerSpec {
        member: name.into(),
        partition: "default".into(),
        encrypted: false,
        nodes: vec![PeerNode {
            name: format!("{name}-1"),
            overlay: node.overlay,
            underlay: node.underlay,
            ..PeerNode::default()
        }],
    }
}

/// Names node `node` of `member`.
pub fn node_ref(member: &str, node: &str) -> NodeRef {
    NodeRef::new(member, node)
}

/// A gateway with one identity, granted to members 1 and 2 if `granted`.
pub fn gateway_of(
    name: &str,
    id: u16,
    egress: AddressPair,
    nodes: Vec<NodeRef>,
    granted: bool,
) -> PlannedGatewaySpec {
    PlannedGatewaySpec {
        gateway: name.into(),
        nodes: nodes
            .into_iter()
            .map(|node| GatewayNode {
                node,
                state: GatewayNodeState::Ready,
            })
            .collect(),
        translation: Translation::GatewayNode,
        node_ip: false,
        pins: Vec::new(),
        identities: vec![PlannedIdentity {
            id,
            egress_ip: egress,
            granted: if granted {
                vec![overlay_of(1), overlay_of(2)]
            } else {
                Vec::new()
            },
        }],
        slices: Vec::new(),
    }
}

fn frankfurt(granted: bool) -> PlannedGatewaySpec {
    gateway_of(
        "frankfurt",
        7,
        addresses("203.0.113.10", "2001:db8:1::10"),
        vec![node_ref("b", "b-1")],
        granted,
    )
}

/// Policy `payments/bank`.
pub fn bank() -> PlannedPolicySpec {
    PlannedPolicySpec {
        source: PolicyRef {
            namespace: Some("payments".into()),
            name: "bank".into(),
        },
        created: 1_000,
        priority: 0,
        namespaces: None,
        pods: app("billing"),
        sources: None,
        to: Destinations {
            cidrs: vec!["198.51.100.0/24".into(), "2001:db8:99::/64".into()],
            except: vec!["198.51.100.9/32".into()],
            ports: Vec::new(),
        },
        bandwidth: None,
        through: vec![PlannedThrough {
            gateway: "frankfurt".into(),
            identity: 7,
        }],
        on_unavailable: OnUnavailable::Block,
    }
}

/// Selects pods labelled `app=NAME`.
pub fn app(name: &str) -> LabelSelector {
    LabelSelector {
        match_labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        match_expressions: Vec::new(),
    }
}

/// A pod of namespace `payments` labelled `app=APP`.
pub fn pod(name: &str, app: &str, addresses: &[&str]) -> Pod {
    Pod {
        namespace: "payments".into(),
        name: name.into(),
        labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
        addresses: addresses
            .iter()
            .filter_map(|a| a.parse::<IpAddr>().ok())
            .collect(),
        created: 1_000,
        ..Pod::default()
    }
}

fn facts(id: u8) -> Facts {
    let link = |mtu, addresses: &[String]| LinkFacts {
        mtu,
        addresses: addresses
            .iter()
            .filter_map(|a| a.parse::<IpNet>().ok())
            .collect::<BTreeSet<_>>(),
    };
    Facts {
        links: BTreeMap::from([
            (
                "eth0".to_owned(),
                link(1500, &[format!("10.0.0.{id}/24"), format!("fd00:10::{id}/64")]),
            ),
            (
                "eth1".to_owned(),
                link(
                    1500,
                    &[format!("203.0.113.{id}/24"), format!("2001:db8:1::{id}/64")],
                ),
            ),
        ]),
        default_device4: Some("eth0".into()),
        default_device6: Some("eth0".into()),
        without_ipv6: false,
    }
}

fn inputs(member_name: &str, id: u8, plan: NodePlan) -> NodeInputs {
    NodeInputs {
        node: format!("{member_name}-1"),
        plan: Some(plan),
        nodes: BTreeMap::from([(format!("{member_name}-1"), node_of(id))]),
        public_keys: BTreeMap::new(),
        network: network(),
        grants: Grants::default(),
        namespaces: BTreeMap::new(),
        pods: Vec::new(),
        sandboxes: Vec::new(),
        guard: false,
        facts: facts(id),
        settings: Settings::default(),
        gateway_indexes: BTreeMap::new(),
        liveness: Liveness::default(),
        leaving: Vec::new(),
        departed: Vec::new(),
    }
}

/// Node a-1: two selected pods, one that isn't, and a gateway elsewhere. Gateway `frankfurt` has number 1.
pub fn source() -> NodeInputs {
    let plan = NodePlan {
        digest: "a".repeat(64),
        member: member("a", 1),
        peers: vec![peer("b", 2)],
        gateways: vec![frankfurt(false)],
        policies: vec![bank()],
    };
    NodeInputs {
        pods: vec![
            pod("billing-0", "billing", &["10.244.0.5", "fd00:244::5"]),
            pod("billing-1", "billing", &["10.244.0.6"]),
            pod("web-0", "web", &["10.244.0.7"]),
        ],
        gateway_indexes: BTreeMap::from([("frankfurt".to_owned(), 1)]),
        ..inputs("a", 1, plan)
    }
}

/// Node b-1: holds gateway `frankfurt`, no pods.
pub fn gateway() -> NodeInputs {
    let plan = NodePlan {
        digest: "b".repeat(64),
        member: member("b", 2),
        peers: vec![peer("a", 1)],
        gateways: vec![frankfurt(true)],
        policies: Vec::new(),
    };
    inputs("b", 2, plan)
}

/// Node b-1 again, with the policy and a selected pod of its own, whose address a pod of a-1 has too.
pub fn both() -> NodeInputs {
    let mut inputs = gateway();
    if let Some(plan) = &mut inputs.plan {
        plan.policies.push(bank());
    }
    inputs.pods = vec![pod("billing-0", "billing", &["10.244.0.5", "fd00:244::5"])];
    inputs
}

/// Slices of both of the gateway's egress IPs: a-1 has two ranges, one that drains and one to come, b-1 and b-2 one each.
fn slices() -> Vec<AddressSlices> {
    let range = |first, last| PortRange { first, last };
    let slice = |member: &str, node: &str| PortSlice {
        member: member.into(),
        node: node.into(),
        ..PortSlice::default()
    };
    let of = |address: &str| AddressSlices {
        address: address.into(),
        slices: vec![
            PortSlice {
                ports: vec![range(1024, 2047), range(4096, 4159)],
                pending: vec![range(2048, 2111)],
                draining: vec![range(8192, 8255)],
                ..slice("a", "a-1")
            },
            PortSlice {
                ports: vec![range(16384, 32767)],
                ..slice("b", "b-1")
            },
            PortSlice {
                ports: vec![range(32768, 65535)],
                ..slice("b", "b-2")
            },
        ],
    };
    vec![of("203.0.113.10"), of("2001:db8:1::10")]
}

/// Node b-2 of member b.
pub fn second_node() -> EgressNodeSpec {
    EgressNodeSpec {
        overlay: addresses("100.64.8.2", "fd64:5711:0:2::2"),
        underlay: addresses("10.0.0.12", "fd00:10::12"),
        incarnation: None,
    }
}

/// Makes the gateway of `inputs` stateless, with nodes b-1 and b-2.
fn stateless(mut inputs: NodeInputs) -> NodeInputs {
    let host = inputs.nodes.contains_key("b-1");
    if host {
        inputs.nodes.insert("b-2".into(), second_node());
    }
    if let Some(plan) = &mut inputs.plan {
        for peer in plan.peers.iter_mut().filter(|p| p.member == "b") {
            let second = second_node();
            peer.nodes.push(PeerNode {
                name: "b-2".into(),
                overlay: second.overlay,
                underlay: second.underlay,
                ..PeerNode::default()
            });
        }
        let gateway = &mut plan.gateways[0];
        gateway.translation = Translation::SourceNode;
        gateway.nodes.push(GatewayNode {
            node: node_ref("b", "b-2"),
            state: GatewayNodeState::Ready,
        });
        gateway.slices = slices();
        if !host {
            for address in &mut gateway.slices {
                address.slices.retain(|s| s.member == "a");
            }
        }
    }
    inputs
}

/// [`source`] with a stateless gateway.
pub fn stateless_source() -> NodeInputs {
    stateless(source())
}

/// [`gateway`] with a stateless gateway.
pub fn stateless_gateway() -> NodeInputs {
    stateless(gateway())
}

/// [`both`] with a stateless gateway.
pub fn stateless_both() -> NodeInputs {
    stateless(both())
}

/// `inputs` with every path to be encrypted and the public keys that `key` knows, by node.
pub fn encrypted(mut inputs: NodeInputs, key: impl Fn(&str) -> Option<String>) -> NodeInputs {
    let keys = |node: &str| key(node).into_iter().collect::<Vec<_>>();
    inputs.public_keys = inputs.nodes.keys().map(|n| (n.clone(), keys(n))).collect();
    if let Some(plan) = &mut inputs.plan {
        plan.member.encrypted = true;
        for peer in &mut plan.peers {
            peer.encrypted = true;
            for node in &mut peer.nodes {
                node.public_keys = keys(&node.name);
            }
        }
    }
    inputs
}

/// Ports that stand for nodes at relays.
const RELAY_PORTS: [(&str, u16); 3] = [("a-1", 40_001), ("b-1", 40_002), ("b-2", 40_003)];

fn relay_port(node: &str) -> u16 {
    let found = RELAY_PORTS.iter().find(|(name, _)| *name == node);
    found.map_or(0, |(_, port)| *port)
}

/// Nodes r-1 and r-2 of member r, by number: 10.0.0.3 / 100.64.12.1 and 10.0.0.13 / 100.64.12.2.
pub fn relay_node(n: u8) -> EgressNodeSpec {
    if n == 1 {
        return node_of(3);
    }
    EgressNodeSpec {
        overlay: addresses("100.64.12.2", "fd64:5711:0:3::2"),
        underlay: addresses("10.0.0.13", "fd00:10::13"),
        incarnation: None,
    }
}

/// `inputs` encrypted, where this member's nodes and its peers' can't call each other: they go through r-1 and r-2.
pub fn relayed(inputs: NodeInputs, key: impl Fn(&str) -> Option<String>) -> NodeInputs {
    let mut inputs = encrypted(inputs, &key);
    let own = inputs.nodes.keys().cloned().collect();
    if let Some(plan) = &mut inputs.plan {
        plan.member.encrypted = false;
        plan.member.uncallable = own;
        for node in plan.peers.iter_mut().flat_map(|p| &mut p.nodes) {
            node.relays = [1, 2].map(|n| node_ref("r", &format!("r-{n}"))).to_vec();
            node.relay_port = relay_port(&node.name);
        }
        let nodes = [1, 2].map(|n| {
            let node = relay_node(n);
            let name = format!("r-{n}");
            PeerNode {
                public_keys: key(&name).into_iter().collect(),
                name,
                overlay: node.overlay,
                underlay: node.underlay,
                ..PeerNode::default()
            }
        });
        plan.peers.push(PlannedPeerSpec {
            member: "r".into(),
            partition: "default".into(),
            encrypted: true,
            nodes: nodes.to_vec(),
        });
    }
    inputs
}

/// Node r-1 or r-2, which passes packets on between a-1 and b-1 if `granted`.
pub fn relay(n: u8, key: impl Fn(&str) -> Option<String>, granted: bool) -> NodeInputs {
    let plan = NodePlan {
        digest: "c".repeat(64),
        member: member("r", 3),
        peers: vec![peer("a", 1), peer("b", 2)],
        gateways: Vec::new(),
        policies: Vec::new(),
    };
    let mut inputs = encrypted(inputs("r", 3, plan), key);
    let name = format!("r-{n}");
    inputs.nodes = BTreeMap::from([(name.clone(), relay_node(n))]);
    inputs.node = name;
    if let Some(plan) = &mut inputs.plan {
        plan.member.encrypted = false;
        for node in plan.peers.iter_mut().flat_map(|p| &mut p.nodes) {
            node.relay_port = relay_port(&node.name);
            if granted && node.name == "a-1" {
                node.relayed = vec![node_ref("b", "b-1")];
            }
        }
    }
    inputs
}

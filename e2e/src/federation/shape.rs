//! What a federation is made of.

use std::collections::BTreeMap;

use crate::state::{ArenaSpec, ClusterSpec, Enforcer, Need, Provider};

/// Which clusters there are, and which gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Two members; each has a gateway of one node.
    ///
    /// ```text
    /// hub-n1                  the hub, two replicas, behind NodePort 30943
    /// a-n1, a-n2 (egress)     member a; a-n2 is gateway frankfurt (203.0.113.10-19)
    /// b-n1, b-n2 (egress)     member b; b-n2 is gateway vienna (203.0.113.20-29)
    /// ```
    Standard,
    /// Clients in one member, gateways of several nodes in others, and kube-router's firewall on all.
    ///
    /// ```text
    /// hub-n1                          the hub
    /// a-n1, a-n2                      member a: clients
    /// b-n1 (egress), b-n2 (egress)    member b   ┐ gateway pair (203.0.113.30-39) is b's,
    /// c-n1 (egress)                   member c   ┘ spare (50-59) is c's, span (40-49) is both's
    /// ```
    Failover,
    /// A gateway in one partition, its users in another.
    ///
    /// ```text
    /// hub-n1                  partition 1: the hub
    /// a-n1, a-n2 (egress)     partition 1: member a; a-n2 is gateway frankfurt (203.0.113.10-19)
    /// b-n1                    partition 2: member b
    /// ```
    Partitions,
    /// Three partitions, of which only the first can be called.
    ///
    /// ```text
    /// hub-n1                          partition 1: the hub
    /// a-n1 (egress), a-n2 (egress)    partition 1: member a; both are gateway frankfurt (203.0.113.10-19)
    /// b-n1                            partition 2, behind a NAT: member b
    /// c-n1 (egress)                   partition 3, behind a firewall: member c; gateway zurich (198.18.3.10-19)
    /// ```
    Hidden,
}

const STANDARD: &str = "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: frankfurt}
spec:
  nodes: [{member: a, selector: {matchLabels: {egress: 'true'}}}]
  addresses: {ipv4: [203.0.113.10-203.0.113.19], ipv6: ['2001:db8:113::10-2001:db8:113::19']}
---
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: vienna}
spec:
  nodes: [{member: b, selector: {matchLabels: {egress: 'true'}}}]
  addresses: {ipv4: [203.0.113.20-203.0.113.29], ipv6: ['2001:db8:113::20-2001:db8:113::29']}
";

const PARTITIONS: &str = "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: frankfurt}
spec:
  nodes: [{member: a, selector: {matchLabels: {egress: 'true'}}}]
  addresses: {ipv4: [203.0.113.10-203.0.113.19], ipv6: ['2001:db8:113::10-2001:db8:113::19']}
";

const HIDDEN: &str = "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: frankfurt}
spec:
  nodes: [{member: a, selector: {matchLabels: {egress: 'true'}}}]
  addresses: {ipv4: [203.0.113.10-203.0.113.19], ipv6: ['2001:db8:113::10-2001:db8:113::19']}
---
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: zurich}
spec:
  nodes: [{member: c, selector: {matchLabels: {egress: 'true'}}}]
  addresses: {ipv4: [198.18.3.10-198.18.3.19], ipv6: ['2001:db8:1803::10-2001:db8:1803::19']}
";

const FAILOVER: &str = "
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: pair}
spec:
  nodes: [{member: b, selector: {matchLabels: {egress: 'true'}}}]
  addresses: {ipv4: [203.0.113.30-203.0.113.39], ipv6: ['2001:db8:113::30-2001:db8:113::39']}
---
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: span}
spec:
  nodes:
  - {member: b, selector: {matchLabels: {egress: 'true'}}}
  - {member: c, selector: {matchLabels: {egress: 'true'}}}
  addresses: {ipv4: [203.0.113.40-203.0.113.49], ipv6: ['2001:db8:113::40-2001:db8:113::49']}
---
apiVersion: spillway.io/v1alpha1
kind: EgressGateway
metadata: {name: spare}
spec:
  nodes: [{member: c, selector: {matchLabels: {egress: 'true'}}}]
  addresses: {ipv4: [203.0.113.50-203.0.113.59], ipv6: ['2001:db8:113::50-2001:db8:113::59']}
";

impl Shape {
    /// The arena that it stands on. Where the provider has no enforcer of NetworkPolicy there is none.
    pub fn spec(self, name: &str, provider: Provider) -> ArenaSpec {
        let egress = BTreeMap::from([("egress".to_owned(), "true".to_owned())]);
        let member = |cluster: &str, nodes: u8, gateways: &[u8]| {
            let mut spec = ClusterSpec::new(cluster, nodes);
            spec.node_labels = gateways
                .iter()
                .map(|n| (format!("{cluster}-n{n}"), egress.clone()))
                .collect();
            spec
        };
        let enforcer = provider
            .lacks(Need::Enforcer)
            .is_none()
            .then_some(Enforcer::KubeRouter);
        let guarded = |spec: ClusterSpec| ClusterSpec { enforcer, ..spec };
        let hub = ClusterSpec::new("hub", 1);
        let clusters = match self {
            Self::Standard => vec![hub, member("a", 2, &[2]), member("b", 2, &[2])],
            Self::Failover => vec![
                hub,
                guarded(member("a", 2, &[])),
                guarded(member("b", 2, &[1, 2])),
                guarded(member("c", 1, &[1])),
            ],
            Self::Partitions => {
                let elsewhere = ClusterSpec {
                    partition: 2,
                    ..member("b", 1, &[])
                };
                vec![hub, member("a", 2, &[2]), elsewhere]
            }
            Self::Hidden => {
                let at = |partition, spec| ClusterSpec { partition, ..spec };
                vec![
                    hub,
                    member("a", 2, &[1, 2]),
                    at(2, member("b", 1, &[])),
                    at(3, member("c", 1, &[1])),
                ]
            }
        };
        ArenaSpec {
            name: name.to_owned(),
            provider,
            clusters,
        }
    }

    /// The gateways that every scenario may use.
    pub(super) fn gateways(self) -> &'static str {
        match self {
            Self::Standard => STANDARD,
            Self::Failover => FAILOVER,
            Self::Partitions => PARTITIONS,
            Self::Hidden => HIDDEN,
        }
    }

    /// Members that can't be called.
    pub(super) fn hidden(self) -> &'static [&'static str] {
        match self {
            Self::Hidden => &["b", "c"],
            Self::Standard | Self::Failover | Self::Partitions => &[],
        }
    }

    /// Tells arenas apart that are up at once, or stay.
    pub(super) fn arena_name(self, name: &str, provider: Provider) -> String {
        let make = match provider {
            Provider::Namespaces => "",
            Provider::Kind | Provider::KindUpstream => "-kind",
        };
        match self {
            Self::Standard => format!("{name}{make}"),
            Self::Failover => format!("{name}{make}-fo"),
            Self::Partitions => format!("{name}{make}-pa"),
            Self::Hidden => format!("{name}{make}-hi"),
        }
    }
}

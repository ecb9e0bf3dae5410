//! What every scenario of the group stands on: pods on two nodes, a policy, flows, and what they must come to.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use spillway_e2e::eventually;
use spillway_e2e::federation::{
    Egress, Federation, Flows, Load, OUTSIDE, OUTSIDE_V6, Outcome, Story, StoryPod,
};

/// The outside server, without ports.
const SERVERS: [&str; 2] = ["198.51.100.10", "2001:db8:51::10"];

/// To each of two servers from each of two pods: 100 connections that the pods feed, 100 that the server feeds.
const LOAD: Load = Load {
    driven: 25,
    pushed: 25,
    udp: 2,
    icmp: 1,
    pace: Duration::from_millis(20),
};

/// How long a change may take that needs hub or API servers to notice a dead node.
pub(super) const NOTICED: Duration = Duration::from_secs(150);

/// A gateway and the pair of its egress IPs that a scenario uses.
#[derive(Clone, Copy)]
pub(super) struct Gate {
    /// Name of the gateway.
    pub(super) name: &'static str,
    /// Its egress IPs.
    pub(super) v4: &'static str,
    pub(super) v6: &'static str,
    /// Its nodes.
    pub(super) nodes: &'static [&'static str],
}

/// Both nodes of member b.
pub(super) const PAIR: Gate = Gate {
    name: "pair",
    v4: "203.0.113.30",
    v6: "2001:db8:113::30",
    nodes: &["b-n1", "b-n2"],
};

/// The nodes of members b and c.
pub(super) const SPAN: Gate = Gate {
    name: "span",
    v4: "203.0.113.40",
    v6: "2001:db8:113::40",
    nodes: &["b-n1", "b-n2", "c-n1"],
};

/// The node of member c.
pub(super) const SPARE: Gate = Gate {
    name: "spare",
    v4: "203.0.113.50",
    v6: "2001:db8:113::50",
    nodes: &["c-n1"],
};

/// A story with a policy and pods that it takes.
pub(super) struct Ground<'a> {
    pub(super) federation: &'a Federation,
    pub(super) story: Story<'a>,
    pub(super) gate: Gate,
    pub(super) pods: Vec<StoryPod<'a>>,
}

impl<'a> Ground<'a> {
    /// A policy through these gateways, of which the first is in use, and a pod on each of member a's nodes.
    pub(super) async fn new(federation: &'a Federation, namespace: &str, through: &[Gate]) -> Result<Self> {
        let story = federation.story(namespace).await?;
        let entries: Vec<String> = through
            .iter()
            .map(|gate| {
                format!(
                    "  - {{gateway: {}, egressIP: {{ipv4: {}, ipv6: '{}'}}}}",
                    gate.name, gate.v4, gate.v6
                )
            })
            .collect();
        story
            .apply(&format!(
                "
apiVersion: spillway.io/v1alpha1
kind: FederatedEgressPolicy
metadata: {{name: bank}}
spec:
  pods: {{matchLabels: {{app: billing}}}}
  to: {{cidrs: [198.51.100.0/24, '2001:db8:51::/64']}}
  through:
{}
",
                entries.join("\n")
            ))
            .await?;
        // An enforcer that knows connections stands in the way of every IPv4 packet, and lets these pass.
        federation
            .cluster("a")?
            .apply(&format!(
                "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: outside, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{app: billing}}}}
  policyTypes: [Egress]
  egress: [{{to: [{{ipBlock: {{cidr: 198.51.100.0/24}}}}]}}]
"
            ))
            .await?;
        let mut pods = Vec::new();
        for node in ["a-n1", "a-n2"] {
            pods.push(
                story
                    .pod_on("a", &format!("on-{node}"), "app=billing", node)
                    .await?,
            );
        }
        let ground = Self {
            federation,
            story,
            gate: through[0],
            pods,
        };
        ground.leaves_through(ground.gate).await?;
        // Every node of the gateway ready, or a fault would meet a gateway that is still coming up.
        federation
            .one_holder_of(ground.gate.v4, ground.gate.nodes)
            .await?;
        Ok(ground)
    }

    /// Waits until new connections of every pod leave with the gateway's egress IPs, over both families.
    pub(super) async fn leaves_through(&self, gate: Gate) -> Result<()> {
        for pod in &self.pods {
            pod.leaves_from_within(NOTICED, OUTSIDE, Egress::Ip(gate.v4))
                .await?;
            pod.leaves_from_within(NOTICED, OUTSIDE_V6, Egress::Ip(gate.v6))
                .await?;
        }
        Ok(())
    }

    /// The node that holds the IPv4 egress IP by its own account, once the router sends replies there as well: a fault
    /// of any other node would prove little.
    pub(super) async fn holder(&self) -> Result<String> {
        self.held_by_one_of(self.gate.nodes).await
    }

    async fn held_by_one_of(&self, nodes: &[&str]) -> Result<String> {
        let what = format!("the router knows who of {nodes:?} holds {}", self.gate.v4);
        eventually(NOTICED, &what, || async {
            let holder = self.federation.one_holder_of(self.gate.v4, nodes).await?;
            // A router that has nothing to send forgets.
            let _lost_while_it_moves = self.pods[0].source(OUTSIDE).await;
            let believed = self.federation.answers_for(self.gate.v4)?;
            ensure!(
                believed.as_deref() == Some(holder.as_str()),
                "{holder} does, and the router believes in {believed:?}"
            );
            Ok(holder)
        })
        .await
    }

    /// Flows of all pods, up.
    async fn flows(&self) -> Result<Vec<Flows>> {
        futures::future::try_join_all(self.pods.iter().map(|pod| pod.flows(&SERVERS, LOAD))).await
    }

    /// Runs flows through `fault`, which returns when it has happened, and then checks that
    ///
    /// * no connection was lost, and each of its bytes arrived right at both ends,
    /// * nothing reached the outside from another address than the egress IPs,
    /// * new connections work at once, and
    /// * no gateway node keeps connection state of them.
    pub(super) async fn across(
        &self,
        what: &str,
        fault: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<Vec<Outcome>> {
        self.try_across(fault)
            .await
            .with_context(|| format!("across this fault: {what}"))
            .inspect(|outcomes| {
                for (pod, outcome) in self.pods.iter().zip(outcomes) {
                    eprintln!("      {what}, {}: {}", pod.node(), outcome.report.summary());
                }
            })
    }

    async fn try_across(&self, fault: impl AsyncFnOnce() -> Result<()>) -> Result<Vec<Outcome>> {
        self.federation.arena().watch_sources()?;
        let flows = self.flows().await?;
        // What new connections can do, old ones will have done by the time their retransmission timers run out.
        let done = async {
            fault().await?;
            self.leaves_through(self.gate).await
        }
        .await;
        let ended = futures::future::join_all(flows.into_iter().map(Flows::end)).await;
        done?;
        let outcomes: Vec<Outcome> = ended.into_iter().collect::<Result<_>>()?;
        for pod in &self.pods {
            for (server, address) in [(OUTSIDE, self.gate.v4), (OUTSIDE_V6, self.gate.v6)] {
                let source = pod.source(server).await.context("a new connection, at once")?;
                ensure!(source == address, "a new connection left from {source}");
            }
        }
        for outcome in &outcomes {
            outcome
                .unbroken()
                .with_context(|| format!("the flows: {}", outcome.report.summary()))?;
            outcome.only_from(self.federation, &[self.gate.v4, self.gate.v6])?;
        }
        self.federation
            .nothing_came_but_from(&[self.gate.v4, self.gate.v6])?;
        self.federation.no_connection_state_on(self.gate.nodes).await?;
        Ok(outcomes)
    }

    /// The other nodes of the gateway.
    pub(super) fn others(&self, node: &str) -> Vec<&'static str> {
        let nodes = self.gate.nodes.iter().copied();
        nodes.filter(|other| *other != node).collect()
    }

    /// Waits until one of the others holds both egress IPs, and the router knows of the IPv4 one.
    pub(super) async fn taken_over_from(&self, node: &str) -> Result<()> {
        let others = self.others(node);
        self.federation.one_holder_of(self.gate.v6, &others).await?;
        self.held_by_one_of(&others).await.map(drop)
    }

    /// Waits until no node but one of these says in the gateway's status that it holds the IPv4 egress IP.
    pub(super) async fn status_says_one_of(&self, nodes: &[&str]) -> Result<()> {
        let what = format!(
            "the gateway's status names one of {nodes:?} as holder of {}",
            self.gate.v4
        );
        eventually(NOTICED, &what, || async {
            let object = self
                .federation
                .hub_object(&["egressgateway", self.gate.name])
                .await?;
            let holders = object["status"]["holders"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let holder = holders
                .iter()
                .find(|holder| holder["address"] == self.gate.v4)
                .with_context(|| format!("it names nobody: {holders:?}"))?;
            ensure!(
                nodes.iter().any(|node| holder["node"] == *node)
                    && holder["reason"].as_str().is_some_and(|text| !text.is_empty()),
                "it says {holder}"
            );
            Ok(())
        })
        .await
    }

    pub(super) async fn end(self) -> Result<()> {
        self.story.end().await
    }
}

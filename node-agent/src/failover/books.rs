//! What this node answers for, since when and why, and what it is about to hand over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::{Timestamp, Unit};
use spillway_core::health::announce::again;
use spillway_core::health::message::abbreviated;
use spillway_core::health::reason::{View, Why, why_taken};
use spillway_core::health::{Assignment, Handover, Leaving, Moment};
use spillway_core::node::gateways::Liveness;
use spillway_core::node::inputs::NodeInputs;
use spillway_crds::member::{GatewayNodeState, NodeRef, PlannedGatewaySpec};

use super::Orders;

/// An egress IP that this node answers for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Holding {
    pub(crate) address: IpAddr,
    /// Since when, to the millisecond.
    pub(crate) since: Timestamp,
    /// Why it moved here; absent where an earlier agent took it and may have said so.
    pub(crate) reason: Option<String>,
}

/// The books.
#[derive(Debug, Default)]
pub(super) struct Books {
    handover: Handover,
    leaving: Leaving,
    /// With the gateways' names.
    held: BTreeMap<IpAddr, String>,
    holdings: BTreeMap<IpAddr, Holding>,
    asked: BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    /// What to announce once more, though it hasn't moved.
    again: BTreeSet<IpAddr>,
    /// What was compiled last.
    gateways: Option<Vec<PlannedGatewaySpec>>,
    liveness: Liveness,
}

impl Books {
    /// Fills in what depends on time and on others. Answers when to look again.
    pub(super) fn prepare(
        &mut self,
        now: Moment,
        before: &NodeInputs,
        inputs: &mut NodeInputs,
        confirmed: &BTreeMap<NodeRef, BTreeSet<IpAddr>>,
    ) -> Option<Moment> {
        let left = self.leaving.step(now, before, inputs);
        self.again.extend(again(before, inputs, &self.held));
        let kept = self.handover.step(now, &self.held, inputs, confirmed);
        inputs.liveness.kept = kept.addresses;
        self.asked = kept.successors;
        left.into_iter().chain(kept.until).min()
    }

    /// Takes down what the kernel was told. Answers why what is new was taken, where this agent knows.
    pub(super) fn done(&mut self, inputs: &NodeInputs, held: Option<&BTreeMap<IpAddr, String>>) -> Vec<Why> {
        let mut taken = Vec::new();
        let gateways = inputs.plan.as_ref().map(|p| p.gateways.clone());
        if let Some(held) = held {
            let now = Timestamp::now().round(Unit::Millisecond).unwrap_or_default();
            self.holdings.retain(|address, _| held.contains_key(address));
            for (address, name) in held {
                if self.holdings.contains_key(address) {
                    continue;
                }
                let reason = self.gateways.as_ref().map(|before| {
                    let view = |gateways: Option<&[PlannedGatewaySpec]>| {
                        gateways
                            .and_then(|g| g.iter().find(|g| g.gateway == *name))
                            .cloned()
                    };
                    let (before, after) = (view(Some(before)), view(gateways.as_deref()));
                    why_taken(
                        View {
                            gateway: before.as_ref(),
                            liveness: &self.liveness,
                        },
                        View {
                            gateway: after.as_ref(),
                            liveness: &inputs.liveness,
                        },
                        &me(inputs),
                        *address,
                    )
                });
                let reason = reason.map(|why| {
                    let text = why.to_string();
                    taken.push(why);
                    text
                });
                let why = reason.as_deref().unwrap_or("as before the agent's start");
                tracing::info!(node = inputs.node, gateway = name, %address, why, "this node answers for an egress IP");
                let holding = Holding {
                    address: *address,
                    since: now,
                    reason,
                };
                self.holdings.insert(*address, holding);
            }
            for (address, gateway) in &self.held {
                if !held.contains_key(address) {
                    tracing::info!(node = inputs.node, gateway, %address, "another node answers for an egress IP from now on");
                }
            }
            self.held.clone_from(held);
            self.gateways = gateways;
            self.liveness = inputs.liveness.clone();
        }
        taken
    }

    /// What the prober must know now.
    pub(super) fn orders(&self, inputs: &NodeInputs, programmed: bool) -> Orders {
        let me = me(inputs);
        let liveness = &inputs.liveness;
        let asks = liveness.retiring.contains(&me) || liveness.dead.contains(&me);
        let digest = inputs.plan.as_ref().map(|p| p.digest.as_str());
        let places = inputs
            .plan
            .iter()
            .flat_map(|p| &p.gateways)
            .flat_map(|g| &g.nodes);
        let mut mine = places.filter(|n| n.node == me).peekable();
        let drained = mine.peek().is_some() && mine.all(|n| n.state == GatewayNodeState::Draining);
        Orders {
            drained,
            assignment: Assignment::of(inputs),
            programmed: digest.filter(|_| programmed).map(|d| abbreviated(Some(d))),
            held: self.held.keys().copied().collect(),
            asked: self.asked.clone(),
            leaving: false,
            left: self.held.is_empty() || (asks && liveness.kept.is_empty()),
        }
    }

    /// What is still held of what is to be announced once more.
    pub(super) fn take_again(&mut self) -> Vec<IpAddr> {
        let again = std::mem::take(&mut self.again).into_iter();
        again.filter(|a| self.held.contains_key(a)).collect()
    }

    pub(super) fn holdings(&self) -> Vec<Holding> {
        self.holdings.values().cloned().collect()
    }
}

fn me(inputs: &NodeInputs) -> NodeRef {
    inputs.me().unwrap_or_else(|| NodeRef::new("", &inputs.node))
}

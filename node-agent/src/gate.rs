//! What to work towards, given what was seen and what was worked towards before. Pure.
//!
//! API servers have no transactions over several objects, so a plan counts only when the digests on its
//! objects add up to the one on its head. Until then the previous plan stays, with the pods of now.

use std::collections::{BTreeMap, BTreeSet};

use spillway_core::node::inputs::{NodeInputs, NodePlan, Pod};
use spillway_core::plan::{Digest, ResourceKey, ResourceKind, digest_of};
use spillway_crds::SINGLETON;
use spillway_crds::member::{
    ClusterNetworkSpec, EgressNodeSpec, EgressPlanSpec, Grants, PlannedGatewaySpec, PlannedMemberSpec,
    PlannedPeerSpec, PlannedPolicySpec,
};

/// One object of a plan with the digest on it; `None` where the annotation is missing or no digest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned<S> {
    pub(crate) spec: S,
    pub(crate) digest: Option<Digest>,
}

/// Everything seen at one moment. Objects by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) head: Option<EgressPlanSpec>,
    pub(crate) members: BTreeMap<String, Planned<PlannedMemberSpec>>,
    pub(crate) peers: BTreeMap<String, Planned<PlannedPeerSpec>>,
    pub(crate) gateways: BTreeMap<String, Planned<PlannedGatewaySpec>>,
    pub(crate) policies: BTreeMap<String, Planned<PlannedPolicySpec>>,
    pub(crate) nodes: BTreeMap<String, EgressNodeSpec>,
    /// WireGuard public keys of nodes.
    pub(crate) public_keys: BTreeMap<String, Vec<String>>,
    pub(crate) network: Option<ClusterNetworkSpec>,
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) pods: Vec<Pod>,
    /// Pods that the API server forgot since the last look, as they were last seen.
    pub(crate) forgotten: Vec<Pod>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    /// There never was a plan that could be applied: leave the kernel alone.
    Nothing(Waiting),
    /// Compile these inputs (facts and settings as given). The second part says what is being waited for.
    Apply(Box<NodeInputs>, Option<Waiting>),
    /// Take everything out.
    TearDown,
}

/// Why the plan on the API server isn't the one in use.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Waiting {
    /// There is none.
    #[error("there is no EgressPlan yet")]
    NoPlan,
    /// Its objects aren't all there.
    #[error("the plan's objects add up to {found:?}, its head says {head}: not all of them were seen yet")]
    Incomplete {
        /// What the head says.
        head: String,
        /// What the objects add up to; `None` where one has no digest.
        found: Option<Digest>,
    },
    /// Without it, traffic within the cluster would be taken for egress.
    #[error("there is no ClusterNetwork yet")]
    NoNetwork,
}

/// Decides. `held` is what was compiled last; its facts, settings and gateway numbers are carried on.
pub(crate) fn next(seen: &Seen, held: &NodeInputs) -> Next {
    if seen.head.as_ref().is_some_and(|h| h.teardown) {
        return Next::TearDown;
    }
    let grants = seen
        .head
        .as_ref()
        .map_or_else(|| held.grants.clone(), |h| h.grants.clone());
    let (plan, waiting) = match complete(seen) {
        Ok(plan) => (Some(plan), None),
        Err(waiting) => (held.plan.clone(), Some(waiting)),
    };
    let Some(plan) = plan else {
        return Next::Nothing(waiting.unwrap_or(Waiting::NoPlan));
    };
    let plan = as_granted(plan, &grants);
    let network = match &seen.network {
        Some(network) => network.clone(),
        None if held.plan.is_some() => held.network.clone(),
        None => return Next::Nothing(Waiting::NoNetwork),
    };
    let inputs = NodeInputs {
        plan: Some(plan),
        nodes: nodes(seen, held),
        public_keys: seen.public_keys.clone(),
        network,
        grants,
        namespaces: seen.namespaces.clone(),
        pods: pods(seen, held),
        ..held.clone()
    };
    Next::Apply(Box::new(inputs), waiting)
}

/// The plan without this cluster's nodes in gateways that its owner doesn't grant. To the others they are nodes that
/// never answer.
fn as_granted(mut plan: NodePlan, grants: &Grants) -> NodePlan {
    for gateway in &mut plan.gateways {
        if !grants.gateway(&gateway.gateway) {
            gateway.nodes.retain(|n| n.node.member != plan.member.member);
        }
    }
    plan
}

/// The cluster's nodes. This one stays as it was when its object vanishes: its member agent makes it again, and
/// until then the tunnel and all that goes through it would be gone.
fn nodes(seen: &Seen, held: &NodeInputs) -> BTreeMap<String, EgressNodeSpec> {
    let mut nodes = seen.nodes.clone();
    if let Some(own) = held
        .nodes
        .get(&held.node)
        .filter(|_| !nodes.contains_key(&held.node))
    {
        nodes.insert(held.node.clone(), own.clone());
    }
    nodes
}

/// The pods there are, and those that may still run though the API server has forgotten them, until others have
/// their addresses.
fn pods(seen: &Seen, held: &NodeInputs) -> Vec<Pod> {
    let claimed: BTreeSet<_> = seen
        .pods
        .iter()
        .filter(|p| !p.host_network && !p.finished)
        .flat_map(|p| &p.addresses)
        .collect();
    let may_run = held
        .pods
        .iter()
        .filter(|p| p.removed && p.addresses.iter().any(|a| !claimed.contains(a)));
    seen.pods.iter().chain(may_run).cloned().collect()
}

/// The plan, if all of it is there.
fn complete(seen: &Seen) -> Result<NodePlan, Waiting> {
    let head = seen.head.as_ref().ok_or(Waiting::NoPlan)?;
    let incomplete = |found| Waiting::Incomplete {
        head: head.digest.clone(),
        found,
    };
    let mut digests = BTreeMap::new();
    let all = keys(ResourceKind::Member, &seen.members)
        .chain(keys(ResourceKind::Peer, &seen.peers))
        .chain(keys(ResourceKind::Gateway, &seen.gateways))
        .chain(keys(ResourceKind::Policy, &seen.policies));
    for (key, digest) in all {
        digests.insert(key, digest.ok_or_else(|| incomplete(None))?);
    }
    let found = digest_of(&digests);
    let member = seen.members.get(SINGLETON);
    match member {
        Some(member) if head.digest.parse() == Ok(found) => Ok(NodePlan {
            digest: head.digest.clone(),
            member: member.spec.clone(),
            peers: specs(&seen.peers),
            gateways: specs(&seen.gateways),
            policies: specs(&seen.policies),
        }),
        _ => Err(incomplete(Some(found))),
    }
}

fn keys<S>(
    kind: ResourceKind,
    objects: &BTreeMap<String, Planned<S>>,
) -> impl Iterator<Item = (ResourceKey, Option<Digest>)> + '_ {
    objects.iter().map(move |(name, planned)| {
        let name = name.clone();
        (ResourceKey { kind, name }, planned.digest)
    })
}

fn specs<S: Clone>(objects: &BTreeMap<String, Planned<S>>) -> Vec<S> {
    objects.values().map(|p| p.spec.clone()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use spillway_core::node::fixtures;
    use spillway_core::plan::{Plan, Resource};

    use super::*;

    fn planned<S: Clone>(spec: &S, resource: &Resource) -> (String, Planned<S>) {
        let planned = Planned {
            spec: spec.clone(),
            digest: Some(Digest::of(&resource.encode())),
        };
        (resource.key().name, planned)
    }

    /// What the API server shows of the fixture's source node.
    pub(crate) fn seen() -> Seen {
        let inputs = fixtures::source();
        let plan = inputs.plan.expect("fixtures have a plan");
        let resources = [Resource::Member(plan.member.clone())]
            .into_iter()
            .chain(plan.peers.iter().cloned().map(Resource::Peer))
            .chain(plan.gateways.iter().cloned().map(Resource::Gateway))
            .chain(plan.policies.iter().cloned().map(Resource::Policy));
        Seen {
            head: Some(EgressPlanSpec {
                digest: Plan::new(resources).digest().to_string(),
                hub_id: "h".into(),
                epoch: 1,
                teardown: false,
                grants: Grants::default(),
            }),
            members: [planned(&plan.member, &Resource::Member(plan.member.clone()))].into(),
            peers: plan
                .peers
                .iter()
                .map(|p| planned(p, &Resource::Peer(p.clone())))
                .collect(),
            gateways: plan
                .gateways
                .iter()
                .map(|g| planned(g, &Resource::Gateway(g.clone())))
                .collect(),
            policies: plan
                .policies
                .iter()
                .map(|p| planned(p, &Resource::Policy(p.clone())))
                .collect(),
            nodes: inputs.nodes,
            public_keys: inputs.public_keys,
            network: Some(inputs.network),
            namespaces: inputs.namespaces,
            pods: inputs.pods,
            forgotten: Vec::new(),
        }
    }

    fn fresh() -> NodeInputs {
        NodeInputs {
            node: "a-1".into(),
            ..NodeInputs::default()
        }
    }

    fn applied(next: Next) -> (NodeInputs, Option<Waiting>) {
        match next {
            Next::Apply(inputs, waiting) => (*inputs, waiting),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_complete_plan_is_taken() {
        let (inputs, waiting) = applied(next(&seen(), &fresh()));
        assert_eq!(waiting, None);
        assert_eq!(inputs.plan.expect("plan").policies.len(), 1);
        assert_eq!(inputs.node, "a-1");
    }

    #[test]
    fn an_incomplete_plan_is_never_taken_but_pods_go_on() {
        let (held, _) = applied(next(&seen(), &fresh()));
        let mut later = seen();
        later.policies.clear();
        later.pods.truncate(1);
        assert!(matches!(
            next(&later, &fresh()),
            Next::Nothing(Waiting::Incomplete { .. })
        ));
        let (inputs, waiting) = applied(next(&later, &held));
        assert!(matches!(waiting, Some(Waiting::Incomplete { .. })));
        assert_eq!(inputs.plan, held.plan);
        assert_eq!(inputs.pods.len(), 1);
    }

    #[test]
    fn an_object_without_a_digest_makes_the_plan_incomplete() {
        let mut later = seen();
        later.peers.values_mut().for_each(|p| p.digest = None);
        assert!(matches!(
            next(&later, &fresh()),
            Next::Nothing(Waiting::Incomplete { found: None, .. })
        ));
    }

    #[test]
    fn a_vanished_head_or_network_changes_nothing() {
        let (held, _) = applied(next(&seen(), &fresh()));
        let later = Seen {
            head: None,
            network: None,
            ..seen()
        };
        let (inputs, waiting) = applied(next(&later, &held));
        assert_eq!(waiting, Some(Waiting::NoPlan));
        assert_eq!((inputs.plan, inputs.network), (held.plan, held.network));
        let unknown = Seen {
            network: None,
            ..seen()
        };
        assert_eq!(next(&unknown, &fresh()), Next::Nothing(Waiting::NoNetwork));
    }

    #[test]
    fn this_node_stays_when_its_object_vanishes_and_others_go() {
        let mut more = seen();
        more.nodes.insert("a-2".into(), fixtures::node_of(9));
        let (held, _) = applied(next(&more, &fresh()));
        let mut later = seen();
        later.nodes.clear();
        let (inputs, _) = applied(next(&later, &held));
        assert_eq!(inputs.nodes, seen().nodes);
    }

    #[test]
    fn a_gateway_that_is_not_granted_has_no_node_here() {
        let mut more = seen();
        let own = more.members[SINGLETON].spec.member.clone();
        let here = |inputs: &NodeInputs| {
            let plan = inputs.plan.as_ref().expect("plan");
            let nodes = plan.gateways.iter().flat_map(|g| &g.nodes);
            nodes.filter(|n| n.node.member == own).count()
        };
        let (_, planned) = more.gateways.iter_mut().next().expect("a gateway");
        let mut node = planned.spec.nodes[0].clone();
        node.node.member.clone_from(&own);
        planned.spec.nodes.push(node);
        let name = planned.spec.gateway.clone();
        let (held, _) = applied(next(&more, &fresh()));
        assert_eq!(here(&held), 1);
        let elsewhere = held.plan.as_ref().expect("plan").gateways[0].nodes.len() - 1;

        let grants = &mut more.head.as_mut().expect("head").grants;
        grants.gateways = Some(vec!["other".into()]);
        let (inputs, waiting) = applied(next(&more, &held));
        assert_eq!((waiting, here(&inputs)), (None, 0));
        assert_eq!(
            inputs.plan.as_ref().expect("plan").gateways[0].nodes.len(),
            elsewhere
        );
        // At once, also while a plan is on its way.
        more.policies.clear();
        let (inputs, waiting) = applied(next(&more, &held));
        assert!(waiting.is_some() && here(&inputs) == 0);
        // And for as long as nothing else is heard.
        let nothing = Seen { head: None, ..seen() };
        let (inputs, _) = applied(next(&nothing, &inputs));
        assert_eq!(here(&inputs), 0);
        assert!(!inputs.grants.gateway(&name));
    }

    #[test]
    fn a_teardown_needs_no_complete_plan() {
        let (held, _) = applied(next(&seen(), &fresh()));
        let mut later = seen();
        later.policies.clear();
        later.head.as_mut().expect("head").teardown = true;
        assert_eq!(next(&later, &held), Next::TearDown);
    }
}

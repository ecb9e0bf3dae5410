//! Whom the plan's policies could select, asked before a pod may send its first packet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::inputs::{NodeInputs, NodePlan, Pod};
use super::select::selects;

/// The policies' selectors and the namespaces' labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scope(NodeInputs);

impl Scope {
    /// That of `inputs`.
    pub fn of(inputs: &NodeInputs) -> Self {
        let plan = inputs.plan.as_ref().map(|plan| NodePlan {
            policies: plan.policies.clone(),
            ..NodePlan::default()
        });
        Self(NodeInputs {
            plan,
            namespaces: inputs.namespaces.clone(),
            grants: inputs.grants.clone(),
            settings: inputs.settings.clone(),
            ..NodeInputs::default()
        })
    }

    /// True where that of `inputs` is the same.
    pub fn is_of(&self, inputs: &NodeInputs) -> bool {
        let policies = |i: &NodeInputs| i.plan.as_ref().map(|p| p.policies.clone());
        policies(&self.0) == policies(inputs)
            && self.0.namespaces == inputs.namespaces
            && self.0.grants == inputs.grants
            && self.0.settings == inputs.settings
    }

    /// Whether any policy selects the pod with this address.
    pub fn selects(&self, pod: &Pod, address: IpAddr) -> bool {
        self.policies()
            .any(|policy| selects(policy, pod, address, &self.0))
    }

    /// Whether the labels of this namespace are known.
    pub fn knows(&self, namespace: &str) -> bool {
        self.0.namespaces.contains_key(namespace)
    }

    /// Whether a policy could select a pod of this namespace whose labels nobody knows. Of a namespace whose own
    /// labels nobody knows either, every selector of namespaces could.
    pub fn could_select_in(&self, namespace: &str) -> bool {
        namespace != self.0.settings.namespace
            && self.0.grants.namespace(namespace)
            && self
                .policies()
                .any(|policy| match (&policy.source.namespace, &policy.namespaces) {
                    (Some(name), _) => name == namespace,
                    (None, None) => true,
                    (None, Some(selector)) => self
                        .0
                        .namespaces
                        .get(namespace)
                        .is_none_or(|labels| selector.matches(labels)),
                })
    }

    /// [`Scope::could_select_in`] of every namespace that is known, or named in policies or grants.
    pub fn namespaces(&self) -> BTreeMap<String, bool> {
        let answer = |name: &String| (name.clone(), self.could_select_in(name));
        let named = self.policies().filter_map(|p| p.source.namespace.as_ref());
        let granted = self.0.grants.namespaces.iter().flatten();
        self.0
            .namespaces
            .keys()
            .chain(named)
            .chain(granted)
            .map(answer)
            .collect()
    }

    /// Whether a policy could select a pod of a namespace that nobody has heard of.
    pub fn could_select_elsewhere(&self) -> bool {
        // What is granted is granted by name.
        self.0.grants.namespaces.is_none() && self.policies().any(|p| p.source.namespace.is_none())
    }

    /// Namespace of Spillway's own pods, which no policy selects.
    pub fn own_namespace(&self) -> &str {
        &self.0.settings.namespace
    }

    fn policies(&self) -> impl Iterator<Item = &spillway_crds::member::PlannedPolicySpec> {
        self.0.plan.iter().flat_map(|p| &p.policies)
    }
}

#[cfg(test)]
mod tests {
    use spillway_crds::LabelSelector;

    use super::*;
    use crate::node::fixtures;

    #[test]
    fn a_namespaced_policy_reaches_its_namespace_only() {
        let scope = Scope::of(&fixtures::source());
        assert!(scope.could_select_in("payments") && !scope.could_select_in("elsewhere"));
        assert!(!scope.could_select_elsewhere());
        let address = "10.244.0.9".parse().expect("address");
        assert!(scope.selects(&fixtures::pod("billing-9", "billing", &[]), address));
        assert!(!scope.selects(&fixtures::pod("web-9", "web", &[]), address));
        assert_eq!(scope.namespaces().get("payments"), Some(&true));
    }

    #[test]
    fn a_selector_of_namespaces_could_mean_any_unknown_one_but_never_our_own() {
        let mut inputs = fixtures::source();
        let eu = LabelSelector {
            match_labels: [("region".to_owned(), "eu".to_owned())].into(),
            ..LabelSelector::default()
        };
        let policy = &mut inputs.plan.as_mut().expect("a plan").policies[0];
        policy.source.namespace = None;
        policy.namespaces = Some(eu);
        let labels = |region: &str| [("region".to_owned(), region.to_owned())].into();
        inputs.namespaces = [("in".to_owned(), labels("eu")), ("out".to_owned(), labels("us"))].into();
        let scope = Scope::of(&inputs);
        assert!(scope.could_select_in("in") && !scope.could_select_in("out"));
        assert!(scope.could_select_in("new") && scope.could_select_elsewhere());
        assert!(!scope.could_select_in(&inputs.settings.namespace));
        assert!(scope.is_of(&inputs));
        inputs.namespaces.clear();
        assert!(!scope.is_of(&inputs));
    }

    #[test]
    fn what_is_not_granted_could_not_be_selected() {
        let mut inputs = fixtures::source();
        let policy = &mut inputs.plan.as_mut().expect("a plan").policies[0];
        policy.source.namespace = None;
        let before = Scope::of(&inputs);
        assert!(before.could_select_in("web") && before.could_select_elsewhere());
        inputs.grants.namespaces = Some(vec!["payments".into()]);
        assert!(!before.is_of(&inputs));
        let scope = Scope::of(&inputs);
        assert!(scope.could_select_in("payments") && !scope.could_select_in("web"));
        assert!(!scope.could_select_elsewhere());
        assert_eq!(scope.namespaces().get("payments"), Some(&true));
    }

    #[test]
    fn without_a_plan_nobody_is_selected() {
        let scope = Scope::of(&NodeInputs::default());
        assert!(!scope.could_select_in("payments") && !scope.could_select_elsewhere());
    }
}

//! Group `network-policy`: a real enforcer, kube-router's firewall, has the last word about a pod's packets whatever
//! egress policy takes them. It filters IPv4 only.

mod enforced;

use spillway_e2e::Need;

use crate::shared::{Scenario, scenario};

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!("network-policy", on Failover enforced::denied_allowed_and_let_go)
            .needing(&[Need::Enforcer]),
        scenario!("network-policy", on Failover enforced::ingress_rules_on_gateway_nodes_are_of_no_account)
            .needing(&[Need::Enforcer]),
        scenario!("network-policy", on Failover enforced::the_check_fails_when_the_enforcer_is_bypassed)
            .needing(&[Need::Enforcer]),
    ]
}

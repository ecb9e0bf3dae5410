//! Group `no-leak`: pods whose first act is to send. Whatever happens meanwhile, the outside server sees a selected
//! pod from its egress IP or not at all.

mod away;
mod chain;
mod gateways;
mod guard;
mod reuse;
mod start;
mod startup;

use std::time::Duration;

use spillway_e2e::Need;

use crate::shared::{Scenario, scenario};

/// How long a crowd may take to start and to say its piece.
const CROWD: Duration = Duration::from_secs(120);

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!("no-leak", start::pods_start_under_a_policy),
        scenario!("no-leak", start::pods_start_while_the_node_agents_are_killed),
        scenario!("no-leak", start::pods_start_while_the_node_agents_are_upgraded),
        scenario!("no-leak", start::pods_start_while_the_table_is_deleted),
        scenario!(
            "no-leak",
            away::only_pods_that_a_policy_may_select_wait_for_an_agent
        ),
        scenario!("no-leak", away::a_node_boots_before_its_agent),
        scenario!("no-leak", chain::a_rewritten_chain_is_put_right).needing(&[Need::ArenaCni]),
        scenario!("no-leak", guard::a_network_that_cant_be_chained_is_guarded).needing(&[Need::ArenaCni]),
        scenario!("no-leak", guard::pods_start_while_the_chain_is_rewritten).needing(&[Need::ArenaCni]),
        scenario!("no-leak", startup::a_new_node_gets_no_pod_before_its_agent).needing(&[Need::OwnKubelet]),
        scenario!("no-leak", reuse::addresses_change_hands).needing(&[Need::ArenaCni]),
        scenario!("no-leak", gateways::no_gateway_node_is_there),
    ]
}

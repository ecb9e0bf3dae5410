//! Group `parity`: what people know from the egress gateways of single clusters.

mod addresses;
mod bandwidth;
mod grants;
mod node_ip;
mod overlap;
mod ports;

use crate::shared::{Scenario, scenario};

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!("parity", ports::each_port_leaves_as_its_policy_says),
        scenario!("parity", addresses::addresses_are_given_kept_and_reserved),
        scenario!("parity", bandwidth::pods_of_a_node_share_their_policys_bandwidth),
        scenario!("parity", grants::a_gateway_is_used_by_whom_it_is_granted_to),
        scenario!("parity", node_ip::nodes_lend_their_own_addresses),
        scenario!("parity", overlap::whoever_wins_is_whom_the_documentation_names),
    ]
}

//! Group `failover`: hundreds of connections through every way in which a gateway can fail, read at the outside server.

mod cluster;
mod fallback;
mod ground;
mod leaving;
mod node;
mod spread;
mod transfer;

use crate::shared::{Scenario, scenario};

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!("failover", on Failover spread::flows_take_all_nodes_and_replies_the_holder),
        scenario!("failover", on Failover node::the_holder_loses_power),
        scenario!("failover", on Failover node::the_holder_hangs),
        scenario!("failover", on Failover node::cables_pulled_and_half_open),
        scenario!("failover", on Failover leaving::cordoned_and_relabelled_nodes_lose_nothing),
        scenario!("failover", on Failover leaving::a_pinned_address_moves_and_comes_back),
        scenario!("failover", on Failover leaving::all_nodes_rebooted_in_turn),
        scenario!("failover", on Failover transfer::a_gigabyte_both_ways_on_a_path_that_shrinks),
        scenario!("failover", on Failover cluster::a_whole_cluster_of_the_gateway_is_switched_off),
        scenario!("failover", on Failover fallback::the_next_gateway_takes_over_and_hands_back),
        // Last: what flapped is held down for a minute, and the others would wait for it.
        scenario!("failover", on Failover node::a_flapping_cable_is_damped),
    ]
}

//! Group `federation`: a hub, two members with equal pod ranges, policies, and the outside server that
//! sees the egress IP.

mod admission;
mod agents;
mod conditions;
mod egress;
mod hub;
mod install;
mod membership;
mod order;
mod pods;
mod ranges;
mod repair;
mod rest;
mod restart;
mod seeing;
mod slices;
mod unavailable;
mod unmatched;

use spillway_e2e::Need;

use crate::shared::{Scenario, scenario};

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!("federation", egress::before_after_and_without_a_policy),
        scenario!("federation", egress::equal_pod_addresses_in_two_members_at_once),
        scenario!("federation", egress::the_check_fails_when_the_gateway_is_bypassed),
        scenario!(
            "federation",
            egress::exceptions_and_other_destinations_leave_as_ever
        ),
        scenario!("federation", egress::udp_icmp_and_ipv6_leave_with_the_egress_ip),
        scenario!("federation", pods::added_relabelled_deleted),
        scenario!("federation", pods::an_address_reused_by_an_unselected_pod).needing(&[Need::ArenaCni]),
        scenario!("federation", pods::policy_edited_and_deleted),
        scenario!(
            "federation",
            conditions::contradictions_get_a_condition_and_harm_nobody
        ),
        scenario!(
            "federation",
            admission::the_api_server_takes_and_refuses_what_it_should
        ),
        scenario!(
            "federation",
            unmatched::what_matches_nothing_says_so_and_harms_nobody
        ),
        scenario!(
            "federation",
            unavailable::the_only_gateway_node_is_cordoned_and_deselected
        ),
        scenario!("federation", unavailable::the_only_gateway_node_is_switched_off),
        scenario!(
            "federation",
            agents::a_policy_that_blocks_everything_spares_the_agents
        ),
        scenario!("federation", order::of_two_policies_the_order_decides),
        scenario!("federation", ranges::cluster_ranges_are_found_followed_and_missed)
            .needing(&[Need::ArenaCni]),
        scenario!("federation", slices::a_slice_grows_before_it_runs_out),
        scenario!("federation", rest::nothing_is_written_at_rest),
        scenario!("federation", seeing::metrics_check_and_gather_say_what_there_is),
        scenario!("federation", hub::pods_come_and_go_while_the_hub_is_down),
        scenario!(
            "federation",
            hub::the_leader_dies_and_the_other_replica_carries_on
        ),
        scenario!("federation", restart::each_daemon_killed_and_restarted),
        scenario!("federation", restart::a_source_node_and_the_gateway_rebooted),
        scenario!("federation", repair::what_is_deleted_by_hand_is_repaired),
        scenario!("federation", membership::join_says_what_is_wrong),
        scenario!(
            "federation",
            membership::leave_leaves_no_trace_and_join_works_again
        ),
        scenario!("federation", install::installed_by_helm_and_by_kustomize),
    ]
}

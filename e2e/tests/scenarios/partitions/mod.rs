//! Group `partitions`: a gateway in one partition, pods in another, and everything that passes the wire between; then three
//! partitions, of which two can't be called.

mod encrypted;
mod relayed;

use spillway_e2e::Need;

use crate::shared::{Scenario, scenario};

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!("partitions", on Partitions encrypted::nothing_between_partitions_can_be_read)
            .needing(&[Need::Segments]),
        scenario!("partitions", on Partitions encrypted::the_path_is_taken_away).needing(&[Need::Segments]),
        scenario!("partitions", on Partitions encrypted::connections_outlive_the_agents)
            .needing(&[Need::Segments]),
        scenario!("partitions", on Hidden relayed::every_pair_has_its_way).needing(&[Need::Segments]),
        scenario!("partitions", on Hidden relayed::a_nat_rebinds_and_nothing_breaks)
            .needing(&[Need::Segments]),
        scenario!("partitions", on Hidden relayed::a_relay_dies_and_nothing_breaks)
            .needing(&[Need::Segments]),
        scenario!("partitions", on Hidden relayed::a_partition_opens_and_closes_and_nothing_breaks)
            .needing(&[Need::Segments]),
    ]
}

//! Group `partitions`: a gateway in one partition, pods in another, and everything that passes the wire between.

mod encrypted;

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
    ]
}

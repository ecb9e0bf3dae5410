//! Group `api`: a hub in this process, against the API server of a cluster of its own.

mod hub;
mod member;
mod story;

use spillway_e2e::Need;

use crate::shared::{Scenario, scenario};

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!("api", alone story::members_come_and_go_from_token_to_leave).needing(&[Need::OwnCluster])]
}

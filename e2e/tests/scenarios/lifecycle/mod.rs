//! Group `lifecycle`: what happens to a federation over the years.

mod authority;
mod loss;

use crate::shared::{Scenario, scenario};

/// The group's scenarios, in the order in which they run.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!("lifecycle", authority::the_ca_is_replaced_while_everything_runs),
        scenario!("lifecycle", authority::a_member_that_is_away_is_waited_for),
        scenario!("lifecycle", loss::the_hub_is_lost_and_restored),
    ]
}

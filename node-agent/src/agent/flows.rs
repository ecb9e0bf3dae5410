//! Which flows the kernel is told to cut, and which are left to the guards.

use std::collections::BTreeSet;
use std::net::IpAddr;

use spillway_core::node::flows::Flows;
use spillway_core::node::state::DesiredState;
use spillway_dataplane::Kernel;

use super::{Agent, Applied};

impl<K: Kernel> Agent<K> {
    /// Notes whose pods have ended. Answers whether an address of one of them is now a pod's that no policy selects.
    pub(super) fn depart(
        &mut self,
        previous: Option<&Applied>,
        desired: &DesiredState,
        bystanders: &BTreeSet<IpAddr>,
    ) -> bool {
        // Without a table there are no guards to keep anything for.
        if desired.ruleset.is_none() {
            self.departed.clear();
            return false;
        }
        self.departed
            .extend(previous.iter().flat_map(|a| a.desired.flows.pods.keys()));
        self.departed.retain(|a| !desired.flows.pods.contains_key(a));
        let before = self.departed.len();
        self.departed.retain(|a| !bystanders.contains(a));
        before != self.departed.len()
    }

    pub(super) async fn cut(
        &mut self,
        flows: &Flows,
        agreed: Option<&Flows>,
    ) -> spillway_dataplane::Result<usize> {
        let before = Flows {
            ours: self.uncut.clone(),
            ..Flows::default()
        };
        let flows = Flows {
            departed: self.departed.clone(),
            ..flows.after(&before)
        };
        let flows = match agreed {
            Some(agreed) => flows.narrowed(agreed),
            None => flows,
        };
        let count = self.kernel.cut(&flows).await?;
        self.uncut.clear();
        Ok(count)
    }
}

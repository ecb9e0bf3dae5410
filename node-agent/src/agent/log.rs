//! What is said of an apply.

use spillway_core::node::inputs::NodeInputs;
use spillway_core::node::state::DesiredState;

/// Says what an apply changed; where that was nothing, quietly.
pub(super) fn applied(
    inputs: &NodeInputs,
    desired: &DesiredState,
    changes: &spillway_dataplane::Changes,
    cut: Option<&usize>,
    micros: u64,
) {
    let plan = inputs
        .plan
        .as_ref()
        .map_or("", |p| p.digest.get(..12).unwrap_or(&p.digest));
    let (pods, classes) = (desired.flows.pods.len(), desired.flows.classes.len());
    let (count, cut) = (changes.len(), cut.copied().unwrap_or(0));
    if count == 0 && cut == 0 {
        tracing::debug!(
            node = inputs.node,
            plan,
            pods,
            classes,
            micros,
            "the kernel is as it should be"
        );
    } else {
        tracing::info!(
            node = inputs.node,
            plan,
            pods,
            classes,
            changed = count,
            cut,
            micros,
            "applied"
        );
        for change in changes {
            tracing::debug!(node = inputs.node, %change, "changed");
        }
    }
}

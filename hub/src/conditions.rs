//! Conditions of which several writers own one each.

use k8s_openapi::jiff::Timestamp;
use spillway_crds::condition::{self, Condition, Verdict};

/// The conditions that these verdicts are about, as they should stand: what is there already keeps its
/// transition time; conditions of other writers aren't among them.
pub(crate) fn own(
    current: &[Condition],
    generation: Option<i64>,
    verdicts: &[Verdict],
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = mine(current, verdicts);
    for verdict in verdicts {
        condition::set(&mut conditions, generation, verdict, now);
    }
    conditions
}

/// Those of `current` that these verdicts are about, sorted by type.
pub(crate) fn mine(current: &[Condition], verdicts: &[Verdict]) -> Vec<Condition> {
    let mut mine: Vec<_> = current
        .iter()
        .filter(|c| verdicts.iter().any(|v| v.kind.as_str() == c.type_))
        .cloned()
        .collect();
    mine.sort_by(|a, b| a.type_.cmp(&b.type_));
    mine
}

//! Weave Net: the environment of its DaemonSet.

use serde_json::Value;

use super::found::{Found, name};

/// Weave's range where nobody set one.
const DEFAULT: &str = "10.32.0.0/12";
const VARIABLE: &str = "IPALLOC_RANGE";

/// `IPALLOC_RANGE` of the containers called `weave`.
pub fn weave<'a>(daemon_sets: impl IntoIterator<Item = &'a Value>) -> Found {
    let mut found = Found::default();
    for daemon_set in daemon_sets {
        let place = format!("DaemonSet {}, {VARIABLE}", name(daemon_set));
        let containers = daemon_set["spec"]["template"]["spec"]["containers"].as_array();
        let variable = containers
            .into_iter()
            .flatten()
            .filter(|c| c["name"] == "weave")
            .flat_map(|c| c["env"].as_array().into_iter().flatten())
            .find(|e| e["name"] == VARIABLE);
        match variable {
            None => found.range(DEFAULT, place),
            Some(variable) => match variable["value"].as_str() {
                Some(range) if !range.is_empty() => found.range(range, place),
                _ if variable.get("valueFrom").is_some() => {
                    found.fault(format!("{place} comes from elsewhere (valueFrom) and isn't read"));
                }
                _ => found.range(DEFAULT, place),
            },
        }
    }
    found
}

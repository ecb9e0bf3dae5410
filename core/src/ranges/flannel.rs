//! Flannel: `net-conf.json` in its ConfigMap.

use serde_json::Value;

use super::found::{Found, name};

/// `Network` and `IPv6Network`.
pub fn flannel<'a>(maps: impl IntoIterator<Item = &'a Value>) -> Found {
    let mut found = Found::default();
    for map in maps {
        let place = format!("ConfigMap {}, net-conf.json", name(map));
        let Some(text) = map["data"]["net-conf.json"].as_str() else {
            found.fault(format!("{place}: there is no such key"));
            continue;
        };
        match serde_json::from_str::<Value>(text) {
            Ok(conf) => {
                for key in ["Network", "IPv6Network"] {
                    if let Some(range) = conf.get(key).filter(|r| !r.is_null() && *r != "") {
                        found.value(range, format_args!("{place}, {key}"));
                    }
                }
            }
            Err(error) => found.fault(format!("{place} is no JSON: {error}")),
        }
    }
    found
}

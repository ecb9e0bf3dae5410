//! Who wrote which field of an object. Server-side apply removes what its last writer no longer names, so a status that
//! is put back has to be put back in the names of those who wrote it: else nobody could ever remove a field of it.
//! (Kubernetes: Server-Side Apply, "Field management"; the form of `fieldsV1` is that of structured-merge-diff.)

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// An object without what belongs to one cluster's copy of it.
pub(super) fn trimmed(mut object: Value) -> Value {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.retain(|name, _| {
            ["name", "namespace", "labels", "annotations", "managedFields"].contains(&name.as_str())
        });
    }
    object
}

/// Who wrote the object itself, for the first time or last.
pub(super) fn author(object: &Value) -> Option<&str> {
    entries(object)
        .find(|e| e.get("subresource").is_none_or(|s| s == ""))
        .and_then(|e| e["manager"].as_str())
}

/// The status by writer.
pub(super) fn statuses(object: &Value) -> BTreeMap<String, Value> {
    let mut parts = BTreeMap::new();
    for entry in entries(object).filter(|e| e["subresource"] == "status") {
        let (Some(manager), Some(fields)) = (entry["manager"].as_str(), entry["fieldsV1"].get("f:status"))
        else {
            continue;
        };
        if let Some(part) = owned(&object["status"], fields) {
            merge(parts.entry(manager.to_owned()).or_insert(json!({})), part);
        }
    }
    parts
}

fn entries(object: &Value) -> impl Iterator<Item = &Value> {
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
}

/// The part of `value` that `fields` names; `None` where there is nothing of it.
fn owned(value: &Value, fields: &Value) -> Option<Value> {
    let inner: Vec<(&String, &Value)> = fields
        .as_object()?
        .iter()
        .filter(|(name, _)| *name != ".")
        .collect();
    if inner.is_empty() {
        return (!value.is_null()).then(|| value.clone());
    }
    match value {
        Value::Object(object) => {
            let part: Map<_, _> = inner
                .into_iter()
                .filter_map(|(name, fields)| {
                    let name = name.strip_prefix("f:")?;
                    Some((name.to_owned(), owned(object.get(name)?, fields)?))
                })
                .collect();
            Some(part.into())
        }
        Value::Array(items) => Some(items.iter().filter_map(|item| element(item, &inner)).collect()),
        _ => Some(value.clone()),
    }
}

/// The owned part of an element of a list that is a map by key (`k:{"type":"Accepted"}`), with its key.
fn element(item: &Value, fields: &[(&String, &Value)]) -> Option<Value> {
    let (key, fields) = fields.iter().find_map(|(name, fields)| {
        let key: Map<String, Value> = serde_json::from_str(name.strip_prefix("k:")?).ok()?;
        key.iter()
            .all(|(k, v)| item.get(k) == Some(v))
            .then_some((key, fields))
    })?;
    let mut part = owned(item, fields)?;
    for (name, value) in key {
        part[name.as_str()] = value;
    }
    Some(part)
}

fn merge(into: &mut Value, part: Value) {
    match (into, part) {
        (Value::Object(into), Value::Object(part)) => {
            for (name, value) in part {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, part) => *into = part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Value {
        json!({
            "metadata": {
                "name": "a", "uid": "u", "resourceVersion": "7", "labels": {"region": "eu"},
                "managedFields": [
                    {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {"f:partition": {}}}},
                    {"manager": "hub-alloc", "operation": "Apply", "subresource": "status",
                     "fieldsV1": {"f:status": {"f:memberId": {}, "f:overlay": {"f:ipv4": {}}}}},
                    {"manager": "hub", "operation": "Apply", "subresource": "status",
                     "fieldsV1": {"f:status": {"f:conditions": {"k:{\"type\":\"Accepted\"}": {".": {}, "f:status": {}, "f:type": {}}}}}},
                    {"manager": "link", "operation": "Apply", "subresource": "status",
                     "fieldsV1": {"f:status": {"f:nodes": {}, "f:conditions": {"k:{\"type\":\"Connected\"}": {".": {}, "f:status": {}, "f:type": {}}}}}},
                ],
            },
            "spec": {"partition": "p"},
            "status": {
                "memberId": 3,
                "overlay": {"ipv4": "100.64.12.0/22"},
                "nodes": [{"name": "n1"}],
                "conditions": [{"type": "Accepted", "status": "True"}, {"type": "Connected", "status": "False"}],
            },
        })
    }

    #[test]
    fn each_writer_gets_back_what_it_wrote_and_no_more() {
        let parts = statuses(&member());
        assert_eq!(
            parts["hub-alloc"],
            json!({"memberId": 3, "overlay": {"ipv4": "100.64.12.0/22"}})
        );
        assert_eq!(
            parts["hub"],
            json!({"conditions": [{"type": "Accepted", "status": "True"}]})
        );
        assert_eq!(
            parts["link"],
            json!({"nodes": [{"name": "n1"}], "conditions": [{"type": "Connected", "status": "False"}]})
        );
        assert_eq!(parts.len(), 3, "the spec's writer wrote no status");
    }

    #[test]
    fn all_parts_together_are_the_status() {
        let member = member();
        let mut whole = json!({});
        let mut conditions = Vec::new();
        for part in statuses(&member).into_values() {
            conditions.extend(part["conditions"].as_array().cloned().unwrap_or_default());
            merge(&mut whole, part);
        }
        conditions.sort_by_key(|c| c["type"].as_str().map(str::to_owned));
        whole["conditions"] = conditions.into();
        assert_eq!(whole, member["status"]);
    }

    #[test]
    fn what_only_one_cluster_knows_goes() {
        let trimmed = trimmed(member());
        let names: Vec<_> = trimmed["metadata"]
            .as_object()
            .expect("an object")
            .keys()
            .collect();
        assert_eq!(names, ["labels", "managedFields", "name"]);
        assert_eq!(author(&trimmed), Some("kubectl"));
    }
}

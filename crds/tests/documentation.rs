//! What the documentation shows is what the code reads: the files in `docs/examples`, and the YAML blocks of
//! the README and of the pages in `docs`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use spillway_crds::{hub, member};

/// An object of ours, and where it stands.
struct Example {
    file: String,
    object: Value,
}

/// All of them. Objects of other API groups, such as the namespaces beside our policies, and fragments
/// without a kind are left out.
fn examples() -> Vec<Example> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = listed(&root.join("docs/examples"), "yaml");
    files.extend(listed(&root.join("docs"), "md"));
    files.push(root.join("README.md"));
    let mut out = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let streams = if path.extension().is_some_and(|e| e == "md") {
            blocks(&text)
        } else {
            vec![text.as_str()]
        };
        for yaml in streams {
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(yaml).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let file = path.display().to_string();
            out.extend(documents.into_iter().filter(is_ours).map(|object| Example {
                file: file.clone(),
                object,
            }));
        }
    }
    out
}

fn listed(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    entries
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect()
}

/// The contents of a page's blocks that are marked as YAML.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect()
}

fn is_ours(object: &Value) -> bool {
    let group = object["apiVersion"].as_str().unwrap_or_default();
    object["kind"].is_string() && group.contains("spillway.io/")
}

/// Reads the object as the type of its kind. Kubernetes drops fields that it doesn't know, and so do our
/// types; in an example such a field is a mistake.
fn read_strictly(object: &Value) -> Result<(), String> {
    fn as_type<K: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Result<Value, String> {
        let read: K = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
        serde_json::to_value(read).map_err(|e| e.to_string())
    }
    let read = match object["kind"].as_str() {
        Some("EgressGateway") => as_type::<hub::EgressGateway>(object),
        Some("FederatedEgressPolicy") => as_type::<hub::FederatedEgressPolicy>(object),
        Some("FederatedClusterEgressPolicy") => as_type::<hub::FederatedClusterEgressPolicy>(object),
        Some("Member") => as_type::<hub::Member>(object),
        Some("HubConnection") => as_type::<member::HubConnection>(object),
        other => Err(format!("no type for {other:?}")),
    }?;
    match lost("", object, &read) {
        Some(path) => Err(format!("{} is no field", path.trim_start_matches('.'))),
        None => Ok(()),
    }
}

/// The first field of `written` that isn't in `read`.
fn lost(path: &str, written: &Value, read: &Value) -> Option<String> {
    match written {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match read.get(name) {
                Some(kept) => lost(&path, value, kept),
                None => Some(path),
            }
        }),
        Value::Array(entries) => entries
            .iter()
            .enumerate()
            .find_map(|(i, value)| lost(&format!("{path}[{i}]"), value, &read[i])),
        _ => None,
    }
}

#[test]
fn our_types_read_what_the_documentation_shows() {
    let examples = examples();
    for file in [
        "README.md",
        "design.md",
        "gateway.yaml",
        "policy.yaml",
        "cluster-policy.yaml",
        "ipv6.yaml",
    ] {
        let shown = examples.iter().any(|e| e.file.ends_with(&format!("/{file}")));
        assert!(shown, "{file} shows no object of ours");
    }
    for Example { file, object } in examples {
        let name = &object["metadata"]["name"];
        read_strictly(&object).unwrap_or_else(|err| panic!("{file}, {name}: {err}"));
    }
}

#[test]
fn a_field_that_the_type_does_not_have_is_found() {
    let object = json!({
        "apiVersion": "spillway.io/v1alpha1", "kind": "EgressGateway", "metadata": {"name": "x"},
        "spec": {"nodes": [{"member": "a", "selectr": {}}], "addresses": {"ipv4": ["203.0.113.1"]}},
    });
    let found = read_strictly(&object).expect_err("it must not be read");
    assert_eq!(found, "spec.nodes[0].selectr is no field");
}

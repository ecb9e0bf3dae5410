//! What is committed as generated is what the code generates.

#[path = "../examples/crdgen/reference.rs"]
mod reference;

use std::path::Path;

use spillway_crds::export::{hub_crds, member_crds, to_yaml};

fn assert_current(path: &str, generated: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    let line = committed
        .lines()
        .zip(generated.lines())
        .position(|(old, new)| old != new)
        .unwrap_or_else(|| committed.lines().count().min(generated.lines().count()));
    assert!(
        committed == generated,
        "{path} is out of date from line {} on: run `make generate`",
        line + 1
    );
}

#[test]
fn the_definitions_are_current() {
    for (side, crds) in [("hub", hub_crds()), ("member", member_crds())] {
        let yaml = to_yaml(&crds).expect("definitions serialise");
        assert!(
            !yaml.contains("format: uint"),
            "Kubernetes warns of formats it doesn't know"
        );
        assert_current(&format!("crds/yaml/{side}.yaml"), &yaml);
        assert_current(&format!("deploy/charts/spillway-{side}/files/crds.yaml"), &yaml);
    }
}

#[test]
fn the_reference_is_current() {
    let text = reference::markdown(&hub_crds(), &member_crds()).expect("schemas are JSON");
    assert_current("docs/reference/api.md", &text);
}

/// Without bounds the API server can't price a rule, and refuses the definition.
#[test]
fn lists_maps_and_strings_that_rules_read_are_bounded() {
    fn walk(path: &str, schema: &serde_json::Value, ruled: bool, missing: &mut Vec<String>) {
        let ruled = ruled || schema["x-kubernetes-validations"].is_array();
        if ruled {
            match schema["type"].as_str() {
                Some("array") if schema["maxItems"].is_null() => missing.push(path.to_owned()),
                Some("string") if schema["maxLength"].is_null() && schema["enum"].is_null() => {
                    missing.push(path.to_owned());
                }
                _ => {}
            }
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), field, ruled, missing);
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], ruled, missing);
        }
    }
    let mut missing = Vec::new();
    for crd in hub_crds().iter().chain(&member_crds()) {
        let value = serde_json::to_value(crd).expect("definitions are JSON");
        let schema = &value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        // The root's rules read metadata only.
        walk(
            &format!("{}.spec", crd.spec.names.kind),
            &schema["properties"]["spec"],
            false,
            &mut missing,
        );
    }
    assert!(missing.is_empty(), "no bound on {missing:?}");
}

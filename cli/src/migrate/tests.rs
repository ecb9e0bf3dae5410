//! Objects in the shapes in which users have them, and what becomes of them.

use serde_json::json;

use super::*;

const GATEWAY: &str = r#"
apiVersion: egressgateway.spidernet.io/v1beta1
kind: EgressGateway
metadata: {name: eg1, uid: 1, resourceVersion: "7"}
spec:
  clusterDefault: true
  ippools:
    ipv4: ["10.6.1.55", "10.6.1.60-10.6.1.65", "10.6.1.70/28"]
    ipv6: [""]
    ipv4DefaultEIP: 10.6.1.60
    ipv6DefaultEIP: ""
  nodeSelector:
    policy: doing
    selector: {matchLabels: {egress: "true"}}
status:
  nodeList: [{name: node1, status: Ready, eips: [{ipv4: 10.6.1.55, policies: [{name: app, namespace: default}]}]}]
"#;

fn options() -> Options {
    Options {
        member: "fra-1".into(),
        members: LabelSelector::default(),
    }
}

fn all(yaml: &str) -> Vec<Migrated> {
    convert(&parse(yaml).expect("YAML"), &options())
}

/// What becomes of one policy beside the gateway.
fn policy(spec: &str) -> Migrated {
    let yaml = format!(
        "{GATEWAY}---\napiVersion: egressgateway.spidernet.io/v1beta1\nkind: EgressPolicy\nmetadata: {{name: app, namespace: shop}}\n{spec}"
    );
    all(&yaml).into_iter().nth(1).expect("a policy")
}

#[track_caller]
fn notes(migrated: &Migrated, pieces: &[&str]) {
    assert_eq!(migrated.notes.len(), pieces.len(), "{:?}", migrated.notes);
    for (note, piece) in migrated.notes.iter().zip(pieces) {
        assert!(note.contains(piece), "{note:?} lacks {piece:?}");
    }
}

#[test]
fn a_gateway() {
    let one = all(GATEWAY).remove(0);
    assert_eq!(one.from, "EgressGateway eg1");
    assert_eq!(
        one.object,
        Some(json!({
            "apiVersion": "spillway.io/v1alpha1", "kind": "EgressGateway", "metadata": {"name": "eg1"},
            "spec": {
                "nodes": [{"member": "fra-1", "selector": {"matchLabels": {"egress": "true"}}}],
                "addresses": {"ipv4": ["10.6.1.55", "10.6.1.60-10.6.1.65", "10.6.1.64/28"],
                              "default": {"ipv4": "10.6.1.60"}},
            },
        }))
    );
    notes(&one, &["nodeSelector.policy", "clusterDefault"]);
}

#[test]
fn gateways_that_have_no_equivalent() {
    for (spec, why) in [
        (
            "{ippools: {ipv4: ['10.0.0.1']}}",
            "nodeSelector.selector is missing",
        ),
        (
            "{ippools: {ipv4: ['10.0.0.9-10.0.0.1']}, nodeSelector: {selector: {}}}",
            "is no address, range or CIDR",
        ),
        (
            "{ippools: {ipv4: ['fd00::1']}, nodeSelector: {selector: {}}}",
            "other family",
        ),
        ("{ippools: 7}", "can't be read"),
    ] {
        let yaml = format!(
            "apiVersion: egressgateway.spidernet.io/v1beta1\nkind: EgressGateway\nmetadata: {{name: x}}\nspec: {spec}"
        );
        let one = all(&yaml).remove(0);
        assert_eq!(one.object, None, "{spec}");
        notes(&one, &[why]);
    }
}

#[test]
fn a_policy_with_everything() {
    let one = policy(
        r#"
spec:
  egressGatewayName: eg1
  egressIP: {ipv4: 10.6.1.55, ipv6: "fd00::55", allocatorPolicy: default, useNodeIP: false}
  appliedTo: {podSelector: {matchLabels: {app: shopping}, matchExpressions: [{key: tier, operator: In, values: [a]}]}}
  destSubnet: ["10.6.1.92/32", "fd00::92/128", "10.7.0.1/16", "10.7.3.0/24"]
  priority: 100
status: {eip: {ipv4: 10.6.1.61}, node: node1}
"#,
    );
    assert_eq!(
        one.object,
        Some(json!({
            "apiVersion": "spillway.io/v1alpha1", "kind": "FederatedEgressPolicy",
            "metadata": {"name": "app", "namespace": "shop"},
            "spec": {
                "pods": {"matchLabels": {"app": "shopping"},
                         "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a"]}]},
                "to": {"cidrs": ["10.6.1.92/32", "10.7.0.0/16", "fd00::92/128"]},
                "priority": 900,
                "through": [{"gateway": "eg1", "egressIP": {"ipv4": "10.6.1.55", "ipv6": "fd00::55"}}],
            },
        }))
    );
    notes(&one, &["priority 100 became 900"]);
}

#[test]
fn an_address_that_was_chosen_stays_what_it_is() {
    let applied = "appliedTo: {podSelector: {matchLabels: {app: x}}}";
    let through = |m: &Migrated| m.object.as_ref().expect("an object")["spec"]["through"][0].clone();
    let now = policy(&format!(
        "spec: {{egressGatewayName: eg1, egressIP: {{allocatorPolicy: rr}}, {applied}}}\nstatus: {{eip: {{ipv4: 10.6.1.61}}}}"
    ));
    assert_eq!(
        through(&now),
        json!({"gateway": "eg1", "egressIP": {"ipv4": "10.6.1.61"}})
    );
    notes(
        &now,
        &["allocatorPolicy rr; here it is fixed to the one it leaves with now"],
    );
    let default = policy(&format!("spec: {{egressGatewayName: eg1, {applied}}}"));
    assert_eq!(
        through(&default),
        json!({"gateway": "eg1", "egressIP": {"ipv4": "10.6.1.60"}})
    );
    notes(&default, &["fixed to its gateway's default egress IP"]);
    let unknown = policy(&format!("spec: {{egressGatewayName: elsewhere, {applied}}}"));
    assert_eq!(through(&unknown), json!({"gateway": "elsewhere"}));
    notes(&unknown, &["it gets the gateway's default address"]);
    let one_of_many = policy(&format!(
        "spec: {{egressGatewayName: elsewhere, egressIP: {{allocatorPolicy: rr}}, {applied}}}"
    ));
    assert_eq!(
        through(&one_of_many),
        json!({"gateway": "elsewhere", "allocation": "Pool"})
    );
    notes(&one_of_many, &["one of the pool"]);
    let node = policy(&format!(
        "spec: {{egressGatewayName: elsewhere, egressIP: {{useNodeIP: true}}, {applied}}}"
    ));
    assert_eq!(node.object, None);
    notes(&node, &["useNodeIP needs its gateway"]);
}

/// There one gateway can do both; here a second one of the same nodes is made.
#[test]
fn nodes_own_addresses() {
    let policy = "---\napiVersion: egressgateway.spidernet.io/v1beta1\nkind: EgressPolicy\nmetadata: {name: app, namespace: shop}\nspec: {egressGatewayName: eg1, egressIP: {useNodeIP: true, allocatorPolicy: rr}, appliedTo: {podSelector: {matchLabels: {app: x}}}}\n";
    let with_pool = all(&format!("{GATEWAY}{policy}"));
    let object = |m: &Migrated| m.object.clone().expect("an object");
    let [pool, lender, one] = with_pool.as_slice() else {
        panic!("{with_pool:?}")
    };
    assert_eq!(object(pool)["metadata"]["name"], "eg1");
    assert_eq!(object(lender)["metadata"]["name"], "eg1-node-ip");
    assert_eq!(object(lender)["spec"]["addresses"], json!({"nodeIP": true}));
    assert_eq!(object(lender)["spec"]["nodes"], object(pool)["spec"]["nodes"]);
    assert_eq!(
        object(one)["spec"]["through"],
        json!([{"gateway": "eg1-node-ip"}])
    );
    notes(one, &["the address of the gateway's node"]);

    let without = "apiVersion: egressgateway.spidernet.io/v1beta1\nkind: EgressGateway\nmetadata: {name: eg1}\nspec: {nodeSelector: {selector: {matchLabels: {egress: 'true'}}}}\n";
    let both = all(&format!("{without}{policy}"));
    let [gateway, one] = both.as_slice() else {
        panic!("{both:?}")
    };
    assert_eq!(object(gateway)["spec"]["addresses"], json!({"nodeIP": true}));
    assert_eq!(object(one)["spec"]["through"], json!([{"gateway": "eg1"}]));
}

#[test]
fn fixed_sources_and_default_gateways() {
    let one =
        policy("spec: {egressIP: {ipv4: 10.6.1.55}, appliedTo: {podSubnet: [10.244.1.3, 10.244.2.9/24]}}");
    let spec = &one.object.as_ref().expect("an object")["spec"];
    assert_eq!(
        spec["sources"],
        json!({"cidrs": ["10.244.1.3/32", "10.244.2.0/24"]})
    );
    assert_eq!(spec["through"][0]["gateway"], "eg1");
    notes(
        &one,
        &["eg1 is the cluster's default", "pods of namespace shop only"],
    );

    let labelled = format!(
        "{GATEWAY}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{spidernet.io/egressgateway-default: own}}}}\n\
         ---\napiVersion: egressgateway.spidernet.io/v1beta1\nkind: EgressPolicy\nmetadata: {{name: app, namespace: shop}}\n\
         spec: {{egressIP: {{ipv4: 10.6.1.55}}, appliedTo: {{podSelector: {{matchLabels: {{a: b}}}}}}}}"
    );
    let one = all(&labelled).remove(1);
    notes(&one, &["own is the default of namespace shop"]);

    let none = "apiVersion: egressgateway.spidernet.io/v1beta1\nkind: EgressPolicy\nmetadata: {name: app}\n\
                spec: {appliedTo: {podSelector: {matchLabels: {a: b}}}}";
    let one = all(none).remove(0);
    assert_eq!(
        (one.from.as_str(), &one.object),
        ("EgressPolicy default/app", &None)
    );
    notes(&one, &["names no gateway"]);
}

#[test]
fn policies_that_would_say_something_else_are_not_migrated() {
    for (spec, why) in [
        ("{egressGatewayName: eg1}", "selects nothing"),
        (
            "{egressGatewayName: eg1, appliedTo: {podSelector: {}}}",
            "selects nothing",
        ),
        (
            "{egressGatewayName: eg1, appliedTo: {podSubnet: [ten]}}",
            "neither a CIDR nor an address",
        ),
        (
            "{egressGatewayName: eg1, appliedTo: {podSubnet: [10.0.0.1]}, destSubnet: [10.0.0.0/8, ten]}",
            "destSubnet",
        ),
        (
            "{egressGatewayName: eg1, appliedTo: {podSubnet: [10.0.0.1]}, priority: 70000}",
            "1 to 65536",
        ),
        (
            "{egressGatewayName: eg1, appliedTo: {podSubnet: [10.0.0.1]}, egressIP: {ipv4: 'fd00::1'}}",
            "other family",
        ),
        ("{appliedTo: 7}", "can't be read"),
    ] {
        let one = policy(&format!("spec: {spec}"));
        assert_eq!(one.object, None, "{spec}");
        assert!(one.notes[0].contains(why), "{:?}", one.notes);
    }
    let many: Vec<String> = (0..300)
        .map(|i| format!("10.{}.{}.0/24", i / 100, i % 100 * 2))
        .collect();
    let one = policy(&format!(
        "spec: {{egressGatewayName: eg1, appliedTo: {{podSubnet: [10.0.0.1]}}, destSubnet: [{}]}}",
        many.join(", ")
    ));
    assert_eq!(one.object, None);
    assert!(
        one.notes.iter().any(|n| n.contains("at most 256")),
        "{:?}",
        one.notes
    );
}

#[test]
fn a_cluster_wide_policy_out_of_a_list() {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "egressgateway.spidernet.io/v1beta1", "kind": "EgressClusterPolicy", "metadata": {"name": "all"},
         "spec": {"egressGatewayName": "eg1", "egressIP": {"ipv4": "10.6.1.55"}, "destSubnet": null,
                  "appliedTo": {"namespaceSelector": {"matchLabels": {"team": "red"}},
                                "podSelector": {"matchLabels": {"app": "x"}}}}},
        {"apiVersion": "other.io/v1", "kind": "EgressPolicy", "metadata": {"name": "no"}},
    ]});
    let mut migrated = all(&list.to_string());
    assert_eq!(migrated.len(), 1);
    let one = migrated.remove(0);
    let object = one.object.expect("an object");
    assert_eq!(object["kind"], "FederatedClusterEgressPolicy");
    assert_eq!(
        object["spec"],
        json!({"namespaces": {"matchLabels": {"team": "red"}}, "pods": {"matchLabels": {"app": "x"}},
               "priority": -31768, "through": [{"gateway": "eg1", "egressIP": {"ipv4": "10.6.1.55"}}]})
    );
    assert!(one.notes.is_empty(), "{:?}", one.notes);
}

#[test]
fn members_are_those_that_were_asked_for() {
    let options = Options {
        members: LabelSelector {
            match_labels: [("region".to_owned(), "eu".to_owned())].into(),
            ..LabelSelector::default()
        },
        ..options()
    };
    let yaml = "apiVersion: egressgateway.spidernet.io/v1beta1\nkind: EgressPolicy\nmetadata: {name: app}\n\
                spec: {egressGatewayName: eg1, appliedTo: {podSelector: {matchLabels: {a: b}}}}";
    let one = convert(&parse(yaml).expect("YAML"), &options).remove(0);
    assert_eq!(
        one.object.expect("an object")["spec"]["members"],
        json!({"matchLabels": {"region": "eu"}})
    );
}

#[test]
fn notes_are_comments_that_nothing_ends() {
    let migrated = [Migrated {
        from: "EgressPolicy a\n---\nkind: Evil".into(),
        object: None,
        notes: vec!["x\ny\r\u{2028}z".into()],
    }];
    let out = stream(&migrated).expect("YAML");
    assert!(out.lines().skip(1).all(|l| l.starts_with('#')), "{out}");
    assert!(out.contains("# Not migrated: x y"), "{out}");
}

/// Whatever comes out, our types read it.
#[test]
fn what_comes_out_is_what_our_types_take() {
    let yaml = format!(
        "{GATEWAY}---\napiVersion: egressgateway.spidernet.io/v1beta1\nkind: EgressPolicy\nmetadata: {{name: app}}\n\
         spec: {{egressGatewayName: eg1, priority: 7, destSubnet: [0.0.0.0/0], appliedTo: {{podSubnet: [10.244.0.9]}}}}"
    );
    let stream = stream(&all(&yaml)).expect("YAML");
    let read: Vec<Value> = serde_saphyr::from_multiple(&stream).expect("YAML");
    let gateway: spillway_crds::hub::EgressGateway =
        serde_json::from_value(read[0].clone()).expect("a gateway");
    assert_eq!(gateway.spec.addresses.ipv4.len(), 3);
    let policy: spillway_crds::hub::FederatedEgressPolicy =
        serde_json::from_value(read[1].clone()).expect("a policy");
    assert_eq!(policy.spec.priority, 993);
    assert_eq!(policy.spec.sources.expect("sources").cidrs, ["10.244.0.9/32"]);
}

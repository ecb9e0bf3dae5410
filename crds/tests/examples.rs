//! The examples of what the API server takes and refuses are ones. A scenario sends each to a real API
//! server (group `federation`: `the_api_server_takes_and_refuses_what_it_should`).

use serde::Deserialize;
use serde_json::Value;
use spillway_crds::{hub, member};

/// An object, and what is wrong with it.
#[derive(Deserialize)]
struct Refused {
    what: String,
    says: String,
    object: Value,
}

fn accepted() -> Vec<Value> {
    serde_saphyr::from_multiple(include_str!("examples/accepted.yaml")).expect("accepted.yaml parses")
}

fn refused() -> Vec<Refused> {
    serde_saphyr::from_multiple(include_str!("examples/refused.yaml")).expect("refused.yaml parses")
}

#[test]
fn our_types_read_what_the_api_server_accepts() {
    for object in accepted() {
        let name = object["metadata"]["name"].clone();
        let read = match object["kind"].as_str() {
            Some("EgressGateway") => serde_json::from_value::<hub::EgressGateway>(object).map(drop),
            Some("FederatedEgressPolicy") => {
                serde_json::from_value::<hub::FederatedEgressPolicy>(object).map(drop)
            }
            Some("FederatedClusterEgressPolicy") => {
                serde_json::from_value::<hub::FederatedClusterEgressPolicy>(object).map(drop)
            }
            Some("Member") => serde_json::from_value::<hub::Member>(object).map(drop),
            Some("HubConnection") => serde_json::from_value::<member::HubConnection>(object).map(drop),
            other => panic!("no type for {other:?}"),
        };
        read.unwrap_or_else(|err| panic!("{name}: {err}"));
    }
}

#[test]
fn each_refused_example_says_what_is_wrong_with_it() {
    let examples = refused();
    assert!(examples.len() > 20);
    for Refused { what, says, object } in examples {
        assert!(!says.is_empty() && object["kind"].is_string(), "{what}");
    }
}

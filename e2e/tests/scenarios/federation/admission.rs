//! What the API server itself refuses, with a message that names the fix.

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use spillway_e2e::federation::Federation;

/// An object, and what is wrong with it.
#[derive(Deserialize)]
struct Refused {
    what: String,
    says: String,
    object: Value,
}

const ACCEPTED: &str = include_str!("../../../../crds/tests/examples/accepted.yaml");
const REFUSED: &str = include_str!("../../../../crds/tests/examples/refused.yaml");

/// The cluster in which objects of this kind live.
fn home(object: &Value) -> &'static str {
    if object["apiVersion"]
        .as_str()
        .is_some_and(|v| v.starts_with("member."))
    {
        "a"
    } else {
        "hub"
    }
}

/// The verdict of the real API servers, hub's and member's, on every example.
pub(crate) async fn the_api_server_takes_and_refuses_what_it_should(fed: &Federation) -> Result<()> {
    let accepted: Vec<Value> = serde_saphyr::from_multiple(ACCEPTED)?;
    let refused: Vec<Refused> = serde_saphyr::from_multiple(REFUSED)?;
    ensure!(!accepted.is_empty() && !refused.is_empty(), "no examples");
    let mut wrong = Vec::new();
    for object in accepted {
        if let Err(refusal) = fed.verdict(home(&object), &object).await? {
            let name = &object["metadata"]["name"];
            wrong.push(format!("{} {name} is refused: {refusal}", object["kind"]));
        }
    }
    for Refused { what, says, object } in refused {
        match fed.verdict(home(&object), &object).await? {
            Ok(()) => wrong.push(format!("{what} is accepted")),
            Err(refusal) if refusal.contains(&says) => {}
            Err(refusal) => wrong.push(format!("{what} should be refused with {says:?}: {refusal}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

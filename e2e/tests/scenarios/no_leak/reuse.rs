//! Addresses change hands.

use anyhow::{Result, ensure};
use spillway_e2e::federation::Federation;

use super::CROWD;

const EIP: &str = "203.0.113.15";
const NODE: &str = "b-n1";

/// A pod gets the address that another one had a moment ago: from its first packet on it leaves as its own policies
/// say, selected after unselected and unselected after selected.
///
/// With `cni.mode: Off` the first packets of either leave as the other's.
pub(crate) async fn addresses_change_hands(fed: &Federation) -> Result<()> {
    let story = fed.story("hands").await?;
    story
        .policy("bank", "app=billing", "198.51.100.0/24", "frankfurt", EIP)
        .await?;
    story.programmed("bank").await?;
    let node_address = fed.node(NODE)?.plan().ipv4.to_string();
    let before = story.pod("b", "zero", "app=other").await?;
    let address = before.ip();
    before.pod().clone().delete().await?;
    for round in 0..6 {
        let (label, expected) = if round % 2 == 0 {
            ("app=billing", EIP)
        } else {
            ("app=other", node_address.as_str())
        };
        fed.next_free(NODE, address).await?;
        let crowd = story
            .crowd(&format!("round{round}"), label, 1, &[NODE], 5)
            .await?;
        crowd.ended(CROWD).await?;
        crowd.arrivals()?.only_from(&[expected])?;
        crowd.all_arrive_from(expected, CROWD).await?;
        let got = crowd.addresses().await?;
        ensure!(
            got.contains(&address),
            "the address was to be reused, not {got:?}"
        );
    }
    story.end().await
}

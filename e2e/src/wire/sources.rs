//! Every source address that reaches the outside, whatever the packet is: also one in the middle of a connection, of
//! which no socket would tell.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{address, netns};
use crate::state::Plan;

const TABLE: &str = "arena-sources";

/// Begins to note them anew, in the outside server's kernel.
pub fn watch_sources(plan: &Plan) -> Result<()> {
    let rules = format!(
        "add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  set v4 {{ type ipv4_addr; size 65535; flags dynamic; }}
  set v6 {{ type ipv6_addr; size 65535; flags dynamic; }}
  chain arrive {{
    type filter hook prerouting priority raw; policy accept;
    iifname lo accept
    ip saddr != {} add @v4 {{ ip saddr }}
    ip6 saddr != {{ {}, fe80::/10 }} add @v6 {{ ip6 saddr }}
  }}
}}
",
        address::ROUTER_OUTSIDE_V4,
        address::ROUTER_OUTSIDE_V6
    );
    netns::nft(&plan.outside_netns(), &rules)
}

/// All that were seen since then, the router's own aside.
pub fn sources(plan: &Plan) -> Result<BTreeSet<IpAddr>> {
    let mut all = BTreeSet::new();
    for set in ["v4", "v6"] {
        let output = netns::command(&plan.outside_netns(), "nft")?
            .args(["-j", "list", "set", "inet", TABLE, set])
            .output()
            .context("run nft")?;
        ensure!(
            output.status.success(),
            "nobody watches sources: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        all.extend(parse(&output.stdout)?);
    }
    Ok(all)
}

fn parse(json: &[u8]) -> Result<BTreeSet<IpAddr>> {
    let listed: Value = serde_json::from_slice(json).context("nft's JSON")?;
    let set = listed["nftables"]
        .as_array()
        .and_then(|all| all.iter().find_map(|object| object.get("set")))
        .context("nft listed no set")?;
    let Some(elements) = set.get("elem").and_then(Value::as_array) else {
        return Ok(BTreeSet::new());
    };
    elements
        .iter()
        .map(|element| match element {
            Value::String(address) => address.parse().with_context(|| format!("address {address}")),
            other => bail!("an element of a form that nobody asked for: {other}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn empty_and_full_sets_are_read() {
        let full = br#"{"nftables": [{"metainfo": {}}, {"set": {"name": "v4", "elem": ["203.0.113.10", "10.0.0.1"]}}]}"#;
        assert_eq!(parse(full).unwrap().len(), 2);
        let empty = br#"{"nftables": [{"metainfo": {}}, {"set": {"name": "v4"}}]}"#;
        assert!(parse(empty).unwrap().is_empty());
        assert!(parse(br#"{"nftables": []}"#).is_err());
    }
}

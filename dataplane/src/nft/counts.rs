//! What our rules have counted.

use serde_json::Value;

use super::run::{list, succeed};
use super::{DEVICE_FAMILY, FAMILY, seal_table};
use crate::{Error, Result, RuleCount};

/// Reads the counters of the three tables that belong to `table`. Without their elements, which may be many; a table
/// that isn't there has counted nothing.
///
/// # Errors
/// Where nft can't be run or its answer can't be read.
pub async fn counts(table: &str) -> Result<Vec<RuleCount>> {
    let seal = seal_table(table);
    let mut out = Vec::new();
    for (family, table) in [(FAMILY, table), (FAMILY, &seal), (DEVICE_FAMILY, table)] {
        let Some(output) = list(&["-j", "-t", "list", "table", family, table]).await? else {
            continue;
        };
        out.extend(read(&succeed("list counters", output)?)?);
    }
    Ok(out)
}

/// The counting rules in what nft prints.
pub fn read(json: &str) -> Result<Vec<RuleCount>> {
    let unreadable = |detail: String| Error::NftUnreadable {
        what: "counters".into(),
        detail,
    };
    let root: Value = serde_json::from_str(json).map_err(|e| unreadable(e.to_string()))?;
    let items = root.get("nftables").and_then(Value::as_array);
    let items = items.ok_or_else(|| unreadable("no list `nftables`".into()))?;
    Ok(items.iter().filter_map(|item| count(item.get("rule")?)).collect())
}

/// A rule of ours that counts. Others' have no stamp.
fn count(rule: &Value) -> Option<RuleCount> {
    let text = |name: &str| rule.get(name)?.as_str().map(str::to_owned);
    let expressions = rule.get("expr")?.as_array()?;
    let counter = expressions.iter().find_map(|e| e.get("counter"))?;
    Some(RuleCount {
        family: text("family")?,
        table: text("table")?,
        chain: text("chain")?,
        stamp: text("comment")?,
        packets: counter.get("packets")?.as_u64()?,
        bytes: counter.get("bytes")?.as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_rules_of_ours_are_read() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
          {"rule": {"family": "inet", "table": "t", "chain": "p", "handle": 13, "comment": "sw:abc",
            "expr": [{"match": {}}, {"counter": {"packets": 5, "bytes": 9}}, {"drop": null}]}},
          {"rule": {"family": "inet", "table": "t", "chain": "p", "comment": "sw:def", "expr": [{"drop": null}]}},
          {"rule": {"family": "inet", "table": "t", "chain": "p",
            "expr": [{"counter": {"packets": 1, "bytes": 9}}, {"drop": null}]}}]}"#;
        let counts = read(json).expect("readable");
        let [count] = &counts[..] else {
            panic!("{counts:?}")
        };
        let seen = (count.stamp.as_str(), count.packets, count.bytes);
        assert_eq!(seen, ("sw:abc", 5, 9));
        assert!(read("{}").is_err());
    }
}

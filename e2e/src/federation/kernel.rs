//! What is in the nodes' kernels, as `ip`, `bridge` and `nft` show it.

use anyhow::{Result, ensure};

use super::cni::PLUGIN_TRACE;
use super::{Federation, PATIENCE};
use crate::scenario::eventually;

/// Prints everything of ours, without counters and handles.
const SHOW: &str = r"
ip -d -o link show spillway0 2>/dev/null | sed -E 's/^[0-9]+: //; s/(numtxqueues|gso_max|tso_max|gro_max).*//'
ip -o addr show dev spillway0 2>/dev/null | sed -E 's/^[0-9]+: //' | grep -v 'fe80:' | sort
bridge fdb show dev spillway0 2>/dev/null | sort
ip -4 neigh show dev spillway0 2>/dev/null | grep PERMANENT | sort
ip -6 neigh show dev spillway0 2>/dev/null | grep PERMANENT | sort
ip -4 neigh show proxy 2>/dev/null | sort
ip -6 neigh show proxy 2>/dev/null | sort
ip -4 rule | grep fwmark | sort
ip -6 rule | grep fwmark | sort
ip -4 route show table all proto 87 2>/dev/null | sort
ip -6 route show table all proto 87 2>/dev/null | sort
for table in 'inet spillway' 'inet spillway_seal' 'netdev spillway'; do
  nft -s list table $table 2>/dev/null | sed -E 's/counter packets [0-9]+ bytes [0-9]+/counter/'
done
true
";

impl Federation {
    /// Everything of ours in a node's kernel, as text that is equal when the state is.
    pub async fn kernel_of(&self, node: &str) -> Result<String> {
        let output = self.node(node)?.exec(&["sh", "-c", SHOW]).await?;
        Ok(in_order(&output.success()?))
    }

    /// The same, once it is the same twice in a row.
    pub async fn rules_of(&self, node: &str) -> Result<String> {
        eventually(PATIENCE, "the node's kernel is at rest", || async {
            let (before, after) = (self.kernel_of(node).await?, self.kernel_of(node).await?);
            ensure!(before == after, "it is being written");
            Ok(after)
        })
        .await
    }

    /// Waits until a node's kernel holds `wanted` again.
    pub async fn kernel_becomes(&self, node: &str, wanted: &str) -> Result<()> {
        eventually(PATIENCE, &format!("{node}'s kernel is what it was"), || async {
            let now = self.kernel_of(node).await?;
            ensure!(now == wanted, "it differs:\n{}", difference(wanted, &now));
            Ok(())
        })
        .await
    }

    /// Waits until a pod address is in no set of ours on the node.
    pub async fn gone_from_kernel(&self, node: &str, address: &str) -> Result<()> {
        eventually(
            PATIENCE,
            &format!("{address} is gone from {node}'s kernel"),
            || async {
                let now = self.kernel_of(node).await?;
                ensure!(!now.contains(&format!("{address} :")), "it is still there");
                Ok(())
            },
        )
        .await
    }

    /// Lines that show something of ours in a node's kernel, and files of ours beside it.
    pub(super) async fn kernel_trace(&self, node: &str) -> Result<Vec<String>> {
        let files = self
            .node(node)?
            .exec(&["sh", "-c", PLUGIN_TRACE])
            .await?
            .success()?;
        let kernel = self.kernel_of(node).await?;
        Ok(kernel.lines().chain(files.lines()).map(str::to_owned).collect())
    }
}

/// The text with nft's sets, maps and chains sorted by name: nft lists them in the order in which they
/// were made, which says nothing.
fn in_order(text: &str) -> String {
    let mut out = String::new();
    let mut table: Option<String> = None;
    for line in text.lines() {
        match &mut table {
            None if line.starts_with("table ") => table = Some(String::new()),
            Some(body) if line == "}" => {
                let mut blocks: Vec<&str> = body.split("\n\n").map(|b| b.trim_matches('\n')).collect();
                blocks.sort_unstable();
                out += &blocks.join("\n\n");
                out += "\n";
                table = None;
            }
            Some(body) => {
                *body += line;
                *body += "\n";
                continue;
            }
            None => {}
        }
        out += line;
        out += "\n";
    }
    out
}

/// Lines of which only one side has one.
fn difference(wanted: &str, now: &str) -> String {
    let missing = wanted
        .lines()
        .filter(|l| !now.lines().any(|n| n == *l))
        .map(|l| format!("- {l}\n"));
    let extra = now
        .lines()
        .filter(|n| !wanted.lines().any(|l| l == *n))
        .map(|n| format!("+ {n}\n"));
    missing.chain(extra).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::in_order;

    #[test]
    fn the_order_of_sets_and_chains_is_of_no_account_but_that_of_rules_is() {
        let table = |blocks: &[&str]| {
            let blocks = blocks.join("\n\n");
            format!("fdb\ntable inet spillway {{\n{blocks}\n}}\ntable netdev spillway {{\n}}\n")
        };
        let (set, chain, other) = (
            "\tset a {\n\t}",
            "\tchain c {\n\t\tone\n\t\ttwo\n\t}",
            "\tchain c {\n\t\ttwo\n\t\tone\n\t}",
        );
        assert_eq!(in_order(&table(&[set, chain])), in_order(&table(&[chain, set])));
        assert_ne!(in_order(&table(&[set, chain])), in_order(&table(&[set, other])));
    }
}

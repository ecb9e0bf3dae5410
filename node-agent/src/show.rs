//! `spillway-node-agent show`: what this node's kernel should hold by the inputs last stored, and how what it
//! holds differs. Reads only.

use std::io::{self, Write};

use anyhow::Context as _;
use spillway_core::node::inputs::{Addresses, NodeInputs, Settings};
use spillway_core::node::{Compiled, compile_numbered, problems};
use spillway_dataplane::Kernel;

use crate::disk::Disk;

/// Writes both to `out`.
pub(crate) async fn show(
    mut out: impl Write,
    kernel: &impl Kernel,
    disk: &Disk,
    node: &str,
    settings: Settings,
    difference_only: bool,
) -> anyhow::Result<()> {
    let mut inputs = disk
        .load(node)
        .context("nothing is stored: no plan was programmed on this node, or it was torn down")?;
    inputs.settings = settings;
    inputs.liveness = disk.recall();
    let underlay: Vec<_> = inputs
        .nodes
        .get(node)
        .map(|n| Addresses::of(&n.underlay).iter().collect())
        .unwrap_or_default();
    let facts = kernel.facts(&underlay).await.context("read the node's network")?;
    inputs.facts = facts.for_compiler(&inputs.settings.device);
    let Compiled {
        state: desired,
        gateway_indexes,
        ..
    } = compile_numbered(&inputs);
    inputs.gateway_indexes = gateway_indexes;
    let changes = kernel.plan(&desired).await.context("compare with the kernel")?;

    if !difference_only {
        head(&mut out, &inputs)?;
        for (address, class) in &desired.flows.pods {
            writeln!(out, "pod      {address} class {class}")?;
        }
        if inputs.guard {
            writeln!(
                out,
                "guard    what other pods send to destinations of policies is dropped"
            )?;
            let sets = desired.ruleset.iter().flat_map(|r| &r.sets);
            let known = sets.filter(|(name, _)| ["known4", "known6"].contains(&name.as_str()));
            for address in known.flat_map(|(_, set)| set.elements.keys().flatten()) {
                writeln!(out, "pod      {address} known, of no policy")?;
            }
        }
        for (gateway, index) in &inputs.gateway_indexes {
            writeln!(out, "gateway  {gateway} number {index}")?;
        }
        let mut rest = desired.clone();
        // JSON has no keys of several fields, and nft's own text reads better.
        let tables = [rest.seal.take(), rest.ruleset.take(), rest.steering.take()];
        writeln!(out, "\n{}\n", serde_json::to_string_pretty(&rest)?)?;
        for table in tables.into_iter().flatten() {
            writeln!(out, "{}", table.render())?;
        }
    }
    if changes.is_empty() {
        writeln!(out, "the kernel holds exactly that")?;
    } else {
        writeln!(
            out,
            "{} differences; an apply would do this:\n{changes}",
            changes.len()
        )?;
    }
    Ok(())
}

fn head(out: &mut impl Write, inputs: &NodeInputs) -> io::Result<()> {
    writeln!(out, "node     {}", inputs.node)?;
    if let Some(plan) = &inputs.plan {
        writeln!(out, "member   {} ({})", plan.member.member, plan.member.member_id)?;
        writeln!(out, "plan     {}", plan.digest)?;
    }
    for problem in problems(inputs) {
        writeln!(out, "problem  {problem}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use spillway_core::node::fixtures;
    use spillway_dataplane::RecordingKernel;

    use super::*;

    #[tokio::test]
    async fn every_table_is_shown_as_text() {
        let directory = tempfile::tempdir().expect("directory");
        let disk = Disk::new(directory.path());
        disk.store(&fixtures::stateless_gateway()).expect("stored");
        let mut out = Vec::new();
        let kernel = RecordingKernel::default();
        show(&mut out, &kernel, &disk, "b-1", Settings::default(), false)
            .await
            .expect("shown");
        let text = String::from_utf8(out).expect("text");
        for needle in [
            "table inet spillway {",
            "table netdev spillway {",
            "\"tunnel\"",
            "differences",
        ] {
            assert!(text.contains(needle), "no {needle:?} in:\n{text}");
        }
    }
}

//! `spillway token list`.

use super::record::{self, Record};
use crate::args::{Target, TokenList};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::output;

/// Prints all tokens.
pub async fn run(target: &Target, list: &TokenList) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let records = record::all(&cluster).await?;
    match list.output {
        Some(format) => output::print(&output::text(&records, format)?),
        None => output::print(&table(&records)),
    }
}

fn table(records: &[Record]) -> String {
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|r| {
            let labels: Vec<String> = r.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            vec![
                r.member.clone(),
                r.state.into(),
                r.expires.clone(),
                r.partition.clone(),
                labels.join(","),
                r.id.clone(),
            ]
        })
        .collect();
    output::table(
        &["MEMBER", "STATE", "EXPIRES", "PARTITION", "LABELS", "ID"],
        &rows,
    )
}

//! Results on stdout: tables for people, JSON and YAML for programs.

use std::io::Write as _;

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::failure::{Exit, Failure};

/// Formats for programs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// `value` in `format`, with a newline at its end.
pub fn text<T: Serialize>(value: &T, format: Format) -> Result<String, Failure> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(value).map_err(|err| err.to_string()),
        Format::Yaml => serde_saphyr::to_string(value).map_err(|err| err.to_string()),
    };
    let mut text = text.map_err(|err| Failure::new(Exit::Other, format!("can't write the result: {err}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Writes to stdout. A reader that went away (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(err) if err.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Other, format!("can't write to stdout: {err}")))
        }
        _ => Ok(()),
    }
}

/// A table without lines, so that it reads and cuts like kubectl's.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.clone());
    }
    let mut out = String::new();
    for line in table.lines() {
        out.push_str(line.trim_end().strip_prefix(' ').unwrap_or(line.trim_end()));
        out.push('\n');
    }
    out
}

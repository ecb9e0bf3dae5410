//! Figures and how they are told.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;

/// One measured figure beside its baseline from the same run.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// What `value` is compared with.
    baseline: String,
    baseline_value: Option<f64>,
    /// value / baseline.
    ratio: Option<f64>,
}

/// All figures of a run, in order.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Figure>);

impl Figures {
    /// The table comes at the end of many minutes; whoever watches sees each figure as it comes.
    #[expect(clippy::print_stderr, reason = "progress")]
    fn push(&mut self, figure: Figure) {
        eprintln!("  {}: {:.2} {}", figure.name, figure.value, figure.unit);
        self.0.push(figure);
    }

    /// Adds a figure that stands alone.
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &'static str) {
        self.push(Figure {
            name: name.into(),
            value,
            unit,
            baseline: String::new(),
            baseline_value: None,
            ratio: None,
        });
    }

    /// Adds a figure beside a baseline of the same unit.
    pub(crate) fn compare(
        &mut self,
        name: &str,
        value: f64,
        unit: &'static str,
        baseline: &str,
        baseline_value: f64,
    ) {
        let ratio = (baseline_value > 0.0).then(|| value / baseline_value);
        self.push(Figure {
            name: name.into(),
            value,
            unit,
            baseline: baseline.into(),
            baseline_value: Some(baseline_value),
            ratio,
        });
    }

    /// Adds p50 and p99 of a series, each beside the baseline's.
    pub(crate) fn percentiles(
        &mut self,
        name: &str,
        series: &[f64],
        unit: &'static str,
        baseline: Option<(&str, &[f64])>,
    ) {
        for p in [50, 99] {
            let value = percentile(series, p);
            let title = format!("{name}, p{p} of {}", series.len());
            match baseline {
                Some((what, other)) => self.compare(&title, value, unit, what, percentile(other, p)),
                None => self.add(&title, value, unit),
            }
        }
    }

    /// Prints the table and writes `target/bench.json`.
    #[expect(clippy::print_stdout, reason = "the program's output")]
    pub(crate) fn publish(&self) -> Result<()> {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header([
            "what",
            "value",
            "unit",
            "baseline in the same run",
            "its value",
            "ratio",
        ]);
        let number = |v: Option<f64>| v.map_or_else(String::new, |v| format!("{v:.2}"));
        for f in &self.0 {
            table.add_row([
                f.name.clone(),
                number(Some(f.value)),
                f.unit.into(),
                f.baseline.clone(),
                number(f.baseline_value),
                number(f.ratio),
            ]);
        }
        println!("{table}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&self.0)?)
            .with_context(|| format!("write {}", path.display()))?;
        println!("written to target/bench.json");
        Ok(())
    }
}

/// The smallest value that at least `p` percent of the series don't exceed; 0 for an empty series.
pub(crate) fn percentile(series: &[f64], p: usize) -> f64 {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (p * sorted.len()).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_of_the_series() {
        let series = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(percentile(&series, 50).to_bits(), 3.0_f64.to_bits());
        assert_eq!(percentile(&series, 99).to_bits(), 5.0_f64.to_bits());
        assert_eq!(percentile(&[], 50).to_bits(), 0.0_f64.to_bits());
    }
}

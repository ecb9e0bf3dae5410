//! Reads what a scrape answers, and refuses what a strict reader would: the tests' own eyes. (The one parser on
//! crates.io is under the LGPL.)
//!
//! Source: OpenMetrics 1.0, sections 5.1 to 5.3.

use std::collections::{BTreeMap, BTreeSet};

/// One line of values.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name with its suffix.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// All that was scraped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// Kinds of the families, by their names without suffix.
    pub kinds: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

impl Scrape {
    /// The samples of that name.
    pub fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |s| s.name == name)
    }

    /// All samples.
    pub fn all(&self) -> &[Sample] {
        &self.samples
    }

    /// The value with exactly these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: BTreeMap<_, _> = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        self.samples(name).find(|s| s.labels == wanted).map(|s| s.value)
    }
}

fn is_name(text: &str) -> bool {
    let good = |(n, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (n > 0 && c.is_ascii_digit());
    !text.is_empty() && text.chars().enumerate().all(good)
}

/// Suffixes that the samples of a kind have.
fn suffixes(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "counter" => &["_total"],
        "gauge" => &[""],
        "info" => &["_info"],
        "histogram" => &["_bucket", "_count", "_sum"],
        _ => return None,
    })
}

/// Reads a scrape.
///
/// # Errors
/// The line that isn't as it should be, and why.
pub fn parse(text: &str) -> Result<Scrape, String> {
    let mut out = Scrape::default();
    let mut family: Option<(String, String)> = None;
    let mut seen = BTreeSet::new();
    let body = text.strip_suffix("# EOF\n").ok_or("it doesn't end with # EOF")?;
    for line in body.lines() {
        let wrong = |why: &str| format!("{why}: {line:?}");
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let rest = words.next().unwrap_or_default();
            if !is_name(name) {
                return Err(wrong("no metric's name"));
            }
            match what {
                "HELP" if rest.is_empty() => return Err(wrong("help without words")),
                "HELP" | "UNIT" => {}
                "TYPE" => {
                    suffixes(rest).ok_or_else(|| wrong("an unknown type"))?;
                    if out.kinds.insert(name.into(), rest.into()).is_some() {
                        return Err(wrong("a family twice"));
                    }
                    family = Some((name.into(), rest.into()));
                }
                _ => return Err(wrong("an unknown comment")),
            }
            continue;
        }
        let sample = sample(line).ok_or_else(|| wrong("no sample"))?;
        let (name, kind) = family.as_ref().ok_or_else(|| wrong("a sample before its type"))?;
        let fits = |suffix: &&str| sample.name.strip_suffix(*suffix) == Some(name);
        if !suffixes(kind).unwrap_or_default().iter().any(fits) {
            return Err(wrong("a sample that isn't of the family before it"));
        }
        if kind == "counter" && (sample.value < 0.0 || sample.value.is_nan()) {
            return Err(wrong("a counter below zero"));
        }
        if sample.name.ends_with("_bucket") && kind == "histogram" && !sample.labels.contains_key("le") {
            return Err(wrong("a bucket without its bound"));
        }
        if !seen.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(wrong("a series twice"));
        }
        out.samples.push(sample);
    }
    Ok(out)
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    if !is_name(name) {
        return None;
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.strip_prefix(' ')?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample {
        name: name.into(),
        labels,
        value,
    })
}

/// Reads labels up to and with the closing brace; answers what comes behind.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut out = BTreeMap::new();
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((out, behind));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        if !is_name(name) {
            return None;
        }
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            let (place, c) = characters.next()?;
            match c {
                '"' => break place,
                '\\' => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    _ => return None,
                }),
                c => value.push(c),
            }
        };
        if out.insert(name.to_owned(), value).is_some() {
            return None;
        }
        rest = &quoted[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_is_read() {
        let text = "# HELP a_total A.\n# TYPE a counter\n# HELP b B.\n# TYPE b gauge\nb{x=\"1\",y=\"q\\\"\\\\\"} 1.5\nb{x=\"2\"} -3\n# EOF\n";
        let read = parse(text).expect("well-formed");
        assert_eq!(read.value("b", &[("x", "1"), ("y", "q\"\\")]), Some(1.5));
        assert_eq!(read.samples("b").count(), 2);
    }

    #[test]
    fn what_a_strict_reader_refuses_is_refused() {
        let gauge = "# HELP b B.\n# TYPE b gauge\n";
        for (text, why) in [
            (format!("{gauge}b 1\n"), "EOF"),
            (format!("{gauge}b 1\nb 2\n# EOF\n"), "series twice"),
            (format!("{gauge}b x\n# EOF\n"), "no sample"),
            (format!("{gauge}b{{x=\"1\" 2\n# EOF\n"), "no sample"),
            (format!("{gauge}c 1\n# EOF\n"), "isn't of the family"),
            (format!("{gauge}# TYPE b gauge\n# EOF\n"), "family twice"),
            ("b 1\n# EOF\n".into(), "before its type"),
            ("# TYPE c counter\nc 1\n# EOF\n".into(), "isn't of the family"),
            ("# TYPE c counter\nc_total -1\n# EOF\n".into(), "below zero"),
            ("# TYPE c thing\n# EOF\n".into(), "unknown type"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(why), "{error}");
        }
    }
}

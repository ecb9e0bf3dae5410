//! Our entry in a network configuration list, put in and taken out by the text: whatever else stands in the file
//! stays as it was, to the byte. Pure.

use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_cni::config::{Entry, PLUGIN};

/// Oldest version of the spec that hands results down the chain.
const OLDEST: [u32; 2] = [0, 3];

/// What is to be written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Change {
    /// File name.
    pub(super) name: String,
    /// All of it.
    pub(super) text: String,
    /// Another file that this one replaces.
    pub(super) remove: Option<String>,
}

/// Why a file is left alone.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Problem {
    /// It isn't JSON, or not of the form that a configuration has.
    #[error("{name} can't be read as a CNI configuration: {why}")]
    Unreadable {
        /// File name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Plugins of that version don't hand results on.
    #[error("{name} has cniVersion {version:?}; chaining needs 0.3.1 or later")]
    TooOld {
        /// File name.
        name: String,
        /// What it says.
        version: String,
    },
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(rename = "cniVersion", default)]
    version: String,
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Single {
    #[serde(rename = "cniVersion", default)]
    version: String,
    #[serde(default)]
    name: String,
    #[serde(rename = "type")]
    _kind: String,
}

/// Whether the runtime would read a file of this name, and the file holds a list.
pub(super) fn is_configuration(name: &str) -> bool {
    [".conflist", ".conf", ".json"].iter().any(|e| name.ends_with(e))
}

fn is_list(name: &str) -> bool {
    name.ends_with(".conflist")
}

fn unreadable(name: &str, why: &impl ToString) -> Problem {
    Problem::Unreadable {
        name: name.to_owned(),
        why: why.to_string(),
    }
}

fn parse<'a>(name: &str, text: &'a str) -> Result<List<'a>, Problem> {
    let list: List<'a> = serde_json::from_str(text).map_err(|e| unreadable(name, &e))?;
    if list.plugins.is_empty() {
        return Err(unreadable(name, &"it has no plugins"));
    }
    Ok(list)
}

fn check_version(name: &str, version: &str) -> Result<(), Problem> {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let found = [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)];
    if found >= OLDEST {
        return Ok(());
    }
    Err(Problem::TooOld {
        name: name.to_owned(),
        version: version.to_owned(),
    })
}

/// Our entry, if the plugin is it.
fn ours(plugin: &RawValue) -> Option<Entry> {
    serde_json::from_str::<Entry>(plugin.get())
        .ok()
        .filter(|entry| entry.kind == PLUGIN)
}

/// Where a part of `text` begins and ends in it.
fn range(text: &str, part: &RawValue) -> (usize, usize) {
    let begin = part.get().as_ptr().addr() - text.as_ptr().addr();
    (begin, begin + part.get().len())
}

/// The list without any entry of ours, and the name of the file that it once replaced.
fn without(name: &str, text: &str) -> Result<(String, String), Problem> {
    let mut text = text.to_owned();
    let mut replaces = String::new();
    loop {
        let list: List<'_> = serde_json::from_str(&text).map_err(|e| unreadable(name, &e))?;
        let found = list
            .plugins
            .iter()
            .enumerate()
            .find_map(|(n, p)| Some((n, ours(p)?)));
        let Some((n, entry)) = found else {
            return Ok((text, replaces));
        };
        if !entry.replaces.is_empty() {
            replaces = entry.replaces;
        }
        let (begin, end) = range(&text, list.plugins[n]);
        let (begin, end) = match (n.checked_sub(1), list.plugins.get(n + 1)) {
            (Some(before), _) => {
                let before = range(&text, list.plugins[before]).1;
                (before + text[before..begin].find(',').unwrap_or(0), end)
            }
            (None, Some(next)) => (begin, range(&text, next).0),
            (None, None) => (begin, end),
        };
        text.replace_range(begin..end, "");
    }
}

/// What makes our entry the last of the file's chain; none where it is that already. A single plugin's
/// configuration becomes a list in a file of its own.
pub(super) fn chained(name: &str, text: &str, entry: &Entry) -> Result<Option<Change>, Problem> {
    let render = |entry: &Entry| serde_json::to_string(entry).unwrap_or_default();
    if !is_list(name) {
        let single: Single = serde_json::from_str(text).map_err(|e| unreadable(name, &e))?;
        check_version(name, &single.version)?;
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let network = if single.name.is_empty() {
            stem
        } else {
            &single.name
        };
        let entry = Entry {
            replaces: name.to_owned(),
            ..entry.clone()
        };
        return Ok(Some(Change {
            name: format!("{stem}.conflist"),
            text: format!(
                "{{\"cniVersion\":{},\"name\":{},\"plugins\":[{text},{}]}}\n",
                serde_json::Value::from(single.version.as_str()),
                serde_json::Value::from(network),
                render(&entry)
            ),
            remove: Some(name.to_owned()),
        }));
    }
    let (bare, replaces) = without(name, text)?;
    let list = parse(name, &bare)?;
    check_version(name, &list.version)?;
    let entry = Entry {
        replaces,
        ..entry.clone()
    };
    // However it is set off.
    let all = parse(name, text)?.plugins;
    if all.len() == list.plugins.len() + 1 && all.last().and_then(|p| ours(p)).as_ref() == Some(&entry) {
        return Ok(None);
    }
    let (begin, end) = range(&bare, list.plugins[list.plugins.len() - 1]);
    // As the last one is set off from what stands before it.
    let indent = &bare[bare[..begin].trim_end().len()..begin];
    Ok(Some(Change {
        name: name.to_owned(),
        text: format!("{},{indent}{}{}", &bare[..end], render(&entry), &bare[end..]),
        remove: None,
    }))
}

/// What takes our entry out of the file; none where there is none.
pub(super) fn unchained(name: &str, text: &str) -> Result<Option<Change>, Problem> {
    if !is_list(name) {
        return Ok(None);
    }
    let (bare, replaces) = without(name, text)?;
    if bare == text {
        return Ok(None);
    }
    let list: List<'_> = serde_json::from_str(&bare).map_err(|e| unreadable(name, &e))?;
    let [only] = list.plugins[..] else {
        let name = name.to_owned();
        return Ok(Some(Change {
            name,
            text: bare,
            remove: None,
        }));
    };
    if replaces.is_empty() {
        let name = name.to_owned();
        return Ok(Some(Change {
            name,
            text: bare,
            remove: None,
        }));
    }
    // The file that it was stands between the brackets as it was.
    let (begin, end) = range(&bare, only);
    let begin = bare[..begin].trim_end().len();
    let end = end + bare[end..].len() - bare[end..].trim_start().len();
    Ok(Some(Change {
        name: replaces,
        text: bare[begin..end].to_owned(),
        remove: Some(name.to_owned()),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const LIST: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "arena",
  "plugins": [
    {
      "type": "bridge",
      "ipam": {"type": "host-local"}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

    fn types(text: &str) -> Vec<String> {
        let list: Value = serde_json::from_str(text).expect("JSON");
        let plugins = list["plugins"].as_array().expect("plugins");
        plugins
            .iter()
            .map(|p| p["type"].as_str().expect("a type").to_owned())
            .collect()
    }

    fn put_in(name: &str, text: &str) -> Change {
        chained(name, text, &Entry::default())
            .expect("readable")
            .expect("a change")
    }

    #[test]
    fn the_entry_comes_last_once_and_goes_without_a_trace() {
        let change = put_in("10-arena.conflist", LIST);
        assert_eq!(types(&change.text), ["bridge", "portmap", PLUGIN]);
        assert_eq!(
            (change.name.as_str(), &change.remove),
            ("10-arena.conflist", &None)
        );
        assert_eq!(
            chained("10-arena.conflist", &change.text, &Entry::default()),
            Ok(None)
        );
        let back = unchained("10-arena.conflist", &change.text)
            .expect("readable")
            .expect("a change");
        assert_eq!(back.text, LIST);
        assert_eq!(unchained("10-arena.conflist", LIST), Ok(None));
    }

    #[test]
    fn it_moves_to_the_end_when_others_came_after_it_and_follows_its_settings() {
        let behind = r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"spillway-cni","wait":1},{"type":"spillway-cni"},{"type":"a"}]}"#;
        let change = put_in("n.conflist", behind);
        assert_eq!(types(&change.text), ["a", PLUGIN]);
        let slower = Entry {
            wait: 40,
            ..Entry::default()
        };
        let slower = chained("n.conflist", &change.text, &slower)
            .expect("readable")
            .expect("a change");
        assert!(slower.text.contains(r#""wait":40"#) && types(&slower.text) == ["a", PLUGIN]);
        let alone = r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"spillway-cni"}]}"#;
        assert!(
            chained("n.conflist", alone, &Entry::default()).is_err(),
            "nothing to stand behind"
        );
        assert_eq!(
            unchained("n.conflist", alone)
                .expect("readable")
                .expect("a change")
                .text,
            r#"{"cniVersion":"0.3.1","name":"n","plugins":[]}"#
        );
    }

    #[test]
    fn a_single_plugins_file_becomes_a_list_and_comes_back_to_the_byte() {
        let single = "\n{ \"cniVersion\": \"0.3.1\", \"name\": \"mynet\", \"type\": \"ptp\" }\n";
        let change = put_in("10-mynet.conf", single);
        assert_eq!(
            (change.name.as_str(), change.remove.as_deref()),
            ("10-mynet.conflist", Some("10-mynet.conf"))
        );
        assert_eq!(types(&change.text), ["ptp", PLUGIN]);
        let list: Value = serde_json::from_str(&change.text).expect("JSON");
        assert_eq!(
            (&list["name"], &list["cniVersion"]),
            (&"mynet".into(), &"0.3.1".into())
        );
        assert_eq!(
            chained("10-mynet.conflist", &change.text, &Entry::default()),
            Ok(None),
            "it knows what it was"
        );
        let back = unchained("10-mynet.conflist", &change.text)
            .expect("readable")
            .expect("a change");
        assert_eq!(
            (back.name.as_str(), back.text.as_str()),
            ("10-mynet.conf", single)
        );
        assert_eq!(back.remove.as_deref(), Some("10-mynet.conflist"));
    }

    #[test]
    fn what_cant_be_chained_is_left_alone() {
        let entry = Entry::default();
        for (name, text) in [
            ("a.conflist", "{"),
            ("a.conflist", "[]"),
            ("a.conflist", r#"{"plugins":[]}"#),
            ("a.conf", r#"{"cniVersion":"1.0.0"}"#),
        ] {
            assert!(
                matches!(chained(name, text, &entry), Err(Problem::Unreadable { .. })),
                "{text}"
            );
        }
        for text in [
            r#"{"plugins":[{"type":"a"}]}"#,
            r#"{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#,
        ] {
            assert!(
                matches!(chained("a.conflist", text, &entry), Err(Problem::TooOld { .. })),
                "{text}"
            );
        }
    }
}

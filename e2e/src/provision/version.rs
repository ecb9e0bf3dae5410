//! Kubernetes versions, and the Go modules that can build them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};

/// A full Kubernetes version such as `v1.36.3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KubernetesVersion {
    /// Always 1 so far.
    pub major: u16,
    /// The part that decides compatibility.
    pub minor: u16,
    /// The patch release.
    pub patch: u16,
}

impl KubernetesVersion {
    /// What a cluster runs unless told otherwise: the version that `go/kubernetes` pins.
    pub const DEFAULT: Self = Self {
        major: 1,
        minor: 36,
        patch: 3,
    };

    /// The versions that can be built, the oldest first.
    pub fn available() -> anyhow::Result<Vec<Self>> {
        Ok(modules(&super::go_dir())?
            .into_iter()
            .map(|(version, _)| version)
            .collect())
    }

    /// The folder of the Go module that pins this version.
    ///
    /// # Errors
    /// When no module does; names those that exist and how to add one.
    pub(crate) fn module(self, go_dir: &Path) -> anyhow::Result<PathBuf> {
        let modules = modules(go_dir)?;
        if let Some((_, dir)) = modules.iter().find(|(version, _)| *version == self) {
            return Ok(dir.clone());
        }
        let known: Vec<String> = modules.iter().map(|(version, _)| version.to_string()).collect();
        Err(anyhow!(
            "no Go module builds Kubernetes {self}; there is {}. Add it with {}/add-kubernetes {self}",
            known.join(", "),
            go_dir.display()
        ))
    }
}

impl Default for KubernetesVersion {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for KubernetesVersion {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || anyhow!("{text:?} is no Kubernetes version: write it in full, such as v1.36.3");
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut number = || {
            parts
                .next()
                .and_then(|part| part.parse::<u16>().ok())
                .ok_or_else(malformed)
        };
        let version = Self {
            major: number()?,
            minor: number()?,
            patch: number()?,
        };
        if parts.next().is_some() {
            return Err(malformed());
        }
        Ok(version)
    }
}

impl TryFrom<String> for KubernetesVersion {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<KubernetesVersion> for String {
    fn from(version: KubernetesVersion) -> Self {
        version.to_string()
    }
}

/// Every version some `kubernetes*` module pins, in order.
fn modules(go_dir: &Path) -> anyhow::Result<Vec<(KubernetesVersion, PathBuf)>> {
    let entries = std::fs::read_dir(go_dir).with_context(|| {
        format!(
            "{} holds the arena's Go modules; is the checkout complete?",
            go_dir.display()
        )
    })?;
    let mut found = Vec::new();
    for entry in entries {
        let dir = entry?.path();
        let named_kubernetes = dir
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("kubernetes"));
        if !named_kubernetes {
            continue;
        }
        let file = dir.join("go.mod");
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if let Some(version) = required_version(&text, "k8s.io/kubernetes") {
            found.push((version.parse()?, dir));
        }
    }
    found.sort();
    Ok(found)
}

/// The version that a go.mod requires of `module`.
pub(crate) fn required_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let line = line.trim();
        let mut words = line.strip_prefix("require ").unwrap_or(line).split_whitespace();
        (words.next() == Some(module))
            .then(|| words.next())
            .flatten()
            .filter(|word| word.starts_with('v'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::go_dir;

    #[test]
    fn a_version_reads_and_prints_with_or_without_its_v() {
        for text in ["v1.36.3", "1.36.3"] {
            assert_eq!(
                text.parse::<KubernetesVersion>().unwrap(),
                KubernetesVersion::DEFAULT
            );
        }
        assert_eq!(KubernetesVersion::DEFAULT.to_string(), "v1.36.3");
        for text in ["", "v1.36", "1.36.3.4", "1.36.x", "latest"] {
            assert!(text.parse::<KubernetesVersion>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_default_is_what_the_kubernetes_module_pins() {
        let dir = KubernetesVersion::DEFAULT.module(&go_dir()).unwrap();
        assert_eq!(dir, go_dir().join("kubernetes"));
    }

    #[test]
    fn the_default_is_available() {
        assert!(
            KubernetesVersion::available()
                .unwrap()
                .contains(&KubernetesVersion::DEFAULT)
        );
    }

    #[test]
    fn an_unknown_version_is_refused_with_the_way_to_add_it() {
        let unknown = KubernetesVersion {
            major: 1,
            minor: 9,
            patch: 0,
        };
        let message = unknown.module(&go_dir()).unwrap_err().to_string();
        assert!(
            message.contains("v1.36.3") && message.contains("add-kubernetes v1.9.0"),
            "{message}"
        );
    }

    #[test]
    fn requirements_are_found_in_both_forms_and_replacements_are_not() {
        let text = "require a.example/x v1.2.3\nrequire (\n\ta.example/y v2.0.0 // indirect\n)\nreplace a.example/z => a.example/z v3.0.0\n";
        assert_eq!(required_version(text, "a.example/x"), Some("v1.2.3"));
        assert_eq!(required_version(text, "a.example/y"), Some("v2.0.0"));
        assert_eq!(required_version(text, "a.example/z"), None);
    }
}

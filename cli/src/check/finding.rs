//! One thing to say, and where to read on.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::failure::Failure;
use crate::status::Problem;

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something doesn't work, or won't.
    Error,
    /// It works, and somebody should look.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// What a finding is about: the heading of the documentation that explains it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Topic {
    /// Rights of whoever runs the command.
    Rights,
    /// Versions and APIs of the API server.
    ApiServer,
    /// Kernels and addresses of nodes.
    Nodes,
    /// Ports that somebody else has.
    Ports,
    /// What Pod Security refuses.
    PodSecurity,
    /// Conditions.
    Reasons,
    /// Versions of our parts.
    Versions,
    /// The member's certificate.
    Certificates,
    /// Clocks.
    Clock,
    /// Agents that aren't ready.
    Agents,
    /// What couldn't be read.
    Unread,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Rights,
        Self::ApiServer,
        Self::Nodes,
        Self::Ports,
        Self::PodSecurity,
        Self::Reasons,
        Self::Versions,
        Self::Certificates,
        Self::Clock,
        Self::Agents,
        Self::Unread,
    ];

    /// The page and its heading.
    pub const fn docs(self) -> &'static str {
        match self {
            Self::Rights => "docs/operations.md#rights",
            Self::ApiServer => "docs/operations.md#api-server",
            Self::Nodes => "docs/operations.md#what-a-node-needs-and-what-is-changed-there",
            Self::Ports => "docs/operations.md#ports",
            Self::PodSecurity => "deploy/README.md#namespace",
            Self::Reasons => "docs/operations.md#reasons",
            Self::Versions => "docs/operations.md#versions",
            Self::Certificates => "docs/operations.md#certificates",
            Self::Clock => "docs/operations.md#clocks",
            Self::Agents => "docs/operations.md#alive-and-ready",
            Self::Unread => "docs/operations.md#what-couldnt-be-read",
        }
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.docs())
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.docs())
    }
}

/// Something that was found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The object, such as `node n1`.
    pub object: String,
    /// What is wrong.
    pub what: String,
    /// What to do; empty where `what` says it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// Where to read on.
    pub docs: Topic,
}

impl Finding {
    /// An error.
    pub fn error(
        topic: Topic,
        object: impl Into<String>,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            object: object.into(),
            what: what.into(),
            fix: fix.into(),
            docs: topic,
        }
    }

    /// A warning.
    pub fn warning(
        topic: Topic,
        object: impl Into<String>,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(topic, object, what, fix)
        }
    }

    /// What `spillway status` calls a problem.
    pub fn of_status(problem: Problem) -> Self {
        Self::error(Topic::Reasons, problem.object, problem.what, problem.fix)
    }

    /// A check that couldn't be made.
    pub fn unread(object: impl Into<String>, failure: &Failure) -> Self {
        let fix = failure.fix.join("; ");
        Self::warning(
            Topic::Unread,
            object,
            format!("not checked: {}", failure.what),
            fix,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// As GitHub makes them: letters and digits in lower case, spaces to dashes, the rest left out.
    fn anchor(heading: &str) -> String {
        let kept = heading.to_lowercase();
        let kept = kept
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.collect::<String>().replace(' ', "-")
    }

    #[test]
    fn every_finding_leads_to_a_heading_that_exists() {
        assert_eq!(
            anchor("What a node needs, and what isn't"),
            "what-a-node-needs-and-what-isnt"
        );
        for topic in Topic::ALL {
            let (page, wanted) = topic.docs().split_once('#').expect("an anchor");
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{page}: {e}"));
            let headings: BTreeSet<String> = text
                .lines()
                .filter(|l| l.starts_with('#'))
                .map(|l| anchor(l.trim_start_matches('#').trim()))
                .collect();
            assert!(
                headings.contains(wanted),
                "{page} has no heading {wanted}: {headings:#?}"
            );
        }
    }
}

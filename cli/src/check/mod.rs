//! `spillway check`: is this cluster fit for Spillway, or, where it is there already, does everything hold that nobody
//! looks at before it hurts?
//!
//! ```text
//!  nothing installed ─► before: rights, server, nodes, ports  ┐
//!  a hub             ─► status::hub,    after: versions       ├─► findings ─► text, JSON
//!  a member          ─► status::member, after: certificate, … ┘
//! ```
//!
//! What is read is judged by pure functions. What can't be read is a finding of its own and keeps no other check from being made.

mod after;
mod before;
mod clock;
mod finding;

use spillway_crds::{HUB_GROUP, MEMBER_GROUP};

use crate::args::{Check, Side, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::status;

pub use finding::{Finding, Severity, Topic};

/// Checks and prints.
pub async fn run(target: &Target, check: &Check) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let (looked, mut findings) = findings(&cluster, check.before).await?;
    findings.sort_by(|a, b| (a.severity, &a.object, &a.what).cmp(&(b.severity, &b.object, &b.what)));
    match check.output {
        Some(format) => output::print(&output::text(&findings, format)?)?,
        None => output::print(&format!("checked: {}\n{}", looked.join(", "), text(&findings)))?,
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if errors > 0 || (check.strict && warnings > 0) {
        return Err(Failure::new(
            Exit::Unhealthy,
            format!("{errors} errors, {warnings} warnings"),
        ));
    }
    Ok(())
}

/// What was looked at, and all that is to be said of it.
pub(crate) async fn findings(
    cluster: &Cluster,
    before: Option<Side>,
) -> Result<(Vec<&'static str>, Vec<Finding>), Failure> {
    let groups = cluster.groups().await?;
    let serves = |group: &str| groups.iter().any(|g| g == group);
    let (hub, member) = (serves(HUB_GROUP), serves(MEMBER_GROUP));
    let mut looked = Vec::new();
    let mut out = Vec::new();
    let sides = match before {
        Some(side) => vec![side],
        None if !hub && !member => vec![Side::Hub, Side::Member],
        None => Vec::new(),
    };
    for side in &sides {
        looked.push(match side {
            Side::Hub => "what installing a hub needs",
            Side::Member => "what installing a member needs",
        });
    }
    if !sides.is_empty() {
        out.extend(before::check(cluster, &sides).await);
    }
    if hub {
        looked.push("the hub");
        match status::hub::read(cluster).await {
            Ok((_, problems)) => out.extend(problems.into_iter().map(Finding::of_status)),
            Err(failure) => out.push(Finding::unread("hub", &failure)),
        }
        out.extend(after::hub(cluster).await);
    }
    if member {
        looked.push("the member");
        match status::member::read(cluster).await {
            Ok((_, problems)) => out.extend(problems.into_iter().map(Finding::of_status)),
            Err(failure) => out.push(Finding::unread("member", &failure)),
        }
        out.extend(after::member(cluster).await);
    }
    looked.push("clocks");
    out.extend(clock::check(cluster).await);
    Ok((looked, out))
}

/// The findings for people.
fn text(findings: &[Finding]) -> String {
    use std::fmt::Write as _;

    if findings.is_empty() {
        return "nothing to complain about\n".into();
    }
    let mut out = String::new();
    for finding in findings {
        let Finding {
            severity,
            object,
            what,
            fix,
            docs,
        } = finding;
        let _ = writeln!(out, "{severity:<7}  {object}: {what}");
        if !fix.is_empty() {
            let _ = writeln!(out, "         fix: {fix}");
        }
        let _ = writeln!(out, "         see {docs}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_has_its_fix_and_its_page() {
        let findings = [
            Finding::error(Topic::Rights, "user", "may not do x", "ask somebody"),
            Finding::warning(Topic::Clock, "node n1", "is 40 s behind", ""),
        ];
        let text = text(&findings);
        assert_eq!(
            text,
            "error    user: may not do x\n         fix: ask somebody\n         see docs/operations.md#rights\n\
             warning  node n1: is 40 s behind\n         see docs/operations.md#clocks\n"
        );
    }
}

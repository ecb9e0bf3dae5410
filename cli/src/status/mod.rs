//! `spillway status`: what there is, what is wrong, what to do. Which side a cluster is on shows in the
//! API groups it serves; it may be both.

pub mod hub;
pub mod member;

use std::fmt::Write as _;

use serde::Serialize;
use spillway_crds::{HUB_GROUP, MEMBER_GROUP};

use crate::args::{Status, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::output;

/// Something wrong, and the fix.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// The object, such as `policy payments/bank`.
    pub object: String,
    /// What is wrong.
    pub what: String,
    /// What to do; empty where `what` says it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

impl Problem {
    fn new(object: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            object: object.into(),
            what: one_line(&what.into()),
            fix: fix.into(),
        }
    }
}

/// Everything that `status` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The federation, where this is the hub's cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<hub::HubReport>,
    /// The member, where this cluster is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<member::MemberReport>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Prints the report.
pub async fn run(target: &Target, status: &Status) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let groups = cluster.groups().await?;
    let serves = |group: &str| groups.iter().any(|g| g == group);
    let mut report = Report::default();
    if serves(HUB_GROUP) {
        let (hub, problems) = hub::read(&cluster).await?;
        report.hub = Some(hub);
        report.problems.extend(problems);
    }
    if serves(MEMBER_GROUP) {
        let (member, problems) = member::read(&cluster).await?;
        report.member = Some(member);
        report.problems.extend(problems);
    }
    if report.hub.is_none() && report.member.is_none() {
        return Err(Failure::new(
            Exit::NotFound,
            format!("there is no Spillway in {}", cluster.name),
        )
        .fix("for a hub: spillway hub install")
        .fix("for a member: paste what `spillway token create NAME` printed on the hub")
        .fix("or name another cluster with --kubeconfig or --context"));
    }
    match status.output {
        Some(format) => output::print(&output::text(&report, format)?)?,
        None => output::print(&text(&report))?,
    }
    match report.problems.len() {
        0 => Ok(()),
        _ if !status.check => Ok(()),
        count => Err(Failure::new(Exit::Unhealthy, format!("{count} problems"))),
    }
}

/// The report for people.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    if let Some(hub) = &report.hub {
        out.push_str(&hub::text(hub));
    }
    if let Some(member) = &report.member {
        out.push_str(&member::text(member));
    }
    if report.problems.is_empty() {
        out.push_str("no problems\n");
        return out;
    }
    out.push_str("PROBLEMS\n");
    for problem in &report.problems {
        let _ = writeln!(out, "* {}: {}", problem.object, problem.what);
        if !problem.fix.is_empty() {
            let _ = writeln!(out, "  fix: {}", problem.fix);
        }
    }
    out
}

/// A table's cell for a condition: its status, or what stands for none.
fn cell(conditions: &[spillway_crds::Condition], kind: spillway_crds::ConditionType) -> String {
    match conditions.iter().find(|c| c.type_ == kind.as_str()) {
        Some(c) if c.status == "True" => "True".into(),
        Some(c) => format!("{} ({})", c.status, c.reason),
        None => "Unknown".into(),
    }
}

/// A text of several lines, as one.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// A cell that may be empty.
fn or_dash(text: Option<&str>) -> String {
    text.filter(|t| !t.is_empty()).unwrap_or("-").to_owned()
}

/// A condition that says that something is wrong, as a problem of `object`.
fn problem_of(
    object: &str,
    conditions: &[spillway_crds::Condition],
    kind: spillway_crds::ConditionType,
) -> Option<Problem> {
    let condition = conditions
        .iter()
        .find(|c| c.type_ == kind.as_str() && c.status == "False")?;
    Some(Problem::new(
        object,
        format!(
            "not {} ({}): {}",
            kind.as_str(),
            condition.reason,
            condition.message
        ),
        "",
    ))
}

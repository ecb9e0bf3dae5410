//! Which policies leave something to which, as far as it is true for every pod.
//!
//! The hub knows no pods. So of another policy only that counts which selects, beyond doubt, every pod that this one
//! selects: each of its requirements is one of this policy's, too, or follows from one. What such policies win is
//! lost to all of this policy's pods; what others win is lost to some, and nothing is said of it here.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use spillway_crds::condition::{ConditionType, Verdict};
use spillway_crds::hub::Sources;
use spillway_crds::member::PolicyRef;
use spillway_crds::{LabelSelector, Operator, Requirement};

use super::policy::{Policies, Policy};
use super::status::listed;
use crate::node::flatten::{Claim, TooFine, flatten};
use crate::node::interval::{Family, Interval};
use crate::node::outcome::Outcome;
use crate::order::rank;
use crate::ports::{self, PortClaim};

/// The label that every namespace has with its name as the value.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// How much is computed in one resolution: pairs of selections compared, members in which one might cover another, and
/// CIDRs flattened. Where it is used up, by some thousand different selections, nothing is said of the rest.
const BUDGET: usize = 4_000_000;

/// What is lost to others, by policy.
pub(super) struct Shadows<'a> {
    by: BTreeMap<&'a PolicyRef, Shadow<'a>>,
}

enum Shadow<'a> {
    /// Too many policies.
    Unknown,
    Known(Losses<'a>),
}

/// What one policy loses.
#[derive(Default)]
struct Losses<'a> {
    /// Who wins, sorted.
    to: BTreeSet<&'a PolicyRef>,
    /// Members in which all of it is lost, and those in which a part is.
    whole: Vec<&'a str>,
    part: Vec<&'a str>,
    /// It is lost in every member that the policy selects.
    everywhere: bool,
}

/// A policy with what comparing it takes.
struct Side<'a> {
    policy: &'a Policy<'a>,
    cidrs: Vec<IpNet>,
    except: Vec<IpNet>,
    ports: Vec<PortClaim>,
    sources: Option<Vec<IpNet>>,
}

impl<'a> Side<'a> {
    fn new(policy: &'a Policy<'a>) -> Self {
        let to = &policy.to;
        let read = |list: &[String]| -> Vec<IpNet> { list.iter().filter_map(|c| c.parse().ok()).collect() };
        let cidrs = if to.cidrs.is_empty() {
            Family::BOTH.map(Family::everything).to_vec()
        } else {
            read(&to.cidrs)
        };
        Self {
            policy,
            cidrs,
            except: read(&to.except),
            ports: to.ports.iter().filter_map(|p| ports::parse(p).ok()).collect(),
            sources: policy.sources.as_ref().map(|s: &Sources| read(&s.cidrs)),
        }
    }

    /// Equal for policies that select the same, as far as they are written the same.
    fn selection(&self) -> String {
        let input = self.policy.input;
        format!(
            "{:?} {:?} {:?} {:?} {:?}",
            input.source.namespace, input.namespaces, input.pods, self.sources, input.members
        )
    }

    fn size(&self) -> usize {
        (self.cidrs.len() + self.except.len()) * (1 + self.ports.len())
    }

    /// True where every pod that `other` selects is selected by this policy, in members that both select.
    fn covers(&self, other: &Self) -> bool {
        let (mine, its) = (self.policy.input, other.policy.input);
        let namespaces = match (&mine.source.namespace, &mine.namespaces, &its.source.namespace) {
            (Some(mine), _, its) => its.as_ref() == Some(mine),
            (None, None, _) => true,
            (None, Some(selector), Some(namespace)) => {
                let known = LabelSelector {
                    match_labels: BTreeMap::from([(NAMESPACE_NAME.to_owned(), namespace.clone())]),
                    match_expressions: Vec::new(),
                };
                follows(selector, &known)
            }
            (None, Some(selector), None) => follows(selector, its.namespaces.as_ref().unwrap_or(&EVERYTHING)),
        };
        let sources = match (&self.sources, &other.sources) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(its)) => its.iter().all(|i| mine.iter().any(|m| m.contains(i))),
        };
        namespaces && sources && follows(&mine.pods, &its.pods)
    }

    fn claim<V>(&self, verdict: V) -> Claim<V> {
        Claim {
            cidrs: self.cidrs.clone(),
            except: self.except.clone(),
            ports: self.ports.clone(),
            verdict: Some(verdict),
        }
    }
}

static EVERYTHING: LabelSelector = LabelSelector {
    match_labels: BTreeMap::new(),
    match_expressions: Vec::new(),
};

/// True where whatever `narrow` selects is selected by `wide`, as far as comparing requirements one by one can tell.
fn follows(wide: &LabelSelector, narrow: &LabelSelector) -> bool {
    let labels = wide
        .match_labels
        .iter()
        .all(|(key, value)| match narrow.match_labels.get(key) {
            Some(its) => its == value,
            None => narrow
                .match_expressions
                .iter()
                .any(|r| r.key == *key && r.operator == Operator::In && r.values == [value.as_str()]),
        });
    labels
        && wide.match_expressions.iter().all(|wanted| {
            narrow
                .match_labels
                .get(&wanted.key)
                .is_some_and(|value| holds(wanted, value))
                || narrow.match_expressions.iter().any(|r| implies(r, wanted))
        })
}

/// Whether a requirement holds for a label that is there.
fn holds(wanted: &Requirement, value: &String) -> bool {
    match wanted.operator {
        Operator::In => wanted.values.contains(value),
        Operator::NotIn => !wanted.values.contains(value),
        Operator::Exists => true,
        Operator::DoesNotExist => false,
    }
}

/// Whether `given` alone makes `wanted` hold.
fn implies(given: &Requirement, wanted: &Requirement) -> bool {
    let all_in = |a: &[String], b: &[String]| a.iter().all(|v| b.contains(v));
    given.key == wanted.key
        && match (given.operator, wanted.operator) {
            (Operator::In, Operator::In) => all_in(&given.values, &wanted.values),
            (Operator::In, Operator::NotIn) => !given.values.iter().any(|v| wanted.values.contains(v)),
            (Operator::In | Operator::Exists, Operator::Exists)
            | (Operator::DoesNotExist, Operator::DoesNotExist | Operator::NotIn) => true,
            (Operator::NotIn, Operator::NotIn) => all_in(&wanted.values, &given.values),
            _ => false,
        }
}

/// Policies that select the same pods of the same members, as they are written: their positions in the order of all,
/// sorted, at least one.
type Kin = Vec<usize>;

impl<'a> Shadows<'a> {
    pub(super) fn new(policies: &'a Policies<'a>) -> Self {
        let mut sides: Vec<Side<'a>> = policies.iter().map(Side::new).collect();
        sides.sort_by(|a, b| {
            let key = |s: &Side<'a>| {
                rank(
                    s.policy.input.priority,
                    s.policy.input.created,
                    &s.policy.input.source,
                )
            };
            key(a).cmp(&key(b))
        });
        let mut by_selection: BTreeMap<String, Kin> = BTreeMap::new();
        for (i, side) in sides.iter().enumerate() {
            by_selection.entry(side.selection()).or_default().push(i);
        }
        let kins: Vec<Kin> = by_selection.into_values().collect();
        let mut left = BUDGET;
        let mut by = BTreeMap::new();
        for kin in &kins {
            let known = contests(kin, &kins, &sides, &mut left);
            for i in kin.iter().filter(|i| sides[**i].policy.readable) {
                let shadow = match &known {
                    Some(contests) => Shadow::Known(losses(*i, &sides, contests)),
                    None => Shadow::Unknown,
                };
                by.insert(&sides[*i].policy.input.source, shadow);
            }
        }
        Self { by }
    }

    /// The printer column.
    pub(super) fn column(&self, policy: &PolicyRef) -> Option<String> {
        match self.by.get(policy)? {
            Shadow::Known(losses) if !losses.to.is_empty() => Some(losses.summary()),
            _ => None,
        }
    }

    /// The condition `Effective`.
    pub(super) fn verdict(&self, policy: &PolicyRef) -> Verdict {
        let kind = ConditionType::Effective;
        match self.by.get(policy) {
            None => Verdict::no(
                kind,
                "NotAccepted",
                "nobody can read what it is meant to take; see Accepted",
            ),
            Some(Shadow::Unknown) => Verdict {
                kind,
                status: None,
                reason: "TooManyPolicies".into(),
                message: "there are too many policies to say which of them win".into(),
            },
            Some(Shadow::Known(losses)) => losses.verdict(),
        }
    }
}

impl Losses<'_> {
    fn gone(&self) -> bool {
        self.everywhere && self.part.is_empty()
    }

    fn summary(&self) -> String {
        let extent = if self.gone() { "All" } else { "Part" };
        format!("{extent} by {}", self.names())
    }

    fn names(&self) -> String {
        let to: Vec<_> = self.to.iter().collect();
        listed(&to)
    }

    fn verdict(&self) -> Verdict {
        let kind = ConditionType::Effective;
        if self.to.is_empty() {
            return Verdict::yes(kind, "Effective", "");
        }
        let names = self.names();
        if self.gone() {
            return Verdict::no(
                kind,
                "Shadowed",
                format!(
                    "nothing is left to this policy: all its destinations go to {names}, which select all of its pods; a \
                     longer prefix in spec.to.cidrs, spec.to.ports or a higher spec.priority changes that"
                ),
            );
        }
        let mut members: Vec<&str> = self.whole.iter().chain(&self.part).copied().collect();
        members.sort_unstable();
        let what = if self.part.is_empty() { "all" } else { "some" };
        Verdict::yes(
            kind,
            "PartlyShadowed",
            format!(
                "{what} of its destinations go to {names}, which select all of its pods in {}",
                listed(&members)
            ),
        )
    }
}

/// Who wins what among policies that select all pods of some policies, in some members.
struct Contest<'a> {
    members: Vec<&'a str>,
    won: Vec<(Interval, Outcome<usize>)>,
}

/// The contests that the policies of `kin` take part in, one for each set of members with the same rivals. `None` where
/// the budget is used up, or ports make too many cases.
fn contests<'a>(kin: &Kin, kins: &[Kin], sides: &[Side<'a>], left: &mut usize) -> Option<Vec<Contest<'a>>> {
    *left = left.checked_sub(kins.len())?;
    let own = &sides[kin[0]];
    let rivals: Vec<&Kin> = kins.iter().filter(|k| sides[k[0]].covers(own)).collect();
    let members = &own.policy.selected;
    *left = left.checked_sub(members.len().saturating_mul(rivals.len()))?;
    let mut groups: BTreeMap<Vec<usize>, Vec<&'a str>> = BTreeMap::new();
    for member in members {
        let has = |k: &Kin| sides[k[0]].policy.selected.binary_search(member).is_ok();
        let here = rivals.iter().enumerate().filter(|(_, k)| has(k));
        groups
            .entry(here.map(|(i, _)| i).collect())
            .or_default()
            .push(*member);
    }
    let mut out = Vec::new();
    for (here, members) in groups {
        let mut set: Vec<usize> = here.iter().flat_map(|i| rivals[*i]).copied().collect();
        // The first one goes first.
        set.sort_unstable();
        *left = left.checked_sub(set.iter().map(|s| sides[*s].size()).sum())?;
        let claims: Vec<Claim<usize>> = set.iter().map(|s| sides[*s].claim(*s)).collect();
        let won = flat(&claims).ok()?;
        out.push(Contest { members, won });
    }
    Some(out)
}

/// Both families' destinations.
fn flat<V: Copy + Eq>(claims: &[Claim<V>]) -> Result<Vec<(Interval, Outcome<V>)>, TooFine> {
    let [v4, v6] = Family::BOTH.map(|family| flatten(claims, family));
    Ok([v4?, v6?].concat())
}

/// What policy `i` loses.
fn losses<'a>(i: usize, sides: &[Side<'a>], contests: &[Contest<'a>]) -> Losses<'a> {
    // It has been flattened together with others before.
    let mine = flat(&[sides[i].claim(())]).unwrap_or_default();
    let mut losses = Losses::default();
    let mut kept = mine.is_empty() || contests.is_empty();
    for contest in contests {
        let winners = winners(&mine, &contest.won);
        let others = winners.iter().filter(|w| **w != i);
        losses.to.extend(others.map(|w| &sides[*w].policy.input.source));
        if winners.contains(&i) && winners.len() == 1 {
            kept = true;
        } else if winners.contains(&i) {
            losses.part.extend(&contest.members);
        } else {
            losses.whole.extend(&contest.members);
        }
    }
    losses.everywhere = !kept;
    losses
}

/// Who wins something of `mine`. Both lists are sorted and disjoint.
fn winners(mine: &[(Interval, Outcome<()>)], won: &[(Interval, Outcome<usize>)]) -> BTreeSet<usize> {
    let mut winners = BTreeSet::new();
    for (own, outcome) in mine {
        let from = won.partition_point(|(i, _)| i.last() < own.first());
        let within = won[from..].iter().take_while(|(i, _)| i.first() <= own.last());
        winners.extend(within.flat_map(|(_, w)| w.within(outcome)));
    }
    winners
}

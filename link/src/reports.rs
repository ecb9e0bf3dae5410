//! A member's report in pieces: it can be larger than a message.

use spillway_crds::hub::MemberNode;

use crate::MemberReport;
use crate::frames::{PIECE, digest};
use crate::proto::ReportPart;

/// Most nodes of a member, as its status on the hub can hold.
const NODES: usize = 1024;
/// Largest report, all pieces together.
const LIMIT: usize = 32 << 20;

/// Pieces of a report. Nodes past the limit of [`NODES`] are left out.
pub(crate) fn split(report: &MemberReport) -> Vec<ReportPart> {
    let head = ReportPart {
        agent_version: report.agent_version.clone(),
        programmed: report
            .programmed
            .map(|d| d.as_bytes().to_vec())
            .unwrap_or_default(),
        ..ReportPart::default()
    };
    let mut parts = vec![head.clone()];
    let mut size = 0;
    for node in report.nodes.iter().take(NODES) {
        // Plain structs with string keys always encode.
        let Ok(json) = serde_json::to_vec(node) else {
            continue;
        };
        if size > 0 && size + json.len() > PIECE {
            parts.push(head.clone());
            size = 0;
        }
        size += json.len();
        if let Some(part) = parts.last_mut() {
            part.nodes.push(json);
        }
    }
    if let Some(first) = parts.first_mut() {
        first.first = true;
        first.ranges = report
            .ranges
            .as_ref()
            .and_then(|r| serde_json::to_vec(r).ok())
            .unwrap_or_default();
    }
    if let Some(last) = parts.last_mut() {
        last.last = true;
    }
    parts
}

/// A report that can't be used; the stream is broken then.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("the member's report can't be used: {0}")]
pub(crate) struct BadReport(String);

/// Puts reports together.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    open: Option<(MemberReport, usize)>,
}

impl Assembly {
    /// Takes the next piece; gives the report once it is whole.
    pub(crate) fn accept(&mut self, part: &ReportPart) -> Result<Option<MemberReport>, BadReport> {
        if part.first {
            let programmed = match part.programmed.as_slice() {
                [] => None,
                bytes => Some(digest(bytes).ok_or_else(|| BadReport("a digest has 32 bytes".into()))?),
            };
            if part.ranges.len() > LIMIT {
                return Err(BadReport(format!("its ranges are over {LIMIT} bytes")));
            }
            let ranges = match part.ranges.as_slice() {
                [] => None,
                json => Some(serde_json::from_slice(json).map_err(|e| BadReport(e.to_string()))?),
            };
            let report = MemberReport {
                nodes: Vec::new(),
                programmed,
                agent_version: part.agent_version.chars().take(64).collect(),
                ranges,
            };
            self.open = Some((report, 0));
        }
        let Some((report, size)) = &mut self.open else {
            return Err(BadReport("it begins in the middle".into()));
        };
        for json in &part.nodes {
            *size += json.len();
            // Before it is read: a message has room for very many very small nodes.
            if *size > LIMIT || report.nodes.len() == NODES {
                return Err(BadReport(format!("it is over {LIMIT} bytes or {NODES} nodes")));
            }
            let node: MemberNode = serde_json::from_slice(json).map_err(|e| BadReport(e.to_string()))?;
            report.nodes.push(node);
        }
        Ok(if part.last {
            self.open.take().map(|(report, _)| report)
        } else {
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use spillway_core::plan::Digest;
    use spillway_crds::hub::MemberRanges;

    use super::*;

    fn report(nodes: usize, label_bytes: usize) -> MemberReport {
        MemberReport {
            nodes: (0..nodes)
                .map(|i| MemberNode {
                    name: format!("n{i}"),
                    labels: BTreeMap::from([("l".into(), "x".repeat(label_bytes))]),
                    ..MemberNode::default()
                })
                .collect(),
            programmed: Some(Digest::of(b"p")),
            agent_version: "1".into(),
            ranges: Some(MemberRanges {
                problem: "p".into(),
                ..MemberRanges::default()
            }),
        }
    }

    #[test]
    fn reports_of_any_size_arrive_whole() {
        for sent in [MemberReport::default(), report(3, 1), report(1000, 5000)] {
            let mut assembly = Assembly::default();
            let parts = split(&sent);
            let last = parts.len() - 1;
            for (i, part) in parts.into_iter().enumerate() {
                let got = assembly.accept(&part).expect("its own pieces");
                assert_eq!(got, (i == last).then(|| sent.clone()));
            }
        }
    }

    #[test]
    fn a_report_that_begins_in_the_middle_or_never_ends_is_refused() {
        let parts = split(&report(1000, 5000));
        assert!(Assembly::default().accept(&parts[1]).is_err());
        let mut assembly = Assembly::default();
        let mut endless = parts.iter().cycle().map(|p| ReportPart {
            first: false,
            last: false,
            ..p.clone()
        });
        assembly.accept(&parts[0]).expect("the first piece");
        assert!(endless.by_ref().take(100).any(|p| assembly.accept(&p).is_err()));
    }

    #[test]
    fn a_million_nodes_in_one_message_are_not_even_read() {
        let mut part = split(&report(1, 1)).remove(0);
        part.nodes = vec![br#"{"name":"n"}"#.to_vec(); 1_000_000];
        let mut assembly = Assembly::default();
        assert!(assembly.accept(&part).is_err());
        let read = assembly.open.expect("what was read so far").0.nodes;
        assert_eq!(read.len(), NODES);
    }
}

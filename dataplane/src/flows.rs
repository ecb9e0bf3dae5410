//! Which tracked connections are to be cut, as a pure predicate.

use std::net::IpAddr;

use ipnet::IpNet;

/// A tracked connection, as far as cutting cares.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// Who opened it: source of the original direction.
    pub source: IpAddr,
    /// Whom the opener addressed: destination of the original direction, before any DNAT.
    pub addressed: IpAddr,
    /// Where it really goes: source of the reply direction, after any DNAT.
    pub destination: IpAddr,
    /// What the destination sees: destination of the reply direction, after any SNAT.
    pub seen_as: IpAddr,
    /// Connection mark.
    pub mark: u32,
}

/// Mark under a mask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MarkMatch {
    /// Which bits count.
    pub mask: u32,
    /// Their value.
    pub value: u32,
    /// True to match every other value instead.
    pub other_than: bool,
}

/// All conditions that are given must hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FlowMatch {
    /// Opened from one of these; empty for anybody.
    pub sources: Vec<IpNet>,
    /// Really going to one of these; empty for anywhere.
    pub destinations: Vec<IpNet>,
    /// And not to one of these.
    pub except: Vec<IpNet>,
    /// Its mark.
    pub mark: Option<MarkMatch>,
    /// Seen by the destination as something else than any of these; empty for no condition.
    pub seen_as_other_than: Vec<IpAddr>,
    /// Seen by the destination as one of these; empty for no condition.
    pub seen_as: Vec<IpAddr>,
}

/// Flows to cut: those that any entry matches. Without entries nothing matches.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FlowFilter {
    /// The alternatives.
    pub any: Vec<FlowMatch>,
}

impl FlowFilter {
    /// Whether `flow` is to be cut.
    pub fn matches(&self, flow: &Flow) -> bool {
        self.any.iter().any(|m| m.matches(flow))
    }
}

impl FlowMatch {
    /// Whether all conditions hold. An entry without any condition matches nothing: cutting everything on a
    /// node is never meant.
    pub fn matches(&self, flow: &Flow) -> bool {
        let within = |prefixes: &[IpNet], ip: &IpAddr| prefixes.iter().any(|p| p.contains(ip));
        if *self == Self::default() {
            return false;
        }
        (self.sources.is_empty() || within(&self.sources, &flow.source))
            && (self.destinations.is_empty() || within(&self.destinations, &flow.destination))
            && !within(&self.except, &flow.destination)
            && self
                .mark
                .is_none_or(|m| ((flow.mark & m.mask) == (m.value & m.mask)) != m.other_than)
            && (self.seen_as_other_than.is_empty() || !self.seen_as_other_than.contains(&flow.seen_as))
            && (self.seen_as.is_empty() || self.seen_as.contains(&flow.seen_as))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow {
            source: "10.1.0.5".parse().expect("address"),
            addressed: "10.96.0.1".parse().expect("address"),
            destination: "198.51.100.7".parse().expect("address"),
            seen_as: "192.0.2.1".parse().expect("address"),
            mark: 0x2_0007,
        }
    }

    #[test]
    fn conditions_are_all_needed_and_none_means_nothing() {
        assert!(
            !FlowFilter {
                any: vec![FlowMatch::default()]
            }
            .matches(&flow())
        );
        assert!(!FlowFilter::default().matches(&flow()));
        let pod = FlowMatch {
            sources: vec!["10.1.0.5/32".parse().expect("prefix")],
            destinations: vec!["198.51.100.0/24".parse().expect("prefix")],
            seen_as_other_than: vec!["100.64.4.1".parse().expect("address")],
            ..FlowMatch::default()
        };
        assert!(pod.matches(&flow()));
        let expected = Flow {
            seen_as: "100.64.4.1".parse().expect("address"),
            ..flow()
        };
        assert!(
            !pod.matches(&expected),
            "a flow that already leaves as wanted is kept"
        );
        let excepted = FlowMatch {
            except: vec!["198.51.100.7/32".parse().expect("prefix")],
            ..pod.clone()
        };
        assert!(!excepted.matches(&flow()));
    }

    #[test]
    fn marks_compare_under_their_mask() {
        let seven = FlowMatch {
            mark: Some(MarkMatch {
                mask: 0xffff,
                value: 7,
                other_than: false,
            }),
            ..FlowMatch::default()
        };
        assert!(seven.matches(&flow()));
        let others = FlowMatch {
            mark: Some(MarkMatch {
                mask: 0xffff,
                value: 7,
                other_than: true,
            }),
            ..FlowMatch::default()
        };
        assert!(!others.matches(&flow()));
    }
}
